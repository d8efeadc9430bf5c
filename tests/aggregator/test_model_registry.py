"""The model registry: versions by every path the same bits, a restart that changes nothing, the least to fetch."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cloud_aggregator.adapters.model_registry import ModelRegistry, TaskModel, read_checkpoint
from cloud_aggregator.adapters.schema import CheckpointRow, TaskRow
from edge_agent.held_model import HeldModel
from federated_core.adapters.blob_store import BlobStore
from federated_core.errors import AdapterError
from federated_core.learning.algorithms import federated_averaging
from federated_core.learning.parameters import checkpoint_digest, encode_checkpoint, flatten
from federated_core.learning.server_optimizers import momentum
from federated_core.protocol.messages import Artifact, CheckpointReference, HeldCheckpoint
from tests.simulation.tiny_model import tiny_build, tiny_bundle, tiny_onnx

LAYOUT = tiny_bundle().description.layout
INITIAL = flatten(LAYOUT, tiny_build().tensors)
ALGORITHM = federated_averaging(server_optimizer=momentum(learning_rate=1.0, decay=0.5))


class Desk:
    """Keeps what a task desk keeps: the blobs, the task's row and one row a version."""

    def __init__(self, folder: Path) -> None:
        self.blobs = BlobStore(folder / "blobs")
        self.registry = ModelRegistry(self.blobs)
        checkpoint = encode_checkpoint(LAYOUT, "tiny", 0, INITIAL)
        signature = bytes(64)
        self.model = self.registry.begin("tiny", tiny_build().data, signature, checkpoint, tiny_onnx(), ALGORITHM)
        self.task = TaskRow(
            name="tiny",
            settings=b"",
            bundle=self.model.bundle.digest,
            bundle_signature=signature,
            model=self.model.original.digest,
            state=b"",
            created_at=0.0,
        )
        self.rows: list[CheckpointRow] = [self.model.newest_row(0.0)]

    def advance(self, seed: int) -> CheckpointReference:
        aggregate: NDArray[np.float64] = np.random.default_rng(seed).standard_normal(LAYOUT.update_size) * 0.1
        self.model.advance(aggregate)
        self.rows.append(self.model.newest_row(0.0))
        return self.model.reference

    def flush(self) -> CheckpointReference:
        self.model.flush()
        self.rows.append(self.model.newest_row(0.0))
        return self.model.reference

    def restored(self) -> TaskModel:
        """Take the model up as a restarted aggregator does, from disk alone."""
        return ModelRegistry(self.blobs).restore(self.task, self.rows, ALGORITHM)

    def read(self, version: int) -> bytes:
        vector = read_checkpoint(LAYOUT, self.rows, version, self.blobs.get)
        return encode_checkpoint(LAYOUT, "tiny", version, vector)


class Device:
    """Fetches what it is told to, and says what it holds."""

    def __init__(self, folder: Path, desk: Desk) -> None:
        folder.mkdir()
        self.desk = desk
        self.model = HeldModel(folder, LAYOUT)
        self.held: HeldCheckpoint | None = None

    def follow(self) -> list[str]:
        """Move to the newest version; return the kinds of what was fetched. Arriving elsewhere would raise."""
        fetch, base = self.desk.model.artifacts_for(self.held), self.desk.model.reference
        paths = [
            (artifact.kind, str(self.desk.blobs.path(artifact.blob.digest.hex())))
            for artifact in fetch
            if artifact.kind != "bundle"
        ]
        vector = self.model.move_to("tiny", base, paths)
        assert encode_checkpoint(LAYOUT, "tiny", base.version, vector) == self.desk.read(base.version)
        self.held = HeldCheckpoint("tiny", self.desk.model.bundle.digest, base)
        return [artifact.kind for artifact in fetch]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_task_begins_with_its_initial_checkpoint_as_version_0(desk: Desk) -> None:
    digest = checkpoint_digest(encode_checkpoint(LAYOUT, "tiny", 0, INITIAL))
    assert desk.model.reference == CheckpointReference(0, digest)
    assert desk.read(0) == encode_checkpoint(LAYOUT, "tiny", 0, INITIAL)


def test_an_aggregate_moves_every_parameter_to_within_half_a_step(desk: Desk) -> None:
    desk.model.advance(np.array([0.5, 0.5, -0.5, -0.5, 0.5, -0.5]))
    desk.rows.append(desk.model.newest_row(0.0))
    # The change's rms is 0.5 and the step of the lattice four times that: 0.5 lies next to 0, within half of 2.
    published = read_checkpoint(LAYOUT, desk.rows, 1, desk.blobs.get)
    assert published.tolist() == [0.0] * 6
    desk.flush()  # The end of training publishes to the last bit what was held back.
    exact = read_checkpoint(LAYOUT, desk.rows, 2, desk.blobs.get)
    assert exact.tolist() == [0.5, 0.5, -0.5, -0.5, 0.5, -0.5]


def test_a_device_that_follows_has_the_aggregator_s_bits_by_every_path(desk: Desk, tmp_path: Path) -> None:
    step_by_step, leaping = Device(tmp_path / "one", desk), Device(tmp_path / "two", desk)
    assert step_by_step.follow() == ["bundle", "keyframe"]
    for seed in range(6):
        desk.advance(seed)
        assert step_by_step.follow() == ["delta"]
        if seed == 1:
            assert leaping.follow() == ["bundle", "keyframe", "delta"]
    assert leaping.follow() == ["delta"]  # One, composed of four.
    assert leaping.held == step_by_step.held


def test_a_device_that_is_up_to_date_fetches_nothing(desk: Desk, tmp_path: Path) -> None:
    device = Device(tmp_path / "one", desk)
    desk.advance(1)
    device.follow()
    assert device.follow() == []


def test_after_a_flush_everyone_needs_the_new_keyframe(desk: Desk, tmp_path: Path) -> None:
    device, behind = Device(tmp_path / "one", desk), Device(tmp_path / "two", desk)
    behind.follow()
    desk.advance(1)
    device.follow()
    desk.flush()
    assert device.follow() == behind.follow() == ["keyframe"]
    desk.advance(2)
    assert device.follow() == ["delta"]


@pytest.mark.parametrize(
    "checkpoint",
    [CheckpointReference(1, bytes(32)), CheckpointReference(99, bytes(32))],
    ids=["a version of another history", "a version that does not exist"],
)
def test_a_checkpoint_that_was_never_published_is_replaced_by_a_keyframe(
    desk: Desk, checkpoint: CheckpointReference
) -> None:
    for seed in range(3):
        desk.advance(seed)
    held = HeldCheckpoint("tiny", desk.model.bundle.digest, checkpoint)
    assert [artifact.kind for artifact in desk.model.artifacts_for(held)] == ["keyframe", "delta"]


def test_a_device_with_another_bundle_begins_anew(desk: Desk) -> None:
    held = HeldCheckpoint("tiny", bytes(32), desk.model.reference)
    assert [artifact.kind for artifact in desk.model.artifacts_for(held)] == ["bundle", "keyframe"]


def test_a_restart_changes_not_a_bit(desk: Desk, tmp_path: Path) -> None:
    held = {}
    for seed in range(4):
        held[seed] = HeldCheckpoint("tiny", desk.model.bundle.digest, desk.advance(seed))
    restored = desk.restored()
    assert restored.reference == desk.model.reference

    def fetched(model: TaskModel) -> list[tuple[Artifact, ...]]:
        return [model.artifacts_for(one) for one in (None, *held.values())]

    assert fetched(restored) == fetched(desk.model)
    aggregate = np.full(LAYOUT.update_size, 0.05)
    for model in (restored, desk.model):  # The optimizer's momentum goes on as well.
        model.advance(aggregate)
        model.advance(aggregate)
    assert restored.reference == desk.model.reference
    assert fetched(restored) == fetched(desk.model)
    restored.flush()
    desk.model.flush()
    assert restored.reference == desk.model.reference


def test_a_restart_after_a_flush_goes_on_in_the_new_epoch(desk: Desk, tmp_path: Path) -> None:
    desk.advance(1)
    desk.flush()
    desk.advance(2)
    device = Device(tmp_path / "one", desk)
    device.follow()
    restored = desk.restored()
    assert restored.reference == desk.model.reference
    assert restored.artifacts_for(device.held) == ()


def test_every_published_version_can_be_read_back(desk: Desk) -> None:
    references = [desk.model.reference, *(desk.advance(seed) for seed in range(3)), desk.flush(), desk.advance(9)]
    for reference in references:
        assert checkpoint_digest(desk.read(reference.version)) == reference.digest
    with pytest.raises(AdapterError, match="no version 77; known are 0, 1, 2, 3, 4, 5"):
        desk.read(77)


def test_devices_may_fetch_what_is_published_and_nothing_else(desk: Desk) -> None:
    desk.advance(1)
    sealed = desk.registry.put(b"a sealed update")
    public = [artifact.blob.digest for artifact in desk.model.artifacts_for(None)]
    secret = [sealed.digest, desk.model.original.digest, desk.rows[-1].state, bytes(32)]
    restarted = ModelRegistry(desk.blobs)
    restarted.restore(desk.task, desk.rows, ALGORITHM)
    for registry in (desk.registry, restarted):
        assert [registry.is_public(digest) for digest in public] == [True, True, True]
        assert [registry.purpose_of(digest) for digest in public] == ["bundle", "keyframe", "down"]
        assert [registry.is_public(digest) for digest in secret] == [False] * 4


def test_what_nothing_needs_any_more_is_dropped(desk: Desk) -> None:
    sealed = desk.registry.put(b"a sealed update")
    assert desk.registry.get(sealed.digest) == b"a sealed update"
    desk.registry.drop(sealed.digest)
    desk.registry.drop(sealed.digest)
    with pytest.raises(AdapterError, match="no blob"):
        desk.registry.get(sealed.digest)
