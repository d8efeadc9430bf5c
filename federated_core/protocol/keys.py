"""Keys and what is done with them: Ed25519 signatures and HPKE sealing, both by ``cryptography``."""

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from federated_core.errors import RemoteProtocolError

SIGNATURE_BYTES = 64
SEAL_OVERHEAD_BYTES = 48  # 32 of the encapsulated key, 16 of the tag.

# ChaCha: many small boards have no AES instructions.
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


class SigningKey:
    """An Ed25519 private key; ``secret`` is its 32 raw bytes."""

    def __init__(self, secret: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature of ``data``."""
        return self._key.sign(data)


def is_signed_by(public: bytes, signature: bytes, data: bytes) -> bool:
    """Whether ``signature`` over ``data`` was made by the holder of ``public``."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


class SealingKey:
    """An X25519 private key that opens what was sealed to it; ``secret`` is its 32 raw bytes."""

    def __init__(self, secret: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw()

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Return what was sealed under the same ``context``, or raise RemoteProtocolError."""
        try:
            return _SUITE.decrypt(sealed, self._key, info=context)
        except (InvalidTag, ValueError) as error:
            raise RemoteProtocolError("sealed data: expected what was sealed to this key and context") from error


def seal(public: bytes, data: bytes, context: bytes) -> bytes:
    """Encrypt ``data`` so that only the holder of ``public`` can read it, and only under the same ``context``.

    Not every 32 bytes are a key: a point of small order raises RemoteProtocolError, since it came from the other side.
    """
    try:
        return _SUITE.encrypt(data, X25519PublicKey.from_public_bytes(public), info=context)
    except ValueError as error:
        raise RemoteProtocolError(f"sealing key: expected an X25519 public key, got {public.hex()[:64]}") from error


def update_context(fleet: str, device: str, task: str, round_number: int, base: bytes) -> bytes:
    """Context under which an update is sealed: it opens for no other device, round or base checkpoint."""
    names = (fleet, device, task, str(round_number))
    return b"\0".join([b"fallow/v1 update", *(name.encode() for name in names), base])


def bundle_statement(bundle: bytes) -> bytes:
    """What the model key signs so that devices run the bundle with this digest."""
    return b"fallow/v1 bundle\0" + bundle


def grant_context(fleet: str, token: str, nonce: bytes) -> bytes:
    """Context under which an enrollment grant is sealed."""
    return b"\0".join([b"fallow/v1 grant", fleet.encode(), token.encode(), nonce])
