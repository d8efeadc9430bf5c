"""Releases on one device: what the update machine's actions mean in messages, files and processes.

One candidate at a time, whatever its family. Order, everywhere: journal the new state, then perform the actions; what
cannot be journaled does not happen, and is tried again.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, assert_never

import msgspec

from edge_agent import trial_work, update
from edge_agent.adapters.chance import Chance
from edge_agent.adapters.installer import POINTERS, Installer, Pointer, describe
from edge_agent.adapters.journal import Journal
from edge_agent.adapters.trial_process import TrialExited, TrialNews, TrialSaid
from edge_agent.artifact_fetcher import ArtifactFetcher, FetchResult
from edge_agent.config import ReleaseSettings
from edge_agent.release_reporter import SILENCE_S, TIMERS, ReleaseReporter
from federated_core.adapters.blob_store import BlobStore
from federated_core.adapters.inbox import Inbox
from federated_core.errors import AdapterError
from federated_core.protocol import messages
from federated_core.protocol.wire import ChunkFrame
from federated_core.release.acceptance import Refused, Trust, judge_offer

_CLOCK_FLOOR = msgspec.msgpack.Decoder(float)  # Under "clock-floor": the latest time of which there is proof.
_log = logging.getLogger(__name__)


class TrialLike(Protocol):
    """What runs the trial."""

    @property
    def pid(self) -> int | None:
        """The process, None if none runs."""

    def start(self, piece: msgspec.Struct) -> None:
        """Do a piece of work; AdapterError if that cannot be begun."""

    def kill(self) -> None:
        """End now."""

    def forget(self, pid: int) -> None:
        """Know that a process has ended."""


class UpdateDesk:
    """The releases of one device; sets timers of the inbox whose names begin with `TIMERS`."""

    def __init__(  # noqa: PLR0913 - every adapter by name.
        self,
        *,
        folder: Path,
        settings: ReleaseSettings,
        fleet: str,
        model_key: bytes,
        inbox: Inbox[Any],
        journal: Journal,
        blobs: BlobStore,
        trial: TrialLike,
        chance: Chance,
        now_s: Callable[[], float],
        send: Callable[[messages.DeviceMessage], None],
        make_room: Callable[[], None] = lambda: None,
    ) -> None:
        """Take up the journaled states; ``blobs`` is the agent's own store, which may hold the bundle already.

        ``make_room`` is called before a trial starts: a board has no memory for two models at work.
        """
        self._make_room = make_room
        self._folder = folder
        self._settings = settings
        self._fleet = fleet
        self._model_key = model_key
        self._inbox = inbox
        self._journal = journal
        self._blobs = blobs
        self._trial = trial
        self._now_s = now_s
        self._send = send
        self._installer = Installer(folder / "releases")
        self._downloads = BlobStore(folder / "downloads", size_max_bytes=settings.size_max_mib * 2**20)
        self._fetcher = ArtifactFetcher(self._downloads, inbox, send, TIMERS + "quiet")
        self._states: dict[str, update.UpdateState] = {}
        for key in journal.keys("update/"):
            self._states[key.partition("/")[2]] = journal.load(key, update.STATES) or update.Idle()
        self._reporter = ReleaseReporter(
            journal=journal,
            inbox=inbox,
            chance=chance,
            interval_s=settings.status_interval_s,
            states=lambda: {family: (self._read_pointer(family), self._state(family)) for family in self._families()},
            send=send,
        )
        self._work_id = 0
        self._unsaved: tuple[str, update.UpdateEvent] | None = None

    # --- News

    def start(self) -> None:
        """Go on from the journal; see that what is said to run can run."""
        for family in {*self._installer.families(), *(key[10:] for key in self._journal.keys("installed/"))}:
            try:
                self._mend(family)
            except AdapterError as error:
                _log.warning("release: %s", error)
        for family in list(self._states):
            self._advance(family, update.Restarted())
        for family in self._installer.families():
            if self._busy_family() != family:
                self._sweep(family)

    def stop(self) -> None:
        """End the trial process."""
        self._trial.kill()

    def note_link(self) -> None:
        """The broker is reachable: say what runs, and go on fetching."""
        for family in list(self._states):
            self._advance(family, update.LinkRestored())
        self._reporter.say()

    def receive(self, message: messages.ReleaseMessage) -> None:
        """Take a word from the aggregator."""
        match message:
            case messages.ReleaseOffer():
                self._consider(message)
            case messages.ReleaseAnnouncement(number, spread_s):
                known = [self._floor_of(family) for family in self._families()]
                if number > max(known, default=0):
                    self._reporter.say_within(spread_s)
            case messages.ReleaseAcknowledgement(status_id):
                self._reporter.acknowledge(status_id)

    def take(self, frame: ChunkFrame) -> None:
        """Store a chunk; one that nobody waits for is ignored."""
        self._conclude_fetch(self._fetcher.take(frame))

    def is_fetching(self, digest: bytes) -> bool:
        """Say whether a candidate waits for this blob."""
        state = self._states.get(self._busy_family() or "")
        if not isinstance(state, update.Downloading):
            return False
        return digest in {artifact.blob.digest for artifact in self._missing(state.candidate)}

    def give_up_fetching(self) -> None:
        """The aggregator does not have what was asked for (any more)."""
        self._conclude_fetch("failed")

    def ring(self, timer: str) -> None:
        """A timer is due; ``timer`` is its name without `TIMERS`."""
        busy = self._busy_family()
        match timer:
            case "status" | "heartbeat":
                self._reporter.say()
            case "answer":
                self._reporter.repeat()
            case "quiet":
                self._conclude_fetch(self._fetcher.note_silence())
            case "overdue" if busy is not None:
                self._trial.kill()
                self._advance(busy, update.Overdue())
            case "again" if self._unsaved is not None:
                (family, event), self._unsaved = self._unsaved, None
                self._advance(family, event)

    def hear(self, news: TrialNews) -> None:
        """Take news from the trial process."""
        busy = self._busy_family()
        match news:
            case TrialSaid(outcome) if outcome.work_id == self._work_id and busy is not None:
                self._inbox.cancel_timer(TIMERS + "overdue")
                if isinstance(outcome.event, update.BaseMoved):
                    self._reporter.distrust_held(self._task_of(busy))
                self._advance(busy, outcome.event)
            case TrialExited(pid) if pid == self._trial.pid:
                self._trial.forget(pid)
                self._inbox.cancel_timer(TIMERS + "overdue")
                if busy is not None:
                    _log.warning("release: the trial process ended in the middle of its work")
                    self._advance(busy, update.ChildDied())
            case _:
                pass  # Of a process that was ended, or of work that is no longer wanted.

    # --- The machine

    def _advance(self, family: str, event: update.UpdateEvent) -> None:
        before = self._state(family)
        after, actions = update.step(before, event)
        if after != before:
            try:
                self._journal.save(f"update/{family}", after)
            except AdapterError as error:
                _log.warning("release: %s; nothing happens before that is possible", error)
                self._unsaved = (family, event)
                self._inbox.set_timer(TIMERS + "again", SILENCE_S)
                return
            self._states[family] = after
        if after != before or actions:
            names = " ".join(type(action).__name__ for action in actions)
            old, new = type(before).__name__, type(after).__name__
            _log.info("update %s %s --%s--> %s [%s]", family, old, type(event).__name__, new, names)
        for action in actions:
            self._perform(family, action)

    def _perform(self, family: str, action: update.UpdateAction) -> None:
        match action:
            case update.Fetch(candidate):
                self._begin_fetch(family, candidate)
            case update.StopFetching():
                self._fetcher.give_up()
                self._inbox.cancel_timer(TIMERS + "quiet")
            case update.Install(candidate):
                self._start(family, self._installation(candidate))
            case update.Try(candidate):
                pointer = self._read_pointer(family)
                running = None if pointer is None else pointer.release
                self._start(
                    family, trial_work.TrialWork(self._next_work(), candidate.manifest, running, *self._places())
                )
            case update.StopTrial():
                self._inbox.cancel_timer(TIMERS + "overdue")
                self._trial.kill()
            case update.Commit(candidate):
                self._commit(family, candidate)
            case update.Discard():
                self._sweep(family)
                self._advance(family, update.Discarded())
            case update.Report():
                self._reporter.conclude()
            case update.AskLater():
                self._reporter.ask_later()
            case _:
                assert_never(action)

    def _consider(self, offer: messages.ReleaseOffer) -> None:
        floor = self._journal.load("clock-floor", _CLOCK_FLOOR) or 0.0
        size_max_bytes = self._settings.size_max_mib * 2**20
        trust = Trust(
            self._fleet,
            self._model_key,
            max(self._now_s(), floor),
            {family: self._floor_of(family) for family in self._families()},
            self._settings.families,
            size_max_bytes,
            size_max_bytes,
        )
        verdict = judge_offer(offer.manifest, offer.fetch, trust)
        if isinstance(verdict, Refused):
            self._refuse(offer.number, verdict)
            return
        busy = self._busy_family()
        if busy is not None and busy != verdict.family:
            return  # One at a time; the status after this one's conclusion brings the offer again.
        try:
            self._journal.save("clock-floor", max(floor, float(verdict.issued_at)))
        except AdapterError as error:
            _log.warning("release: %s", error)
            self._reporter.ask_later()
            return
        self._advance(verdict.family, update.Offered(update.Candidate(verdict, offer.manifest, offer.fetch)))

    def _refuse(self, number: int, refused: Refused) -> None:
        reason, detail = refused.refusal.reason, refused.refusal.detail[:120]
        self._journal.count("releases_refused", 1)
        if reason == "not-newer":  # A replay, or the aggregator did not hear of our conclusion.
            _log.info("release %d: not newer than what was concluded", number)
            self._reporter.say_within(SILENCE_S)
            return
        _log.error("release %d refused: %s (%s)", number, reason, detail)
        self._reporter.refuse(messages.ReleaseConclusion(number, "refused", reason, detail))

    # --- Download

    def _missing(self, candidate: update.Candidate) -> tuple[messages.Artifact, ...]:
        """Return what must be fetched: the plan's keyframe and delta, and the bundle if it is not here whole."""
        manifest = candidate.manifest
        wanted = [artifact for artifact in candidate.fetch if artifact.kind != "bundle"]
        try:
            self._blobs.get(manifest.bundle.digest.hex())
        except AdapterError:
            wanted.append(messages.Artifact("bundle", manifest.bundle))
        return tuple(msgspec.structs.replace(artifact, multicast=False) for artifact in wanted)

    def _begin_fetch(self, family: str, candidate: update.Candidate) -> None:
        if self._installer.holds(describe(candidate.manifest)):
            self._advance(family, update.Fetched())  # Old bytes under a new number.
            return
        try:
            self._conclude_fetch(self._fetcher.begin(self._missing(candidate)))
        except AdapterError as error:
            _log.warning("release %d: cannot fetch: %s", candidate.manifest.number, error)
            self._advance(family, update.FetchFailed())

    def _conclude_fetch(self, result: FetchResult) -> None:
        busy = self._busy_family()
        if result is None or busy is None:
            return
        self._inbox.cancel_timer(TIMERS + "quiet")
        self._advance(busy, update.Fetched() if result == "whole" else update.FetchFailed())

    # --- Trial, commit, sweep

    def _installation(self, candidate: update.Candidate) -> trial_work.InstallWork:
        manifest = candidate.manifest
        bundle = manifest.bundle.digest.hex()
        store = self._downloads if self._downloads.has(bundle) else self._blobs
        return trial_work.InstallWork(
            self._next_work(),
            manifest,
            str(store.path(bundle)),
            str(self._folder / "models" / manifest.task),
            tuple(
                (artifact.kind, str(self._downloads.path(artifact.blob.digest.hex())))
                for artifact in candidate.fetch
                if artifact.kind != "bundle"
            ),
            *self._places(),
        )

    def _places(self) -> tuple[str, str]:
        return str(self._folder / "releases"), str(self._folder / "examples.db")

    def _next_work(self) -> int:
        self._work_id += 1
        return self._work_id

    def _start(self, family: str, piece: trial_work.Work) -> None:
        if isinstance(piece, trial_work.InstallWork) and self._installer.holds(describe(piece.manifest)):
            self._advance(family, update.Installed())
            return
        self._make_room()
        try:
            self._trial.start(piece)
            self._inbox.set_timer(TIMERS + "overdue", self._settings.trial_timeout_s)
        except AdapterError as error:
            _log.warning("%s", error)
            self._advance(family, update.ChildDied())

    def _commit(self, family: str, candidate: update.Candidate) -> None:
        release = describe(candidate.manifest)
        try:
            self._journal.save(f"installed/{family}", self._installer.commit(release))
        except AdapterError as error:
            pointer = self._read_pointer(family)
            if pointer is None or pointer.release != release:
                self._advance(family, update.CommitFailed(str(error)[:120]))
                return
        _log.info("release %d of %s runs now", release.number, family)
        self._advance(family, update.Committed())

    def _mend(self, family: str) -> None:
        """Put back a pointer that was lost or fell back in a power cut, and leave a release whose bytes rotted."""
        pointer = self._read_pointer(family)
        copy = self._journal.load(f"installed/{family}", POINTERS)
        if copy is not None and (pointer is None or pointer.release.number < copy.release.number):
            pointer = self._installer.write_pointer(copy)
        if pointer is None or self._installer.holds(pointer.release):
            return
        _log.error("release %d of %s: its bytes are damaged", pointer.release.number, family)
        if pointer.previous is not None and self._installer.holds(pointer.previous):
            back = self._installer.write_pointer(Pointer(pointer.previous))
            self._journal.save(f"installed/{family}", back)

    def _read_pointer(self, family: str) -> Pointer | None:
        try:
            return self._installer.read_pointer(family)
        except AdapterError as error:
            _log.warning("%s", error)
            return None

    def _sweep(self, family: str) -> None:
        try:
            self._installer.sweep(family)
            for digest in self._downloads.digests():
                self._downloads.delete(digest)
            for digest in self._downloads.partial_digests():
                self._downloads.drop_partial(digest)
        except (AdapterError, OSError) as error:
            _log.warning("release: cannot sweep now: %s", error)

    # --- What is known

    def _families(self) -> list[str]:
        return sorted({*self._states, *self._installer.families()})

    def _state(self, family: str) -> update.UpdateState:
        return self._states.get(family, update.Idle())

    def _floor_of(self, family: str) -> int:
        """The highest number that was concluded, or that runs: the second holds should the journal be lost."""
        pointer = self._read_pointer(family)
        running = 0 if pointer is None else pointer.release.number
        return max(running, update.floor_of(self._state(family)))

    def _task_of(self, family: str) -> str:
        state = self._state(family)
        return "" if isinstance(state, update.Idle) else state.candidate.manifest.task

    def _busy_family(self) -> str | None:
        return next((family for family, state in self._states.items() if not isinstance(state, update.Idle)), None)
