"""The aggregator's secrets, one file each, readable by the owner alone; made at the first start."""

import os
from pathlib import Path

import msgspec

from federated_core.adapters.atomic_file import write_atomically
from federated_core.errors import LocalMisuseError
from federated_core.protocol.keys import SealingKey, SigningKey

MODEL_KEY_NAME = "model.key"
_SECRET_BYTES = 32


class Keyring(msgspec.Struct, frozen=True):
    """What the running aggregator needs. The model's *private* key is not among it: only its public half."""

    signing: SigningKey
    sealing: SealingKey
    selection_secret: bytes
    client_id: str
    model_public: bytes


def make_keys(folder: Path) -> None:
    """Make every key that is not there yet; none is ever replaced, nor is a model key that was moved away."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    public = folder / "model.pub"
    names = ["signing.key", "sealing.key", "selection.key", "client.id"]
    names += [] if public.exists() else [MODEL_KEY_NAME]
    for name in names:
        if not (folder / name).exists():
            write_atomically(folder / name, os.urandom(_SECRET_BYTES))
    if not public.exists():
        write_atomically(public, SigningKey(read_secret(folder / MODEL_KEY_NAME)).public, mode=0o644)


def load_keyring(folder: Path) -> Keyring:
    """Return the keys in ``folder``."""
    return Keyring(
        signing=SigningKey(read_secret(folder / "signing.key")),
        sealing=SealingKey(read_secret(folder / "sealing.key")),
        selection_secret=read_secret(folder / "selection.key"),
        client_id=read_secret(folder / "client.id")[:16].hex(),
        model_public=read_secret(folder / "model.pub"),
    )


def read_secret(path: Path) -> bytes:
    """Return the 32 bytes in ``path``."""
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise LocalMisuseError(f"{path}: no key here; run: cloud-aggregator init ({error.strerror})") from error
    if len(secret) != _SECRET_BYTES:
        raise LocalMisuseError(f"{path}: expected a key of {_SECRET_BYTES} bytes, got {len(secret)}")
    return secret
