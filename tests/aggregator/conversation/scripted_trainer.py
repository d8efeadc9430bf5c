"""A trainer that knows its answer beforehand; it follows the model as the real one does, and keeps virtual time."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent import work
from edge_agent.adapters.trainer_process import TrainerExited, TrainerNews, TrainerSaid
from edge_agent.held_model import HeldModel
from federated_core.errors import RemoteProtocolError
from federated_core.learning.bundle import decode_bundle
from federated_core.learning.update_codec import encode_update
from federated_core.protocol.messages import Metrics
from tests.aggregator.conversation.virtual_time import World

HOLDING_AFTER_S = 0.1


@dataclasses.dataclass(frozen=True)
class Script:
    """What a device makes of every assignment."""

    delta: NDArray[np.float32]
    example_count: int
    metrics: Metrics
    training_s: float = 1.0


class ScriptedTrainer:
    """Stands in for the trainer's process: it can be killed at any moment, and says nothing afterwards."""

    def __init__(self, world: World, script: Script, news: Callable[[TrainerNews], None]) -> None:
        self._world = world
        self._script = script
        self._news = news
        self._pid = 0
        self._is_running = False
        self.started: list[work.Work] = []
        self.say_holding_after_s = 0.0  # From the disk to the daemon.

    @property
    def pid(self) -> int | None:
        """The process, None if none runs."""
        return self._pid if self._is_running else None

    def prepare(self) -> None:
        """Start a process if none runs."""
        if not self._is_running:
            self._pid += 1
            self._is_running = True

    def start(self, piece: work.Work) -> None:
        """Follow the model, then say what the script says."""
        self.prepare()
        self.started.append(piece)
        pid = self._pid
        self._world.after(HOLDING_AFTER_S, lambda: self._hold(piece, pid))

    def ask_to_stop(self) -> None:
        """End soon."""
        pid = self._pid
        self._world.after(0.0, lambda: self._exit(pid))

    def kill(self) -> None:
        """End now."""
        self._is_running = False

    def forget(self, pid: int) -> None:
        """Know that a process has ended."""
        if pid == self._pid:
            self._is_running = False

    def _exit(self, pid: int) -> None:
        if self.pid == pid:
            self._news(TrainerExited(pid, -15))
            self._pid += 1  # Whatever it was doing is not done.

    def _hold(self, piece: work.Work, pid: int) -> None:
        if self.pid != pid:
            return
        layout = decode_bundle(Path(piece.bundle_path).read_bytes()).description.layout
        try:
            HeldModel(Path(piece.model_folder), layout).move_to(piece.task, piece.base, piece.fetched)
        except RemoteProtocolError as error:
            self._news(TrainerSaid(work.Failed(piece.work_id, "untrusted", str(error))))
            return
        holding = TrainerSaid(work.Holding(piece.work_id, piece.base))
        self._world.after(self.say_holding_after_s, lambda: self._news(holding))
        self._world.after(self.say_holding_after_s + self._script.training_s, lambda: self._conclude(piece, pid))

    def _conclude(self, piece: work.Work, pid: int) -> None:
        if self.pid != pid:
            return
        loss = None
        if piece.plan.kind == "train":
            layout = decode_bundle(Path(piece.bundle_path).read_bytes()).description.layout
            blob = encode_update(
                self._script.delta,
                layout_digest=layout.digest,
                base_digest=piece.base.digest,
                noise_key=piece.noise_key,
                step_per_rms=piece.plan.step_ratio,
            )
            Path(piece.update_path).write_bytes(blob)
            loss = 0.5
        script = self._script
        done = work.Done(piece.work_id, script.example_count, script.metrics, loss, script.training_s)
        self._news(TrainerSaid(done))


class NoTrial:
    """Stands in for the trial of a release where none is ever offered."""

    pid: int | None = None

    def start(self, piece: msgspec.Struct) -> None:
        """Nobody asks for this."""
        raise AssertionError(f"no release was offered, but {piece} is to be tried")

    def kill(self) -> None:
        """Nothing runs."""

    def forget(self, pid: int) -> None:
        """Nothing ran."""
