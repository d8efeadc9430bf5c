"""Who may join: each ground for a refusal, and which comes first."""

import msgspec
import pytest

from cloud_aggregator.enrollment_desk import DeviceOnRecord, TokenOnRecord, find_refusal
from federated_core.protocol import enrollment
from federated_core.protocol.messages import EnrollmentRefusalReason, EnrollmentRequest
from tests.protocol.signed_messages import ENROLLMENT_REQUEST, OTHER_KEY, SEALING_KEY

TOKEN = TokenOnRecord(bytes(range(32)), uses=0, uses_max=2, expires_at=1000.0, is_revoked=False)
KNOWN = DeviceOnRecord(SEALING_KEY.public)
STRANGER = DeviceOnRecord(bytes(32))


def proven(request: EnrollmentRequest = ENROLLMENT_REQUEST, fleet: str = "fleet") -> EnrollmentRequest:
    return msgspec.structs.replace(request, proof=enrollment.prove(TOKEN.secret, fleet, request))


def token(**changed: object) -> TokenOnRecord:
    return msgspec.structs.replace(TOKEN, **changed)


def test_who_proves_a_valid_token_may_join() -> None:
    assert find_refusal("fleet", proven(), TOKEN, None, now_s=999.0) is None
    assert find_refusal("fleet", proven(), token(uses=1), None, now_s=1000.0) is None


@pytest.mark.parametrize(
    ("request_", "on_record", "device", "why"),
    [
        (proven(), None, None, "unknown-token"),
        (proven(), token(is_revoked=True), None, "unknown-token"),
        (ENROLLMENT_REQUEST, TOKEN, None, "bad-proof"),
        (proven(fleet="another"), TOKEN, None, "bad-proof"),
        (msgspec.structs.replace(proven(), verify_key=OTHER_KEY.public), TOKEN, None, "bad-proof"),
        (proven(), token(secret=bytes(32)), None, "bad-proof"),
        (proven(), token(expires_at=998.0), None, "expired-token"),
        (proven(), token(uses=2), None, "used-up-token"),
        (proven(), TOKEN, STRANGER, "conflicting-identity"),
    ],
)
def test_each_ground_for_a_refusal_is_named(
    request_: EnrollmentRequest,
    on_record: TokenOnRecord | None,
    device: DeviceOnRecord | None,
    why: EnrollmentRefusalReason,
) -> None:
    assert find_refusal("fleet", request_, on_record, device, now_s=999.0) == why


def test_the_same_device_is_granted_again_though_the_token_is_used_up_or_expired() -> None:
    for on_record in (TOKEN, token(uses=2), token(expires_at=0.0)):
        assert find_refusal("fleet", proven(), on_record, KNOWN, now_s=999.0) is None


def test_a_known_device_has_to_prove_it_like_anybody() -> None:
    assert find_refusal("fleet", ENROLLMENT_REQUEST, TOKEN, KNOWN, now_s=999.0) == "bad-proof"
    assert find_refusal("fleet", proven(), token(is_revoked=True), KNOWN, now_s=999.0) == "unknown-token"


def test_without_the_secret_nobody_learns_more_than_that_the_proof_is_wrong() -> None:
    gone = token(uses=2, expires_at=0.0)
    assert find_refusal("fleet", ENROLLMENT_REQUEST, gone, STRANGER, now_s=999.0) == "bad-proof"
