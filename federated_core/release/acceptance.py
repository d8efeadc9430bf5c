"""The rules by which a device accepts a release: no I/O, and every refusal has a word of its own."""

import hashlib
from collections.abc import Mapping

import msgspec

from federated_core.errors import RemoteProtocolError
from federated_core.protocol.keys import is_signed_by
from federated_core.protocol.messages import Artifact, BlobReference, ReleaseReason, SignedManifest
from federated_core.release.manifest import ReleaseManifest, decode_manifest, key_id, statement

_OVERHEAD_BYTES = 4096  # Of a keyframe or delta that did not compress.


class Trust(msgspec.Struct, frozen=True):
    """What a device believes and allows. ``now_s`` is never before the latest time that it has proof of."""

    fleet: str
    model_key: bytes
    now_s: float
    concluded: Mapping[str, int]  # Family to the highest number that was concluded: the floor.
    families: tuple[str, ...] = ()  # Empty: any.
    bundle_bytes_max: int = 64_000_000
    checkpoint_bytes_max: int = 64_000_000


class Refusal(msgspec.Struct, frozen=True):
    """Why a release is not accepted, in one word for machines and one sentence for people."""

    reason: ReleaseReason
    detail: str


class Refused(msgspec.Struct, frozen=True):
    """A refused offer; ``manifest`` only if the model key signed it, so that its number may be believed."""

    refusal: Refusal
    manifest: ReleaseManifest | None = None


def judge_offer(signed: SignedManifest, fetch: tuple[Artifact, ...], trust: Trust) -> ReleaseManifest | Refused:
    """Return the manifest if it may be tried, else why not. The signature is verified before anything is parsed."""
    if signed.key_id != key_id(trust.model_key):
        return _untrusted("wrong-key", f"signed by key {signed.key_id.hex()}, ours is {key_id(trust.model_key).hex()}")
    if not is_signed_by(trust.model_key, signed.signature, statement(signed.body)):
        return _untrusted("bad-signature", "the model key did not sign these bytes")
    try:
        manifest = decode_manifest(signed.body)
    except RemoteProtocolError as error:
        return _untrusted("malformed", str(error))
    refusal = _judge_manifest(manifest, trust) or _judge_fetch(manifest, fetch)
    return manifest if refusal is None else Refused(refusal, manifest)


def judge_bytes(what: str, reference: BlobReference, data: bytes) -> Refusal | None:
    """Return why ``data`` is not the ``reference`` that a manifest names, None if it is."""
    if len(data) < reference.size_bytes:
        return Refusal("truncated", f"{what}: expected {reference.size_bytes} bytes, got {len(data)}")
    if len(data) > reference.size_bytes:
        return Refusal("oversized", f"{what}: expected {reference.size_bytes} bytes, got {len(data)}")
    found = hashlib.sha256(data).digest()
    if found != reference.digest:
        return Refusal("digest-mismatch", f"{what}: expected {_short(reference.digest)}, got {_short(found)}")
    return None


def _judge_manifest(manifest: ReleaseManifest, trust: Trust) -> Refusal | None:
    if manifest.fleet != trust.fleet:
        return Refusal("wrong-fleet", f"made for fleet {manifest.fleet}, this device is of {trust.fleet}")
    if trust.families and manifest.family not in trust.families:
        return Refusal("wrong-family", f"family {manifest.family}, this device takes {', '.join(trust.families)}")
    floor = trust.concluded.get(manifest.family, 0)
    if manifest.number <= floor:
        return Refusal("not-newer", f"release {manifest.number}, but {floor} was concluded here")
    if manifest.expires_at <= trust.now_s:
        return Refusal("expired", f"expired {trust.now_s - manifest.expires_at:.0f} s ago")
    for what, reference, size_max in (
        ("bundle", manifest.bundle, trust.bundle_bytes_max),
        ("checkpoint", manifest.checkpoint, trust.checkpoint_bytes_max),
    ):
        if reference.size_bytes > size_max:
            return Refusal("oversized", f"{what} of {reference.size_bytes} bytes, this device takes {size_max}")
    return None


def _judge_fetch(manifest: ReleaseManifest, fetch: tuple[Artifact, ...]) -> Refusal | None:
    """A fetch plan is the aggregator's word only: it must not make a device download more than the release is worth."""
    for artifact in fetch:
        if artifact.kind == "bundle":
            if artifact.blob != manifest.bundle:
                return Refusal("digest-mismatch", f"fetch plan: bundle {_describe(artifact.blob)} is not the release's")
        elif artifact.blob.size_bytes > manifest.checkpoint.size_bytes + _OVERHEAD_BYTES:
            return Refusal("oversized", f"fetch plan: {artifact.kind} {_describe(artifact.blob)} is too large")
    return None


def _untrusted(reason: ReleaseReason, detail: str) -> Refused:
    return Refused(Refusal(reason, detail[:120]))


def _describe(blob: BlobReference) -> str:
    return f"{_short(blob.digest)} of {blob.size_bytes} bytes"


def _short(digest: bytes) -> str:
    return digest[:6].hex()
