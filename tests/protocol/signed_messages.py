"""Keys that tests sign with, and messages that they sign."""

from federated_core.protocol import messages
from federated_core.protocol.keys import SealingKey, SigningKey

DEVICE_KEY = SigningKey(bytes(range(32)))
OTHER_KEY = SigningKey(bytes(range(1, 33)))
SEALING_KEY = SealingKey(bytes(range(2, 34)))

DIGEST = bytes(range(32))
NONCE = b"8 bytes."
BLOB = messages.BlobReference(DIGEST, 70_000)
REPORT = messages.Report("gestures", 4, "train", DIGEST, 40, messages.Metrics(10, 7, 3.5), BLOB, 0.25, 1.5)
ENROLLMENT_REQUEST = messages.EnrollmentRequest(
    "t1", DEVICE_KEY.public, SEALING_KEY.public, NONCE, bytes(16), bytes(32)
)
