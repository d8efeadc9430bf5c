"""The models of all tasks: bundles, keyframes and deltas as blobs, and the state from which training goes on.

What is fetched by devices is public by digest; sealed updates and states are not.
"""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from cloud_aggregator.adapters.schema import CheckpointRow, TaskRow
from cloud_aggregator.traffic import Purpose
from federated_core.adapters.blob_store import BlobStore
from federated_core.errors import AdapterError
from federated_core.learning.algorithms import AlgorithmState, FederatedAlgorithm
from federated_core.learning.bundle import decode_bundle
from federated_core.learning.lattice import (
    LatticeDelta,
    LatticePublisher,
    apply_delta,
    compose,
    open_lattice,
    publish,
    start_of,
    vector_at,
)
from federated_core.learning.lattice_codec import (
    decode_delta,
    decode_keyframe,
    decode_position,
    encode_delta,
    encode_keyframe,
    encode_position,
)
from federated_core.learning.parameters import (
    Layout,
    Vector,
    checkpoint_digest,
    decode_checkpoint,
    encode_checkpoint,
    from_update_part,
)
from federated_core.protocol.messages import Artifact, BlobReference, CheckpointReference, HeldCheckpoint

_PURPOSES: dict[bytes, Purpose] = {
    b"FWLK": "keyframe",
    b"FWLD": "down",
}  # By the first bytes of `lattice_codec`'s blobs.

ReadBlob = Callable[[str], bytes]


class SavedState(msgspec.Struct, frozen=True):
    """What `restore` needs beyond the keyframe: true parameters and optimizer state as little-endian float32."""

    parameters: bytes
    position: bytes
    coarse_round_count: int
    optimizer_state: tuple[bytes, ...]


class ModelRegistry:
    """Blobs of all tasks, by what they are for."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._purposes: dict[bytes, Purpose] = {}

    def begin(
        self,
        task: str,
        bundle: bytes,
        signature: bytes,
        checkpoint: bytes,
        original: bytes,
        algorithm: FederatedAlgorithm,
    ) -> "TaskModel":
        """Take a model in: its initial checkpoint becomes the keyframe of version 0."""
        layout = decode_bundle(bundle).description.layout
        vector = decode_checkpoint(checkpoint, layout).vector
        state = algorithm.init(vector)
        model = TaskModel(
            self,
            task,
            layout,
            self.put(bundle, "bundle"),
            signature,
            self.put(original),
            algorithm,
            state,
            open_lattice(vector, 0),
        )
        model.record_keyframe()
        return model

    def restore(self, task: TaskRow, rows: Sequence[CheckpointRow], algorithm: FederatedAlgorithm) -> "TaskModel":
        """Take a model up where its newest checkpoint left it."""
        bundle = self._blobs.get(task.bundle.hex())
        layout = decode_bundle(bundle).description.layout
        newest = rows[-1]
        saved = msgspec.msgpack.decode(self._blobs.get(newest.state.hex()), type=SavedState)
        keyframe_bytes = self._blobs.get(newest.keyframe.hex())
        publisher = LatticePublisher(
            decode_keyframe(keyframe_bytes, parameter_count=layout.size, size_max=len(keyframe_bytes)),
            decode_position(saved.position, parameter_count=layout.size, size_max=len(saved.position)),
            _floats(saved.parameters),
            saved.coarse_round_count,
        )
        optimizer_state = tuple(_floats(part) for part in saved.optimizer_state)
        model = TaskModel(
            self,
            task.name,
            layout,
            self.put(bundle, "bundle"),
            task.bundle_signature,
            BlobReference(task.model, len(self._blobs.get(task.model.hex()))),
            algorithm,
            AlgorithmState(publisher.parameters, optimizer_state),
            publisher,
        )
        self.put(keyframe_bytes, "keyframe")
        model.remember(rows)
        return model

    def put(self, data: bytes, purpose: Purpose | None = None) -> BlobReference:
        """Store a blob; one with a purpose may be fetched by devices."""
        digest = bytes.fromhex(self._blobs.put(data))
        if purpose is not None:
            self._purposes[digest] = purpose
        return BlobReference(digest, len(data))

    def get(self, digest: bytes) -> bytes:
        """Return a blob."""
        return self._blobs.get(digest.hex())

    def drop(self, digest: bytes) -> None:
        """Delete a blob that nothing needs any more: a summed update, a state that was followed by another."""
        self._blobs.delete(digest.hex())

    def is_public(self, digest: bytes) -> bool:
        """Whether devices may fetch this blob."""
        if digest not in self._purposes:
            self._purposes.update(self._recognize(digest))
        return digest in self._purposes

    def purpose_of(self, digest: bytes) -> Purpose:
        """Under which heading its bytes are counted."""
        return self._purposes.get(digest, "down")

    def _recognize(self, digest: bytes) -> dict[bytes, Purpose]:
        """Know a keyframe or delta again that was made before the aggregator was restarted."""
        try:
            with self._blobs.path(digest.hex()).open("rb") as file:
                magic = file.read(4)
        except OSError:
            return {}
        return {digest: _PURPOSES[magic]} if magic in _PURPOSES else {}


class TaskModel:
    """One task's parameters: the true ones, the published ones, and what devices fetch of them."""

    def __init__(
        self,
        registry: ModelRegistry,
        task: str,
        layout: Layout,
        bundle: BlobReference,
        bundle_signature: bytes,
        original: BlobReference,
        algorithm: FederatedAlgorithm,
        state: AlgorithmState,
        publisher: LatticePublisher,
    ) -> None:
        self.layout = layout
        self.bundle = bundle
        self.bundle_signature = bundle_signature
        self.original = original
        self._registry = registry
        self._task = task
        self._algorithm = algorithm
        self._state = state
        self._publisher = publisher
        self._digests: dict[int, bytes] = {}
        self._deltas: dict[int, bytes] = {}  # To a version, from the one before it, within the newest epoch.
        self._keyframe: BlobReference | None = None
        self._saved: BlobReference | None = None
        self._superseded: list[bytes] = []
        self._composed: dict[tuple[int, int], BlobReference] = {}

    @property
    def reference(self) -> CheckpointReference:
        """The newest published version."""
        version = self._publisher.position.version
        return CheckpointReference(version, self._digests[version])

    @property
    def is_exact(self) -> bool:
        """Whether the published parameters are the true ones to the last bit: right after a keyframe."""
        return self._publisher.position.version == self._publisher.keyframe.version

    def artifacts_for(self, held: HeldCheckpoint | None) -> tuple[Artifact, ...]:
        """Return what a device that holds ``held`` must fetch to have the newest version, in the order of use."""
        wanted: list[Artifact] = []
        if held is None or held.bundle != self.bundle.digest:
            wanted.append(Artifact("bundle", self.bundle))
            held = None
        keyframe_version, newest = self._publisher.keyframe.version, self.reference
        from_version = keyframe_version
        if held is not None and self._is_on_lattice(held.checkpoint):
            from_version = held.checkpoint.version
        elif self._keyframe is not None:
            wanted.append(Artifact("keyframe", self._keyframe))
        if from_version != newest.version:
            wanted.append(Artifact("delta", self._delta_between(from_version, newest.version)))
        return tuple(wanted)

    def advance(self, aggregate: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
        """Apply a round's aggregate (update part, float64) and publish the next version."""
        state = self._algorithm.next(self._state, from_update_part(self.layout, aggregate))
        publisher, delta = publish(self._publisher, state.parameters)
        blob = self._registry.put(encode_delta(delta), "down")
        self._record_version(state, publisher)
        self._deltas[delta.to_version] = blob.digest
        self._composed[delta.from_version, delta.to_version] = blob

    def flush(self) -> None:
        """Publish the true parameters to the last bit, as the keyframe of a new epoch."""
        self._record_keyframe(open_lattice(self._state.parameters, self._publisher.position.version + 1))
        self._deltas.clear()
        self._composed.clear()

    def record_keyframe(self) -> None:
        """Store the keyframe of the epoch that just began."""
        self._record_keyframe(self._publisher)

    def _record_keyframe(self, publisher: LatticePublisher) -> None:
        keyframe = self._registry.put(encode_keyframe(publisher.keyframe), "keyframe")
        self._record_version(self._state, publisher)
        self._keyframe = keyframe

    def remember(self, rows: Sequence[CheckpointRow]) -> None:
        """Know again the versions of the newest epoch."""
        newest = rows[-1]
        self._keyframe = BlobReference(newest.keyframe, len(self._registry.get(newest.keyframe)))
        self._saved = BlobReference(newest.state, 1)
        for row in rows:
            if row.keyframe == newest.keyframe:
                self._digests[row.version] = row.digest
                if row.delta is not None:
                    self._deltas[row.version] = row.delta

    def newest_row(self, now_s: float) -> CheckpointRow:
        """Return the newest version as it is kept in the database."""
        assert self._keyframe is not None
        assert self._saved is not None
        reference = self.reference
        return CheckpointRow(
            task=self._task,
            version=reference.version,
            digest=reference.digest,
            keyframe=self._keyframe.digest,
            delta=self._deltas.get(reference.version),
            state=self._saved.digest,
            created_at=now_s,
        )

    def _record_version(self, state: AlgorithmState, publisher: LatticePublisher) -> None:
        """Store a version, then be at it: on a full disk nothing has changed, and it can be tried again."""
        vector = vector_at(publisher.keyframe, publisher.position)
        version = publisher.position.version
        saved = SavedState(
            state.parameters.astype("<f4").tobytes(),
            encode_position(publisher.position),
            publisher.coarse_round_count,
            tuple(part.astype("<f4").tobytes() for part in state.optimizer_state),
        )
        reference = self._registry.put(msgspec.msgpack.encode(saved))
        if self._saved is not None:
            self._superseded.append(self._saved.digest)
        self._saved = reference
        self._state, self._publisher = state, publisher
        self._digests[version] = checkpoint_digest(encode_checkpoint(self.layout, self._task, version, vector))

    def drop_superseded(self) -> None:
        """Delete the states from before the newest version; to be called once that is in the database."""
        superseded, self._superseded = self._superseded, []
        for digest in superseded:
            if self._saved is None or digest != self._saved.digest:
                self._registry.drop(digest)

    def _is_on_lattice(self, checkpoint: CheckpointReference) -> bool:
        return (
            checkpoint.version >= self._publisher.keyframe.version
            and self._digests.get(checkpoint.version) == checkpoint.digest
        )

    def _delta_between(self, from_version: int, to_version: int) -> BlobReference:
        known = self._composed.get((from_version, to_version))
        if known is None:
            versions = range(from_version + 1, to_version + 1)
            deltas = [read_delta(self._registry.get(self._deltas[version]), self.layout) for version in versions]
            known = self._registry.put(encode_delta(compose(deltas)), "down")
            self._composed[from_version, to_version] = known
        return known


def read_delta(data: bytes, layout: Layout) -> LatticeDelta:
    """Return a stored delta."""
    return decode_delta(data, parameter_count=layout.size, size_max=len(data))


def read_checkpoint(layout: Layout, rows: Sequence[CheckpointRow], version: int, read: ReadBlob) -> Vector:
    """Rebuild the published parameters of ``version`` from keyframe and deltas; AdapterError if it is unknown."""
    wanted = next((row for row in rows if row.version == version), None)
    if wanted is None:
        raise AdapterError(f"no version {version}; known are {', '.join(str(row.version) for row in rows) or 'none'}")
    keyframe_bytes = read(wanted.keyframe.hex())
    keyframe = decode_keyframe(keyframe_bytes, parameter_count=layout.size, size_max=len(keyframe_bytes))
    position = start_of(keyframe)
    steps = [row.delta for row in rows if row.keyframe == wanted.keyframe and row.version <= version and row.delta]
    if not steps:
        return vector_at(keyframe, position)
    delta = compose([read_delta(read(digest.hex()), layout) for digest in steps])
    return apply_delta(keyframe, position, delta)[1]


def _floats(data: bytes) -> Vector:
    return np.frombuffer(data, "<f4").astype(np.float32)
