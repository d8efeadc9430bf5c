"""Who this device is: its keys and what enrollment gave it, in one file that only its owner can read."""

import hashlib
import os
from pathlib import Path

import msgspec

from federated_core.adapters.atomic_file import write_atomically
from federated_core.errors import LocalMisuseError
from federated_core.protocol.enrollment import Token
from federated_core.protocol.messages import EnrollmentGrant

IDENTITY_NAME = "identity"
_MACHINE_ID = Path("/etc/machine-id")


class Identity(msgspec.Struct, frozen=True):
    """Secrets of one device; ``grant`` is None until it is enrolled. The token's secret is not kept after that."""

    signing_secret: bytes
    sealing_secret: bytes
    noise_secret: bytes  # Keys the rounding noise and the order of examples; never leaves the device.
    client_id: str  # 128 random bits: on common brokers whoever knows it can evict us.
    machine: bytes
    token: Token
    grant: EnrollmentGrant | None = None


def new_identity(token: Token, folder: Path) -> Identity:
    """Return fresh keys for a device that is about to enroll and keeps its state in ``folder``."""
    return Identity(
        signing_secret=os.urandom(32),
        sealing_secret=os.urandom(32),
        noise_secret=os.urandom(32),
        client_id=os.urandom(16).hex(),
        machine=_machine(folder),
        token=token,
    )


def load_identity(folder: Path) -> Identity | None:
    """Return the identity that is kept in ``folder``, None if there is none."""
    path = folder / IDENTITY_NAME
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise LocalMisuseError(f"{path}: not an identity of this agent's version ({error}); enroll anew") from error


def save_identity(folder: Path, identity: Identity) -> None:
    """Keep ``identity`` in ``folder``, durably and readable by the owner alone."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(folder / IDENTITY_NAME, msgspec.msgpack.encode(identity))


def _machine(folder: Path) -> bytes:
    """Return 16 bytes that tell installations apart (never the id itself); without a machine id each is new."""
    try:
        machine_id = _MACHINE_ID.read_bytes().strip()
    except OSError:
        return os.urandom(16)
    return hashlib.blake2b(bytes(folder.resolve()), key=machine_id[:64], digest_size=16).digest()
