"""The real trainer in a real child: its work, its failures and its ends, as the daemon hears of them."""

import os
import queue
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_agent import work
from edge_agent.adapters.example_store import ExampleStore
from edge_agent.adapters.trainer_process import TrainerExited, TrainerNews, TrainerSaid, open_trainer
from edge_agent.config import StoreSettings
from federated_core.errors import AdapterError
from federated_core.learning.lattice import open_lattice
from federated_core.learning.lattice_codec import encode_keyframe
from federated_core.learning.parameters import checkpoint_digest, encode_checkpoint, flatten
from federated_core.learning.update_codec import decode_update
from federated_core.protocol.messages import CheckpointReference, Plan
from tests.simulation.tiny_model import tiny_build, tiny_bundle

pytestmark = pytest.mark.process

DEADLINE_S = 60.0
# One step over all examples; a step of one times the delta's rms makes the quantization below exact.
ONE_STEP = Plan("train", epochs=1, batch_size=100, learning_rate=1.0, step_ratio=1.0)


class Daemon:
    """What the trainer's news come to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.news: queue.Queue[TrainerNews] = queue.Queue()
        self.trainer = open_trainer(self.news.put)
        layout = tiny_bundle().description.layout
        vector = flatten(layout, tiny_build().tensors)
        (folder / "bundle").write_bytes(tiny_build().data)
        (folder / "keyframe").write_bytes(encode_keyframe(open_lattice(vector, 0).keyframe))
        base = CheckpointReference(0, checkpoint_digest(encode_checkpoint(layout, "tiny", 0, vector)))
        self.piece = work.Work(
            work_id=1,
            task="tiny",
            round=1,
            plan=ONE_STEP,
            base=base,
            bundle_path=str(folder / "bundle"),
            model_folder=str(folder),
            fetched=(("keyframe", str(folder / "keyframe")),),
            store_path=str(folder / "examples.db"),
            noise_key=bytes(16),
            order_key=bytes(16),
            update_path=str(folder / "update"),
        )

    def store_examples(self) -> None:
        """Store ten examples to train on and ten to hold out, all x = (1, 1) and of class 0."""
        blocks = StoreSettings(block_s=10.0, holdout_every=2, gap_s=0.0)
        x, label = np.ones((20, 2), np.float32), np.zeros(20, np.int64)
        ExampleStore(self.folder / "examples.db").add(x, label, np.arange(20.0), blocks)

    def hear(self) -> TrainerNews:
        return self.news.get(timeout=DEADLINE_S)

    def hear_outcome(self) -> work.Outcome:
        news = self.hear()
        assert isinstance(news, TrainerSaid)
        return news.outcome

    def hear_exit(self) -> TrainerExited:
        while not isinstance(news := self.hear(), TrainerExited):
            pass
        return news


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.trainer.kill()


def test_one_piece_of_work_ends_in_an_update_that_can_be_redone_by_hand(daemon: Daemon) -> None:
    daemon.store_examples()
    daemon.trainer.start(daemon.piece)
    assert daemon.hear_outcome() == work.Holding(1, daemon.piece.base)
    done = daemon.hear_outcome()
    assert isinstance(done, work.Done)
    # With all parameters zero both classes have the probability 1/2, and a tie goes to class 0, which is right.
    assert (done.work_id, done.example_count) == (1, 10)
    assert (done.metrics.example_count, done.metrics.correct_count) == (10, 10)
    assert done.metrics.loss_sum == pytest.approx(10 * np.log(2))
    assert done.training_loss == pytest.approx(np.log(2))
    layout = tiny_bundle().description.layout
    update = decode_update(
        Path(daemon.piece.update_path).read_bytes(),
        parameter_count=layout.update_size,
        layout_digest=layout.digest,
        base_digest=daemon.piece.base.digest,
        size_max=1000,
        step_per_rms=1.0,
    )
    # d loss / d scores = (1/2 - 1, 1/2 - 0), times x = (1, 1) for the weight; the rate is 1.
    assert update.step == pytest.approx(0.5)
    assert update.symbols.tolist() == [1, 1, -1, -1, 1, -1]


def test_the_same_work_again_gives_the_same_bytes(daemon: Daemon) -> None:
    daemon.store_examples()
    plan = msgspec.structs.replace(ONE_STEP, batch_size=3, epochs=3, step_ratio=4.0)
    updates = []
    for work_id in (1, 2):
        daemon.trainer.start(msgspec.structs.replace(daemon.piece, work_id=work_id, plan=plan))
        assert isinstance(daemon.hear_outcome(), work.Holding)
        assert isinstance(daemon.hear_outcome(), work.Done)
        updates.append(Path(daemon.piece.update_path).read_bytes())
        daemon.trainer.kill()
        daemon.hear_exit()
    assert updates[0] == updates[1]


def test_an_evaluation_writes_no_update(daemon: Daemon) -> None:
    daemon.store_examples()
    daemon.trainer.start(msgspec.structs.replace(daemon.piece, plan=Plan("evaluate")))
    daemon.hear_outcome()
    done = daemon.hear_outcome()
    assert isinstance(done, work.Done)
    assert (done.metrics.example_count, done.training_loss) == (10, None)
    assert not Path(daemon.piece.update_path).exists()


def test_a_failure_is_said_and_the_next_piece_is_done(daemon: Daemon) -> None:
    daemon.trainer.start(daemon.piece)
    daemon.hear_outcome()
    assert daemon.hear_outcome() == work.Failed(
        1, "too-few-examples", "NotEnoughExamplesError: 0 training examples, the plan asks for 1"
    )
    (daemon.folder / "nonsense").write_bytes(b"nonsense")
    daemon.trainer.start(msgspec.structs.replace(daemon.piece, work_id=2, bundle_path=str(daemon.folder / "nonsense")))
    failed = daemon.hear_outcome()
    assert isinstance(failed, work.Failed)
    assert (failed.work_id, failed.why) == (2, "untrusted")
    daemon.trainer.start(msgspec.structs.replace(daemon.piece, work_id=3, bundle_path=str(daemon.folder / "absent")))
    failed = daemon.hear_outcome()
    assert isinstance(failed, work.Failed)
    assert (failed.work_id, failed.why) == (3, "training-failed")
    daemon.store_examples()
    daemon.trainer.start(msgspec.structs.replace(daemon.piece, work_id=4))
    assert isinstance(daemon.hear_outcome(), work.Holding)
    assert isinstance(daemon.hear_outcome(), work.Done)


def test_a_killed_child_is_reported_and_replaced(daemon: Daemon) -> None:
    daemon.store_examples()
    daemon.trainer.prepare()
    pid = daemon.trainer.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert daemon.hear_exit() == TrainerExited(pid, -signal.SIGKILL)
    daemon.trainer.forget(pid)
    assert daemon.trainer.pid is None
    daemon.trainer.start(daemon.piece)
    assert daemon.trainer.pid not in {None, pid}
    assert isinstance(daemon.hear_outcome(), work.Holding)


def test_work_for_a_child_that_died_unheard_goes_to_a_fresh_one(daemon: Daemon) -> None:
    daemon.store_examples()
    daemon.trainer.prepare()
    pid = daemon.trainer.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    daemon.hear_exit()
    daemon.trainer.start(daemon.piece)  # Nobody told it by `forget`.
    assert isinstance(daemon.hear_outcome(), work.Holding)


def test_a_child_that_is_asked_to_stop_ends_in_the_middle_of_its_work(daemon: Daemon) -> None:
    daemon.store_examples()
    endless = msgspec.structs.replace(ONE_STEP, epochs=1000, batch_size=1)
    daemon.trainer.start(msgspec.structs.replace(daemon.piece, plan=endless))
    assert isinstance(daemon.hear_outcome(), work.Holding)
    pid = daemon.trainer.pid
    daemon.trainer.ask_to_stop()
    assert daemon.hear_exit() == TrainerExited(pid or 0, -signal.SIGTERM)
    assert not Path(daemon.piece.update_path).exists()


def test_a_child_is_polite_before_it_loads_anything(daemon: Daemon) -> None:
    daemon.trainer.prepare()  # Its imports alone would otherwise look like somebody at work, and end the round.
    assert daemon.trainer.pid is not None
    assert os.getpriority(os.PRIO_PROCESS, daemon.trainer.pid) == 19


def test_a_program_that_is_not_there_is_the_world_s_fault(daemon: Daemon) -> None:
    with pytest.raises(AdapterError, match="trainer: cannot start /nowhere/python"):
        open_trainer(daemon.news.put, ("/nowhere/python",)).prepare()


def test_a_program_that_speaks_nonsense_is_ended(daemon: Daemon) -> None:
    trainer = open_trainer(daemon.news.put, ("sh", "-c", "printf '\\377\\377\\377\\377'; exec cat"))
    trainer.prepare()
    assert daemon.hear_exit() == TrainerExited(trainer.pid or 0, -signal.SIGKILL)
    trainer.kill()
