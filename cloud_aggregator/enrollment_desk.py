"""Who may join: the decision on an enrollment request, given what is on record."""

import msgspec

from federated_core.protocol import enrollment
from federated_core.protocol.messages import EnrollmentRefusalReason, EnrollmentRequest


class TokenOnRecord(msgspec.Struct, frozen=True):
    """What is known of a token; times in seconds since 1970."""

    secret: bytes
    uses: int
    uses_max: int
    expires_at: float
    is_revoked: bool


class DeviceOnRecord(msgspec.Struct, frozen=True):
    """What is known of the device that holds the same key."""

    seal_key: bytes


def find_refusal(
    fleet: str, request: EnrollmentRequest, token: TokenOnRecord | None, device: DeviceOnRecord | None, now_s: float
) -> EnrollmentRefusalReason | None:
    """Return why ``request`` is refused, None if it is granted; the same key again is granted again, at no use."""
    if token is None or token.is_revoked:
        return "unknown-token"
    if not enrollment.is_proven(token.secret, fleet, request):
        return "bad-proof"
    if device is not None:
        return None if device.seal_key == request.seal_key else "conflicting-identity"
    if now_s > token.expires_at:
        return "expired-token"
    if token.uses >= token.uses_max:
        return "used-up-token"
    return None
