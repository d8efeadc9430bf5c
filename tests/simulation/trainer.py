"""The trainer's stand-in: takes virtual time, holds the real model files, and returns a keyed pseudo-random delta."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent import work
from edge_agent.adapters.trainer_process import TrainerExited, TrainerNews, TrainerSaid
from edge_agent.held_model import HeldModel
from federated_core.errors import FallowError, RemoteProtocolError
from federated_core.learning.blob import encode_blob
from federated_core.learning.clipping import clip_to_norm
from federated_core.learning.entropy import encode_symbols
from federated_core.learning.parameters import Layout
from federated_core.learning.update_codec import _UPDATE, encode_update
from federated_core.protocol.messages import Metrics
from tests.simulation.clockwork import Dice, Schedule
from tests.simulation.peril import Peril

Lie = Literal[
    "nan-step",
    "infinite-step",
    "huge-norm",
    "long-delta",
    "stretched-delta",
    "wrong-shape",
    "no-examples",
    "countless-examples",
    "impossible-metrics",
    "wrong-base",
    "garbage",
    "silent-blob",
]
LIES: tuple[Lie, ...] = Lie.__args__  # type: ignore[attr-defined]
HONEST_NORM_MAX = 0.3


class SimulatedTrainer:
    """At most one process, as `ChildProcess` has it."""

    def __init__(
        self,
        *,
        schedule: Schedule,
        dice: Dice,
        layout: Layout,
        news: Callable[[TrainerNews], None],
        peril: Peril,
        made: Callable[[work.Work, bytes], None],
        speed_s: float,
        lie: Lie | None,
        busy: Callable[[bool], None],
    ) -> None:
        self._piece: work.Work | None = None
        self.breaks = 0.0  # Probability that it dies in the middle.
        self.stays = 0.0  # Probability that it does not hear the request to end.
        self._schedule = schedule
        self._dice = dice
        self._layout = layout
        self._news = news
        self._peril = peril
        self._made = made
        self._speed_s = speed_s
        self._lie = lie
        self._busy = busy
        self._pid: int | None = None
        self._is_stopping = False
        self._pid_count = 0

    @property
    def piece(self) -> work.Work | None:
        """What it works on."""
        return self._piece

    @piece.setter
    def piece(self, piece: work.Work | None) -> None:
        self._piece = piece
        self._busy(piece is not None)

    @property
    def pid(self) -> int | None:
        return self._pid

    def prepare(self) -> None:
        if self._is_stopping:
            self.kill()
        if self._pid is None:
            self._pid_count += 1
            self._pid = self._pid_count

    def start(self, piece: work.Work) -> None:
        self._peril.touch("trainer.start")
        self.prepare()
        self.piece = piece
        self._later(0.3, lambda: self._hold(piece))
        self._peril.touch("trainer.started")

    def ask_to_stop(self) -> None:
        self._peril.touch("trainer.ask_to_stop")
        if self._pid is not None:
            self._is_stopping = True
            if not self._dice.happens(self.stays):
                self._later(0.1, lambda: self._exit(-15))

    def kill(self) -> None:
        self._peril.touch("trainer.kill")
        if self._pid is not None:
            self._exit(-9)
        self._pid, self._is_stopping = None, False

    def forget(self, pid: int) -> None:
        if self._pid == pid:
            self._pid, self._is_stopping = None, False

    def perish(self) -> None:
        """End with the daemon: its pipe closed."""
        self._pid, self.piece, self._is_stopping = None, None, False

    # --- The process

    def _later(self, after_s: float, happen: Callable[[], None]) -> None:
        pid = self._pid

        def act() -> None:
            if self._pid == pid and pid is not None:
                happen()

        self._schedule.after(after_s, act)

    def _exit(self, code: int) -> None:
        self.piece = None
        if self._pid is not None:
            self._news(TrainerExited(self._pid, code))

    def _hold(self, piece: work.Work) -> None:
        if self.piece is not piece:
            return
        try:
            _check_bundle(Path(piece.bundle_path))
            HeldModel(Path(piece.model_folder), self._layout).move_to(piece.task, piece.base, piece.fetched)
        except RemoteProtocolError as error:
            self._say(work.Failed(piece.work_id, "untrusted", str(error)))
            return
        except (FallowError, OSError) as error:
            self._say(work.Failed(piece.work_id, "training-failed", str(error)))
            return
        self._news(TrainerSaid(work.Holding(piece.work_id, piece.base)))
        duration_s = self._speed_s * self._dice.uniform(0.5, 1.5)
        if self._dice.happens(self.breaks):
            self._later(duration_s * 0.5, lambda: self._exit(-11))
        else:
            self._later(duration_s, lambda: self._finish(piece))

    def _finish(self, piece: work.Work) -> None:
        if self.piece is not piece:
            return
        seed = int.from_bytes(piece.order_key, "little")
        generator = np.random.Generator(np.random.PCG64(seed))
        example_count = int(generator.integers(1, 100))
        holdout_count = int(generator.integers(0, 20))
        correct_count = int(generator.integers(0, holdout_count + 1))
        if piece.plan.kind == "train":
            blob = self._encode(piece, generator.normal(0.0, 0.02, self._layout.update_size).astype(np.float32))
            Path(piece.update_path).write_bytes(blob)
            self._made(piece, blob)
        match self._lie:
            case "no-examples":
                example_count = 0
            case "countless-examples":
                example_count = 10**12
            case "impossible-metrics":
                correct_count = holdout_count + 1
        metrics = Metrics(holdout_count, correct_count, 0.5 * holdout_count)
        self._say(work.Done(piece.work_id, example_count, metrics, 0.7, self._speed_s))

    def _say(self, outcome: work.Outcome) -> None:
        self.piece = None
        self._news(TrainerSaid(outcome))

    def _encode(self, piece: work.Work, delta: NDArray[np.float32]) -> bytes:
        """Encode a delta as the real trainer does, or as a liar would."""
        step: float | None = None
        match self._lie:
            case "nan-step":
                step = float("nan")
            case "infinite-step":
                step = float("inf")
            case "huge-norm":
                step = 1e30
            case "long-delta":
                delta = delta * np.float32(9.0)  # Beyond the norm that is believed, and no other gate sees it.
            case "stretched-delta":
                delta = delta * np.float32(4.0)  # Believed, but clipped.
            case "wrong-shape":
                delta = delta[:-1]
        if step is not None:
            fields = (1, step, self._layout.digest[:8], piece.base.digest[:8])
            return encode_blob(_UPDATE, delta.size, fields, encode_symbols(np.ones(delta.size, np.int32)))
        if self._lie is None:
            delta = clip_to_norm(delta, HONEST_NORM_MAX)
        blob = encode_update(
            delta,
            layout_digest=self._layout.digest,
            base_digest=piece.base.digest,
            noise_key=piece.noise_key,
            step_per_rms=piece.plan.step_ratio,
        )
        return blob[::-1] if self._lie == "garbage" else blob


@functools.lru_cache(maxsize=64)
def _digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check_bundle(path: Path) -> None:
    if _digest_of(path.read_bytes()) != path.name:
        raise RemoteProtocolError(f"bundle: expected {path.name[:8]}, got other bytes")
