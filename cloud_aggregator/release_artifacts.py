"""What a device fetches for a release, by what it holds: a delta where the lattice leads there, else a keyframe."""

from collections.abc import Sequence

from cloud_aggregator.adapters.model_registry import ModelRegistry, read_delta
from cloud_aggregator.adapters.schema import CheckpointRow
from federated_core.errors import AdapterError
from federated_core.learning.bundle import decode_bundle
from federated_core.learning.lattice import compose
from federated_core.learning.lattice_codec import encode_delta
from federated_core.protocol.messages import Artifact, BlobReference, HeldCheckpoint
from federated_core.release.manifest import ReleaseManifest


class ReleasedCheckpoint:
    """The published version that a release points at, and the versions from which deltas lead to it."""

    def __init__(self, registry: ModelRegistry, manifest: ReleaseManifest, rows: Sequence[CheckpointRow]) -> None:
        """Find the manifest's version among a task's checkpoints; AdapterError if it is not there."""
        wanted = next((row for row in rows if row.version == manifest.version), None)
        if wanted is None or wanted.digest != manifest.checkpoint.digest:
            raise AdapterError(
                f"task {manifest.task!r}: version {manifest.version} is not the checkpoint that was signed"
            )
        self._registry = registry
        self._manifest = manifest
        self._wanted = wanted
        self._epoch = [row for row in rows if row.keyframe == wanted.keyframe and row.version <= wanted.version]
        self._layout = decode_bundle(registry.get(manifest.bundle.digest)).description.layout
        self._keyframe = registry.put(registry.get(wanted.keyframe), "keyframe")
        self._deltas: dict[int, BlobReference] = {}

    def artifacts_for(self, held: HeldCheckpoint | None) -> tuple[Artifact, ...]:
        """Return what a device that holds ``held`` must fetch, in the order of use."""
        wanted = [Artifact("bundle", self._manifest.bundle)]
        from_version = self._epoch[0].version
        if held is not None and held.bundle == self._manifest.bundle.digest and self._leads_here(held):
            from_version = held.checkpoint.version
        else:
            wanted.append(Artifact("keyframe", self._keyframe))
        if from_version != self._wanted.version:
            wanted.append(Artifact("delta", self._delta_from(from_version)))
        return tuple(wanted)

    def _leads_here(self, held: HeldCheckpoint) -> bool:
        known = {row.version: row.digest for row in self._epoch}
        return known.get(held.checkpoint.version) == held.checkpoint.digest

    def _delta_from(self, version: int) -> BlobReference:
        if version not in self._deltas:
            blobs = [self._registry.get(row.delta) for row in self._epoch if row.version > version and row.delta]
            delta = compose([read_delta(blob, self._layout) for blob in blobs])
            self._deltas[version] = self._registry.put(encode_delta(delta), "down")
        return self._deltas[version]
