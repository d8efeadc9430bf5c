"""What a device holds of a model: it moves on from whatever a crash left, and arrives bit for bit or not at all."""

from pathlib import Path

import numpy as np
import pytest

from edge_agent.held_model import HeldModel
from federated_core.errors import RemoteProtocolError
from federated_core.learning.lattice import LatticeDelta, LatticePublisher, compose, open_lattice, publish, vector_at
from federated_core.learning.lattice_codec import encode_delta, encode_keyframe
from federated_core.learning.parameters import (
    Layout,
    ParameterSpec,
    Vector,
    checkpoint_digest,
    encode_checkpoint,
)
from federated_core.protocol.messages import CheckpointReference

LAYOUT = Layout((ParameterSpec("weight", (10, 4), "trainable"), ParameterSpec("bias", (4,), "trainable")))
Fetched = list[tuple[str, str]]


class Aggregator:
    """Publishes versions 0, 1, 2 ... and writes what a device would download."""

    def __init__(self, folder: Path, version: int = 0, seed: int = 5) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(seed)
        self.publishers = {version: open_lattice(self.draw(1.0), version)}
        self.deltas: dict[int, LatticeDelta] = {}  # By the version that they lead to.

    def draw(self, scale: float) -> Vector:
        return (self.rng.standard_normal(LAYOUT.size) * scale).astype(np.float32)

    @property
    def newest(self) -> LatticePublisher:
        return self.publishers[max(self.publishers)]

    def advance(self, count: int = 1) -> None:
        for _ in range(count):
            publisher, delta = publish(self.newest, self.newest.parameters + self.draw(0.1))
            self.publishers[publisher.position.version] = publisher
            self.deltas[publisher.position.version] = delta

    def vector(self, version: int) -> Vector:
        publisher = self.publishers[version]
        return vector_at(publisher.keyframe, publisher.position)

    def reference(self, version: int) -> CheckpointReference:
        data = encode_checkpoint(LAYOUT, "task", version, self.vector(version))
        return CheckpointReference(version, checkpoint_digest(data))

    def keyframe(self) -> tuple[str, str]:
        return "keyframe", self.write("keyframe", encode_keyframe(self.newest.keyframe))

    def delta(self, from_version: int, to_version: int) -> tuple[str, str]:
        steps = [self.deltas[version] for version in range(from_version + 1, to_version + 1)]
        return "delta", self.write(f"delta-{from_version}-{to_version}", encode_delta(compose(steps)))

    def write(self, name: str, data: bytes) -> str:
        path = self.folder / name
        path.write_bytes(data)
        return str(path)


@pytest.fixture
def aggregator(tmp_path: Path) -> Aggregator:
    (tmp_path / "blobs").mkdir()
    return Aggregator(tmp_path / "blobs")


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


def move(folder: Path, aggregator: Aggregator, version: int, fetched: Fetched) -> None:
    """Move a device that has just been started to ``version``, and compare with the aggregator bit for bit."""
    vector = HeldModel(folder, LAYOUT).move_to("task", aggregator.reference(version), fetched)
    assert vector.tobytes() == aggregator.vector(version).tobytes()


def test_a_newcomer_arrives_by_a_keyframe_alone(model_folder: Path, aggregator: Aggregator) -> None:
    move(model_folder, aggregator, 0, [aggregator.keyframe()])


def test_a_newcomer_arrives_by_a_keyframe_and_one_delta(model_folder: Path, aggregator: Aggregator) -> None:
    aggregator.advance(7)
    move(model_folder, aggregator, 7, [aggregator.keyframe(), aggregator.delta(0, 7)])


def test_a_device_follows_step_by_step_or_catches_up_at_once(model_folder: Path, aggregator: Aggregator) -> None:
    aggregator.advance(5)
    move(model_folder, aggregator, 0, [aggregator.keyframe()])
    move(model_folder, aggregator, 1, [aggregator.delta(0, 1)])
    move(model_folder, aggregator, 1, [])
    move(model_folder, aggregator, 5, [aggregator.delta(1, 5)])


def test_doing_it_again_after_a_crash_gives_the_same(model_folder: Path, aggregator: Aggregator) -> None:
    aggregator.advance(3)
    newcomer = [aggregator.keyframe(), aggregator.delta(0, 2)]
    move(model_folder, aggregator, 2, newcomer)
    move(model_folder, aggregator, 2, newcomer)
    follower = [aggregator.delta(2, 3)]
    move(model_folder, aggregator, 3, follower)
    move(model_folder, aggregator, 3, follower)


def test_what_was_applied_may_be_deleted_before_it_is_done_again(model_folder: Path, aggregator: Aggregator) -> None:
    aggregator.advance(2)
    newcomer = [aggregator.keyframe(), aggregator.delta(0, 2)]
    move(model_folder, aggregator, 2, newcomer)
    for _, path in newcomer:
        Path(path).unlink()
    move(model_folder, aggregator, 2, newcomer)


def test_a_crash_between_keyframe_and_position_is_mended(model_folder: Path, aggregator: Aggregator) -> None:
    aggregator.advance(2)
    newcomer = [aggregator.keyframe(), aggregator.delta(0, 2)]
    move(model_folder, aggregator, 2, newcomer)
    (model_folder / "position").unlink()
    move(model_folder, aggregator, 2, newcomer)
    later = Aggregator(aggregator.folder, version=3, seed=6)  # A new epoch, of which only the keyframe was written.
    later.advance()
    (model_folder / "keyframe").write_bytes(encode_keyframe(later.newest.keyframe))
    move(model_folder, later, 4, [later.keyframe(), later.delta(3, 4)])


@pytest.mark.parametrize("name", ["keyframe", "position"])
@pytest.mark.parametrize("damage", [b"", b"nonsense", b"FWLK" + bytes(60)])
def test_a_damaged_file_is_mended_by_a_keyframe(
    model_folder: Path, aggregator: Aggregator, name: str, damage: bytes
) -> None:
    aggregator.advance(2)
    move(model_folder, aggregator, 1, [aggregator.keyframe(), aggregator.delta(0, 1)])
    (model_folder / name).write_bytes(damage)
    with pytest.raises(RemoteProtocolError, match="expected a keyframe to begin with"):
        move(model_folder, aggregator, 2, [aggregator.delta(1, 2)])
    move(model_folder, aggregator, 2, [aggregator.keyframe(), aggregator.delta(0, 2)])


def test_a_device_that_is_taken_for_a_newcomer_begins_anew(model_folder: Path, aggregator: Aggregator) -> None:
    aggregator.advance(4)
    move(model_folder, aggregator, 2, [aggregator.keyframe(), aggregator.delta(0, 2)])
    move(model_folder, aggregator, 4, [aggregator.keyframe(), aggregator.delta(0, 4)])  # Its journal was lost.


def test_a_new_epoch_begins_with_its_keyframe(model_folder: Path, aggregator: Aggregator) -> None:
    aggregator.advance(2)
    move(model_folder, aggregator, 2, [aggregator.keyframe(), aggregator.delta(0, 2)])
    later = Aggregator(aggregator.folder, version=3, seed=6)
    later.advance(1)
    move(model_folder, later, 4, [later.keyframe(), later.delta(3, 4)])


def test_another_checkpoint_than_the_one_promised_is_refused_and_not_kept(
    model_folder: Path, aggregator: Aggregator
) -> None:
    aggregator.advance(2)
    move(model_folder, aggregator, 0, [aggregator.keyframe()])
    model = HeldModel(model_folder, LAYOUT)
    with pytest.raises(RemoteProtocolError, match=r"expected version 2 with digest \w+, got version 1"):
        model.move_to("task", aggregator.reference(2), [aggregator.delta(0, 1)])
    with pytest.raises(RemoteProtocolError, match="checkpoint: expected version 1"):
        model.move_to("another-task", aggregator.reference(1), [aggregator.delta(0, 1)])
    move(model_folder, aggregator, 2, [aggregator.delta(0, 2)])


def test_a_delta_from_elsewhere_is_refused_and_changes_nothing(model_folder: Path, aggregator: Aggregator) -> None:
    aggregator.advance(3)
    move(model_folder, aggregator, 1, [aggregator.keyframe(), aggregator.delta(0, 1)])
    with pytest.raises(RemoteProtocolError, match="from_version"):
        move(model_folder, aggregator, 3, [aggregator.delta(2, 3)])
    move(model_folder, aggregator, 3, [aggregator.delta(1, 3)])


def test_without_a_keyframe_there_is_nothing_to_begin_with(model_folder: Path, aggregator: Aggregator) -> None:
    aggregator.advance()
    for fetched in ([], [aggregator.delta(0, 1)]):
        with pytest.raises(RemoteProtocolError, match="expected a keyframe to begin with, got none"):
            move(model_folder, aggregator, 1, fetched)
