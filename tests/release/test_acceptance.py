"""What a device accepts as a release, and the word with which it refuses everything else."""

import hashlib

import hypothesis
import hypothesis.strategies as st
import msgspec
import pytest

from federated_core.errors import LocalMisuseError, RemoteProtocolError
from federated_core.protocol.keys import SigningKey, bundle_statement
from federated_core.protocol.messages import Artifact, BlobReference, ReleaseReason, SignedManifest
from federated_core.release.acceptance import Refused, Trust, judge_bytes, judge_offer
from federated_core.release.manifest import (
    ReleaseManifest,
    decode_manifest,
    encode_manifest,
    key_id,
    sign_manifest,
    statement,
)

MODEL_KEY = SigningKey(b"m" * 32)
STRANGER = SigningKey(b"s" * 32)
BUNDLE, CHECKPOINT = b"bundle" * 100, b"checkpoint" * 100


def reference(data: bytes) -> BlobReference:
    """Name bytes by content."""
    return BlobReference(hashlib.sha256(data).digest(), len(data))


MANIFEST = ReleaseManifest(
    format=1,
    fleet="demo",
    family="gestures",
    number=8,
    task="gestures-2026",
    version=20,
    bundle=reference(BUNDLE),
    checkpoint=reference(CHECKPOINT),
    issued_at=1_000,
    expires_at=2_000,
    accuracy_drop_max=0.05,
)
TRUST = Trust("demo", MODEL_KEY.public, now_s=1_500.0, concluded={"gestures": 7, "other": 99})


def refusal_of(signed: SignedManifest, trust: Trust = TRUST, fetch: tuple[Artifact, ...] = ()) -> ReleaseReason | None:
    """Return the word of a refusal, None for what is accepted."""
    verdict = judge_offer(signed, fetch, trust)
    return verdict.refusal.reason if isinstance(verdict, Refused) else None


def test_a_release_signed_by_the_model_key_is_accepted_as_it_was_written() -> None:
    fetch = (Artifact("bundle", MANIFEST.bundle), Artifact("keyframe", BlobReference(b"k" * 32, 900)))
    assert judge_offer(sign_manifest(MODEL_KEY, MANIFEST), fetch, TRUST) == MANIFEST


def test_another_key_is_refused_by_name() -> None:
    assert refusal_of(sign_manifest(STRANGER, MANIFEST)) == "wrong-key"


def test_a_stranger_who_names_our_key_is_refused() -> None:
    signed = msgspec.structs.replace(sign_manifest(STRANGER, MANIFEST), key_id=key_id(MODEL_KEY.public))
    assert refusal_of(signed) == "bad-signature"


def test_a_signature_of_the_model_key_over_something_else_is_none_over_a_release() -> None:
    body = encode_manifest(MANIFEST)
    signature = MODEL_KEY.sign(bundle_statement(body))
    assert refusal_of(SignedManifest(body, key_id(MODEL_KEY.public), signature)) == "bad-signature"


@hypothesis.given(st.data())
def test_a_flipped_byte_or_a_cut_anywhere_is_refused_before_anything_is_parsed(data: st.DataObject) -> None:
    signed = sign_manifest(MODEL_KEY, MANIFEST)
    body = bytearray(signed.body)
    place = data.draw(st.integers(0, len(body) - 1))
    if data.draw(st.booleans()):
        body[place] ^= data.draw(st.integers(1, 255))
    else:
        del body[place:]
    assert refusal_of(msgspec.structs.replace(signed, body=bytes(body))) == "bad-signature"


@pytest.mark.parametrize("number", [7, 6, 1])
def test_an_equal_or_lower_number_is_refused_however_well_it_is_signed(number: int) -> None:
    assert refusal_of(sign_manifest(MODEL_KEY, msgspec.structs.replace(MANIFEST, number=number))) == "not-newer"


def test_the_floor_is_the_familys_own() -> None:
    other = msgspec.structs.replace(MANIFEST, family="other")
    assert refusal_of(sign_manifest(MODEL_KEY, other)) == "not-newer"
    third = msgspec.structs.replace(MANIFEST, family="third", number=1)
    assert refusal_of(sign_manifest(MODEL_KEY, third)) is None


@pytest.mark.parametrize(("now_s", "expected"), [(1_999.9, None), (2_000.0, "expired"), (9e9, "expired")])
def test_a_release_is_refused_from_the_second_of_its_expiry_on(now_s: float, expected: ReleaseReason | None) -> None:
    assert refusal_of(sign_manifest(MODEL_KEY, MANIFEST), msgspec.structs.replace(TRUST, now_s=now_s)) == expected


def test_another_fleets_release_is_refused() -> None:
    assert refusal_of(sign_manifest(MODEL_KEY, msgspec.structs.replace(MANIFEST, fleet="else"))) == "wrong-fleet"


def test_a_family_that_the_device_does_not_take_is_refused() -> None:
    signed = sign_manifest(MODEL_KEY, MANIFEST)
    assert refusal_of(signed, msgspec.structs.replace(TRUST, families=("speech",))) == "wrong-family"
    assert refusal_of(signed, msgspec.structs.replace(TRUST, families=("speech", "gestures"))) is None


@pytest.mark.parametrize("what", ["bundle", "checkpoint"])
def test_what_is_larger_than_the_device_takes_is_refused(what: str) -> None:
    trust = msgspec.structs.replace(TRUST, **{f"{what}_bytes_max": getattr(MANIFEST, what).size_bytes - 1})
    assert refusal_of(sign_manifest(MODEL_KEY, MANIFEST), trust) == "oversized"


@pytest.mark.parametrize(
    ("artifact", "expected"),
    [
        (Artifact("bundle", BlobReference(b"x" * 32, len(BUNDLE))), "digest-mismatch"),
        (Artifact("bundle", BlobReference(MANIFEST.bundle.digest, len(BUNDLE) + 1)), "digest-mismatch"),
        (Artifact("keyframe", BlobReference(b"k" * 32, len(CHECKPOINT) + 4097)), "oversized"),
        (Artifact("delta", BlobReference(b"d" * 32, 10**8)), "oversized"),
    ],
)
def test_a_fetch_plan_that_is_worth_more_than_the_release_is_refused(artifact: Artifact, expected: str) -> None:
    assert refusal_of(sign_manifest(MODEL_KEY, MANIFEST), fetch=(artifact,)) == expected


def signed_bytes(body: bytes) -> SignedManifest:
    """Return bytes signed by the model key's holder, whatever they are."""
    return SignedManifest(body, key_id(MODEL_KEY.public), MODEL_KEY.sign(statement(body)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        encode_manifest(MANIFEST)[:-1],
        encode_manifest(MANIFEST) + b"\0",
        msgspec.msgpack.encode({**msgspec.to_builtins(MANIFEST, builtin_types=(bytes,)), "more": 1}),
        msgspec.msgpack.encode({**msgspec.to_builtins(MANIFEST, builtin_types=(bytes,)), "format": 2}),
        msgspec.msgpack.encode({**msgspec.to_builtins(MANIFEST, builtin_types=(bytes,)), "expires_at": 1_000}),
        msgspec.msgpack.encode(dict(reversed(msgspec.to_builtins(MANIFEST, builtin_types=(bytes,)).items()))),
    ],
    ids=["empty", "no value", "cut", "tail", "unknown field", "format", "expires at issue", "not canonical"],
)
def test_bytes_that_are_signed_but_no_manifest_are_malformed(body: bytes) -> None:
    assert refusal_of(signed_bytes(body)) == "malformed"


def test_only_what_the_model_key_signed_tells_its_number() -> None:
    old = judge_offer(sign_manifest(MODEL_KEY, msgspec.structs.replace(MANIFEST, number=7)), (), TRUST)
    forged = judge_offer(sign_manifest(STRANGER, MANIFEST), (), TRUST)
    assert isinstance(old, Refused)
    assert old.manifest is not None
    assert isinstance(forged, Refused)
    assert forged.manifest is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (CHECKPOINT, None),
        (CHECKPOINT[:-1], "truncated"),
        (b"", "truncated"),
        (CHECKPOINT + b"!", "oversized"),
        (b"C" + CHECKPOINT[1:], "digest-mismatch"),
        (CHECKPOINT[:-1] + b"!", "digest-mismatch"),
    ],
)
def test_content_is_accepted_only_to_the_last_byte(data: bytes, expected: ReleaseReason | None) -> None:
    refusal = judge_bytes("checkpoint", MANIFEST.checkpoint, data)
    assert (refusal.reason if refusal else None) == expected


def test_a_manifest_that_no_device_would_read_is_not_signed() -> None:
    with pytest.raises(LocalMisuseError, match="expires_at"):
        sign_manifest(MODEL_KEY, msgspec.structs.replace(MANIFEST, expires_at=0))
    with pytest.raises(LocalMisuseError, match="family"):
        sign_manifest(MODEL_KEY, msgspec.structs.replace(MANIFEST, family="../etc"))


@hypothesis.given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_a_protocol_error(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_manifest(body)
