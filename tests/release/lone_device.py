"""One device with real desk, journal, installer and trial, and an aggregator of a few lines that offers it releases."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent import trial_work, update
from edge_agent.adapters.example_store import ExampleStore
from edge_agent.adapters.journal import Journal
from edge_agent.adapters.trial_process import TrialExited, TrialSaid
from edge_agent.config import ReleaseSettings, StoreSettings
from edge_agent.local_model import LocalModel
from edge_agent.release_reporter import TIMERS
from edge_agent.trial import answer
from edge_agent.update_desk import UpdateDesk
from federated_core.adapters.blob_store import BlobStore
from federated_core.adapters.inbox import TimerFired
from federated_core.engines.numpy_engine import NumpyEngine
from federated_core.errors import AdapterError
from federated_core.protocol import messages, wire
from federated_core.protocol.wire import CHUNK_BYTES, ChunkFrame
from tests.release.tiny_releases import FAMILY, FLEET, ISSUED_AT, TinyRelease
from tests.release.virtual_inbox import VirtualInbox
from tests.simulation.tiny_model import MODEL_KEY

PROBE = np.array([[3, 1], [1, 2], [0, 5]], np.float32)
PATIENCE_S = 20_000.0


class TinyAggregator:
    """Answers a status with the newest release that the device has not concluded, and requests with chunks."""

    def __init__(self, *releases: TinyRelease) -> None:
        self.releases = list(releases)
        self.statuses: list[messages.ReleaseStatus] = []
        self.is_deaf = False

    def answer(self, message: messages.DeviceMessage) -> list[Any]:
        """Return messages and chunk frames for the device."""
        match message:
            case _ if self.is_deaf:
                return []
            case messages.ReleaseStatus(status_id, families):
                self.statuses.append(message)
                floor = max((one.concluded.number for one in families if one.concluded is not None), default=0)
                refused = message.refused.number if message.refused is not None else None
                wanted = [one for one in self.releases if floor < one.manifest.number != refused]
                offers = [wanted[-1].offer] if wanted else []
                return [messages.ReleaseAcknowledgement(status_id), *offers]
            case messages.ChunkRequest(digest, indices):
                blob = next((one.blobs[digest] for one in self.releases if digest in one.blobs), b"")
                parts = [blob[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES] for index in indices]
                return [
                    wire.decode_frame(wire.chunk_payload(digest, index, part))
                    for index, part in zip(indices, parts, strict=True)
                    if part
                ]
            case _:
                raise AssertionError(f"a lone device has no reason to say {message}")

    @property
    def last(self) -> messages.FamilyStatus | None:
        """What the device last said of its one family."""
        return self.statuses[-1].families[0] if self.statuses and self.statuses[-1].families else None


class InProcessTrial:
    """The trial without its process: `answer` at once, or what the test wants to happen instead."""

    def __init__(self, inbox: VirtualInbox) -> None:
        self.pid: int | None = None
        self.pieces: list[trial_work.Work] = []
        self.behaviour = "answers"
        self._inbox = inbox
        self._next_pid = 1000

    def start(self, piece: msgspec.Struct) -> None:
        """Do the work now."""
        assert isinstance(piece, trial_work.InstallWork | trial_work.TrialWork)
        self.pieces.append(piece)
        if self.pid is None:
            self._next_pid += 1
            self.pid = self._next_pid
        if self.behaviour == "answers":
            self._inbox.put(TrialSaid(trial_work.TrialOutcome(piece.work_id, answer(piece, NumpyEngine()))))
        elif self.behaviour == "dies":
            self._inbox.put(TrialExited(self.pid))

    def kill(self) -> None:
        """Forget the process."""
        self.pid = None

    def forget(self, pid: int) -> None:
        """Know that it has ended."""
        self.pid = None


class FixedChance:
    """The middle of every interval, and tokens that count."""

    def __init__(self) -> None:
        self._count = 0

    def uniform(self, low: float, high: float) -> float:
        """Return the middle."""
        return (low + high) / 2

    def token_bytes(self, count: int) -> bytes:
        """Return another token each time."""
        self._count += 1
        return self._count.to_bytes(count, "big")


class LoneDevice:
    """A device that is started on a folder, runs until it is quiet, and can be thrown away at any moment."""

    def __init__(
        self,
        folder: Path,
        aggregator: TinyAggregator,
        *,
        settings: ReleaseSettings | None = None,
        journal: Journal | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.aggregator = aggregator
        self.inbox = VirtualInbox()
        self.journal = journal or Journal(folder / "journal.db")
        self.blobs = BlobStore(folder)
        self.trial = InProcessTrial(self.inbox)
        self.sent: list[messages.DeviceMessage] = []
        self.send_out: Callable[[messages.DeviceMessage], object] = self._ask_aggregator
        self.wall_s = float(ISSUED_AT + 60)
        self.desk = UpdateDesk(
            folder=folder,
            settings=settings or ReleaseSettings(),
            fleet=FLEET,
            model_key=MODEL_KEY.public,
            inbox=self.inbox,
            journal=self.journal,
            blobs=self.blobs,
            trial=self.trial,
            chance=FixedChance(),
            now_s=lambda: self.wall_s,
            send=self.send,
        )

    def send(self, message: messages.DeviceMessage) -> None:
        """Say something to the aggregator."""
        self.sent.append(message)
        self.send_out(message)

    def _ask_aggregator(self, message: messages.DeviceMessage) -> None:
        self.inbox.news += self.aggregator.answer(message)  # It answers at once.

    def start(self) -> "LoneDevice":
        """Begin, with a broker that is there."""
        self.desk.start()
        self.desk.note_link()
        return self

    def settle(self, until_s: float = PATIENCE_S) -> "LoneDevice":
        """Handle news and timers until a day's status is all that is left."""
        while True:
            while self.inbox.news:
                self.handle(self.inbox.news.pop(0))
            due_s = self.inbox.next_due_s()
            if due_s is None or due_s > until_s:
                return self
            self.inbox.turn_to(due_s)

    def handle(self, news: Any) -> None:
        """Give one piece of news to the desk, as the runtime does: what the world refuses now is tried again later."""
        with contextlib.suppress(AdapterError):
            self._dispatch(news)

    def _dispatch(self, news: Any) -> None:
        match news:
            case TimerFired(name):
                self.desk.ring(name.removeprefix(TIMERS))
            case ChunkFrame():
                self.desk.take(news)
            case TrialSaid() | TrialExited():
                self.desk.hear(news)
            case _:
                self.desk.receive(news)

    @property
    def state(self) -> update.UpdateState:
        """Where the machine of the one family is."""
        return self.desk._states.get(FAMILY, update.Idle())


def add_examples(folder: Path, x: NDArray[np.float32], label: NDArray[np.int64]) -> None:
    """Give a device examples: every second one is held out."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = StoreSettings(block_s=1.0, holdout_every=2, gap_s=0.0)
    ExampleStore(folder / "examples.db").add(x, label, np.arange(len(x), dtype=np.float64) + 0.5, settings)


def larger_wins(count: int = 80, scale: float = 1.0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Examples that RIGHT classifies without a mistake, and WRONG without a hit."""
    x = np.random.default_rng(7).uniform(0.1, 1.0, (count, 2)).astype(np.float32) * np.float32(scale)
    return x, np.argmax(x, axis=1).astype(np.int64)


def predictions(folder: Path) -> list[int]:
    """What an application on the device predicts for the probe."""
    model = LocalModel(folder, engine=NumpyEngine())
    return [int(label) for label in np.argmax(model.predict(PROBE), axis=1)]
