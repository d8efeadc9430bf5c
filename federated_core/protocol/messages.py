"""Every message of the protocol: the structs are the schema.

A device speaks in `DeviceMessage`, the aggregator answers in `AggregatorMessage`; both travel signed (`wire`).
Enrollment has a pair of its own. Digests are SHA-256 (32 bytes), times are seconds relative to receipt (a device's
clock may be wrong), counts are plain integers. Fields that a reader does not know are ignored, so that either side may
be newer.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PROTOCOL_VERSION = 1

Identifier = Annotated[str, Meta(pattern=r"^[a-z0-9_-]{1,48}\Z")]  # Not `$`, which lets a last newline through.
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Nonce = Annotated[bytes, Meta(min_length=8, max_length=16)]
ShortText = Annotated[str, Meta(max_length=120)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
ReleaseNumber = Annotated[int, Meta(ge=1, le=2**31)]
RoundNumber = Annotated[int, Meta(ge=0, le=2**31)]
Seconds = Annotated[float, Meta(ge=0.0, le=31 * 86_400.0)]
BlobSize = Annotated[int, Meta(ge=1, le=256 * 1024 * 1024)]
Index = Annotated[int, Meta(ge=0, lt=2**20)]

PlanKind = Literal["train", "evaluate"]
ArtifactKind = Literal["bundle", "keyframe", "delta"]
RejectionReason = Literal["no-task", "not-selected", "task-paused", "task-finished", "unknown-device"]
Verdict = Literal[
    "accepted",
    "late",
    "not-selected",
    "wrong-base",
    "wrong-plan",
    "too-few-examples",
    "too-many-examples",
    "too-large",
    "digest-mismatch",
    "malformed",
    "not-finite",
]
AbandonReason = Literal[
    "became-ineligible", "deadline", "too-few-examples", "fetch-failed", "training-failed", "untrusted"
]
EligibilityCode = Literal["eligible", "eligible-by-waiver"]
EnrollmentRefusalReason = Literal[
    "unknown-token", "expired-token", "used-up-token", "bad-proof", "conflicting-identity"
]
ReleaseOutcome = Literal["committed", "failed", "refused"]
ReleaseReason = Literal[
    "wrong-key",
    "bad-signature",
    "malformed",
    "wrong-fleet",
    "wrong-family",
    "not-newer",
    "expired",
    "oversized",
    "truncated",
    "digest-mismatch",
    "does-not-load",
    "interface-changed",
    "not-finite",
    "less-accurate",
    "crashed",
    "timed-out",
    "no-room",
]


class RetryWindow(msgspec.Struct, frozen=True):
    """Pacing: check in again after a time drawn uniformly from this window."""

    min_s: Seconds
    max_s: Seconds


class BlobReference(msgspec.Struct, frozen=True):
    """A blob by content: what is fetched must hash to ``digest``."""

    digest: Digest
    size_bytes: BlobSize


class Artifact(msgspec.Struct, frozen=True):
    """A blob that an assignment needs, in order of use; ``multicast`` if the whole cohort hears it unasked."""

    kind: ArtifactKind
    blob: BlobReference
    multicast: bool = False


class CheckpointReference(msgspec.Struct, frozen=True):
    """A published checkpoint by version and digest."""

    version: Count
    digest: Digest


class HeldCheckpoint(msgspec.Struct, frozen=True):
    """What a device already holds of a task."""

    task: Identifier
    bundle: Digest
    checkpoint: CheckpointReference


class Plan(msgspec.Struct, frozen=True):
    """What a device runs in one round."""

    kind: PlanKind
    epochs: Annotated[int, Meta(ge=0, le=1000)] = 1
    step_count_max: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None  # Ends an epoch early.
    batch_size: Annotated[int, Meta(ge=1, le=4096)] = 32
    learning_rate: Annotated[float, Meta(ge=0.0, le=100.0)] = 0.05
    step_ratio: Annotated[float, Meta(gt=0.0, le=64.0)] = 4.0  # Codec: one level is this many times the delta's rms.
    delta_norm_max: Annotated[float, Meta(gt=0.0, le=1e6)] | None = None  # Devices clip to it, the gate checks it.
    example_count_min: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    example_count_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000


class Metrics(msgspec.Struct, frozen=True):
    """How the *base* checkpoint does on the device's own holdout, as sums that add up over devices."""

    example_count: Count
    correct_count: Count
    loss_sum: Annotated[float, Meta(ge=0.0)]


class CheckIn(msgspec.Struct, frozen=True, tag_field="type", tag="check-in"):
    """A device offers itself; repeated under the same id until it is answered."""

    check_in_id: Nonce
    held: Annotated[tuple[HeldCheckpoint, ...], Meta(max_length=16)] = ()
    eligibility: EligibilityCode = "eligible"
    engine: ShortText = ""
    agent_version: ShortText = ""


class Report(msgspec.Struct, frozen=True, tag_field="type", tag="report"):
    """What a device made of its assignment; announces the sealed update, which follows in chunks."""

    task: Identifier
    round: RoundNumber
    kind: PlanKind
    base: Digest
    example_count: Count
    metrics: Metrics
    update: BlobReference | None = None
    training_loss: float | None = None
    training_s: Seconds = 0.0


class Abandonment(msgspec.Struct, frozen=True, tag_field="type", tag="abandonment"):
    """A device gives an assignment back, and says why in one coarse word."""

    task: Identifier
    round: RoundNumber
    why: AbandonReason


class ChunkRequest(msgspec.Struct, frozen=True, tag_field="type", tag="chunk-request"):
    """A device asks for chunks that it misses."""

    digest: Digest
    indices: Annotated[tuple[Index, ...], Meta(min_length=1, max_length=32)]


class Assignment(msgspec.Struct, frozen=True, tag_field="type", tag="assignment"):
    """The answer to a check-in that was selected."""

    check_in_id: Nonce
    task: Identifier
    round: RoundNumber
    plan: Plan
    base: CheckpointReference
    bundle: Digest
    bundle_signature: Annotated[bytes, Meta(min_length=64, max_length=64)]  # By the model key: a bundle is code.
    fetch: Annotated[tuple[Artifact, ...], Meta(max_length=16)]
    deadline_s: Seconds


class Rejection(msgspec.Struct, frozen=True, tag_field="type", tag="rejection"):
    """The answer to a check-in that was not selected: why, and when to come back."""

    check_in_id: Nonce
    why: RejectionReason
    retry: RetryWindow


class Acknowledgement(msgspec.Struct, frozen=True, tag_field="type", tag="acknowledgement"):
    """The verdict on a report, sent once the update is on disk; only this empties the device's outbox."""

    task: Identifier
    round: RoundNumber
    verdict: Verdict
    retry: RetryWindow


class Cancellation(msgspec.Struct, frozen=True, tag_field="type", tag="cancellation"):
    """The round went on without this device: stop, and come back later."""

    task: Identifier
    round: RoundNumber
    retry: RetryWindow


class ChunksMissing(msgspec.Struct, frozen=True, tag_field="type", tag="chunks-missing"):
    """The aggregator asks for chunks of an announced update."""

    digest: Digest
    indices: Annotated[tuple[Index, ...], Meta(min_length=1, max_length=32)]


class BlobUnavailable(msgspec.Struct, frozen=True, tag_field="type", tag="blob-unavailable"):
    """The aggregator does not have what was asked for (any more)."""

    digest: Digest


class EnrollmentRequest(msgspec.Struct, frozen=True, tag_field="type", tag="enrollment-request"):
    """A device asks for an identity; ``proof`` is an HMAC-SHA256 by the token's secret over what stands before it."""

    token: Identifier
    verify_key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    seal_key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    nonce: Nonce
    machine: Annotated[bytes, Meta(min_length=16, max_length=16)]
    proof: Digest


class EnrollmentGrant(msgspec.Struct, frozen=True):
    """An identity, sealed to the key in the request: name, and the broker's credential."""

    fleet: Identifier
    device: Identifier
    username: ShortText
    password: ShortText


class EnrollmentReply(msgspec.Struct, frozen=True, tag_field="type", tag="enrollment-reply"):
    """The answer to an enrollment request: a sealed `EnrollmentGrant`."""

    nonce: Nonce
    sealed_grant: Annotated[bytes, Meta(max_length=2048)]


class EnrollmentRefusal(msgspec.Struct, frozen=True, tag_field="type", tag="enrollment-refusal"):
    """The answer to an enrollment request that was refused."""

    nonce: Nonce
    why: EnrollmentRefusalReason


class SignedManifest(msgspec.Struct, frozen=True):
    """A release's manifest as it was signed; its bytes mean nothing before the signature is verified."""

    body: Annotated[bytes, Meta(max_length=4096)]
    key_id: Annotated[bytes, Meta(min_length=8, max_length=8)]  # First bytes of the signing key's public half.
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class ReleaseConclusion(msgspec.Struct, frozen=True):
    """What became of the newest release that a device concluded; none of its number or lower is ever tried again."""

    number: ReleaseNumber
    outcome: ReleaseOutcome
    reason: ReleaseReason | None = None
    detail: ShortText = ""


class FamilyStatus(msgspec.Struct, frozen=True):
    """What a device runs of one model family, and what it last concluded; ``running`` 0 means nothing."""

    family: Identifier
    running: Annotated[int, Meta(ge=0, le=2**31)] = 0
    checkpoint: Digest | None = None  # Of what runs.
    concluded: ReleaseConclusion | None = None


class ReleaseStatus(msgspec.Struct, frozen=True, tag_field="type", tag="release-status"):
    """What a device runs; said at each connect and after each conclusion, and repeated until it is acknowledged."""

    status_id: Nonce
    families: Annotated[tuple[FamilyStatus, ...], Meta(max_length=16)] = ()
    held: Annotated[tuple[HeldCheckpoint, ...], Meta(max_length=16)] = ()
    refused: ReleaseConclusion | None = None  # An offer that is not to be trusted, so that its number is no floor.


class ReleaseOffer(msgspec.Struct, frozen=True, tag_field="type", tag="release-offer"):
    """A release for this device, and what it must fetch for it; only ``manifest`` is the model key's word."""

    number: ReleaseNumber
    manifest: SignedManifest
    fetch: Annotated[tuple[Artifact, ...], Meta(max_length=16)]


class ReleaseAnnouncement(msgspec.Struct, frozen=True, tag_field="type", tag="release-announcement"):
    """There is a release: say what you run, at a moment drawn uniformly from the next ``spread_s`` seconds."""

    number: ReleaseNumber
    spread_s: Seconds


class ReleaseAcknowledgement(msgspec.Struct, frozen=True, tag_field="type", tag="release-acknowledgement"):
    """A release status is on disk."""

    status_id: Nonce


DeviceMessage = CheckIn | Report | Abandonment | ChunkRequest | ReleaseStatus
ReleaseMessage = ReleaseOffer | ReleaseAnnouncement | ReleaseAcknowledgement
AggregatorMessage = (
    Assignment | Rejection | Acknowledgement | Cancellation | ChunksMissing | BlobUnavailable | ReleaseMessage
)
EnrollmentAnswer = EnrollmentReply | EnrollmentRefusal
Message = DeviceMessage | AggregatorMessage | EnrollmentRequest | EnrollmentAnswer
