"""Releases of the tiny model, signed and ready to be offered: scores = W x + b, two inputs, two classes."""

import dataclasses
import hashlib

import msgspec
import numpy as np
from numpy.typing import NDArray

from federated_core.learning.lattice import Keyframe
from federated_core.learning.lattice_codec import encode_keyframe
from federated_core.learning.parameters import encode_checkpoint
from federated_core.protocol.keys import SigningKey
from federated_core.protocol.messages import Artifact, ArtifactKind, BlobReference, ReleaseOffer, SignedManifest
from federated_core.release.manifest import ReleaseManifest, sign_manifest
from tests.simulation.tiny_model import MODEL_KEY, tiny_build, tiny_bundle

FLEET, FAMILY, TASK = "demo", "tiny", "tiny-task"
ISSUED_AT = 1_790_000_000
RIGHT = np.array([1, 0, 0, 1, 0, 0], np.float32)  # The larger input wins.
SURER = np.array([9, 0, 0, 9, 0, 0], np.float32)  # The same, with larger scores.
WRONG = np.array([0, 1, 1, 0, 0, 0], np.float32)  # The smaller input wins.
OVERFLOWING = np.array([3e38, 3e38, 3e38, 3e38, 0, 0], np.float32)  # Finite parameters, infinite scores.


@dataclasses.dataclass(frozen=True)
class TinyRelease:
    """A release and every blob that a device may fetch for it."""

    manifest: ReleaseManifest
    signed: SignedManifest
    fetch: tuple[Artifact, ...]
    blobs: dict[bytes, bytes]

    @property
    def offer(self) -> ReleaseOffer:
        """The release as it is offered to a device that holds nothing."""
        return ReleaseOffer(self.manifest.number, self.signed, self.fetch)


def reference(data: bytes) -> BlobReference:
    """Name bytes by content."""
    return BlobReference(hashlib.sha256(data).digest(), len(data))


def tiny_release(
    number: int,
    vector: NDArray[np.float32],
    *,
    version: int | None = None,
    key: SigningKey = MODEL_KEY,
    bundle: bytes | None = None,
    **changes: object,
) -> TinyRelease:
    """Sign a release of ``vector``; ``changes`` are fields of the manifest."""
    version = number if version is None else version
    bundle = tiny_build().data if bundle is None else bundle
    checkpoint = encode_checkpoint(tiny_bundle().description.layout, TASK, version, vector)
    keyframe = encode_keyframe(Keyframe(version, vector))
    manifest = ReleaseManifest(
        format=1,
        fleet=FLEET,
        family=FAMILY,
        number=number,
        task=TASK,
        version=version,
        bundle=reference(bundle),
        checkpoint=reference(checkpoint),
        issued_at=ISSUED_AT,
        expires_at=ISSUED_AT + 86_400,
        accuracy_drop_max=0.05,
    )
    manifest = msgspec.structs.replace(manifest, **changes)
    blobs: tuple[tuple[ArtifactKind, bytes], ...] = (("bundle", bundle), ("keyframe", keyframe))
    return TinyRelease(
        manifest,
        sign_manifest(key, manifest),
        tuple(Artifact(kind, reference(data)) for kind, data in blobs),
        {reference(data).digest: data for _, data in blobs},
    )
