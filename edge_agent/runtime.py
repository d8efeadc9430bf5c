"""The agent's one loop: news from adapters become events, actions become adapter calls. Nothing here decides a round.

Order, everywhere: journal the new state, then perform the actions.
"""

import contextlib
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, assert_never

import msgspec

from edge_agent import session, work
from edge_agent.adapters.chance import Chance
from edge_agent.adapters.identity import Identity
from edge_agent.adapters.journal import HELD, Journal
from edge_agent.adapters.trainer_process import TrainerExited, TrainerNews, TrainerSaid
from edge_agent.adapters.trial_process import TrialExited, TrialNews, TrialSaid
from edge_agent.artifact_fetcher import ArtifactFetcher
from edge_agent.config import AgentSettings
from edge_agent.eligibility import Conditions, ineligibilities, waivers
from edge_agent.release_reporter import TIMERS
from edge_agent.update_desk import TrialLike, UpdateDesk
from federated_core import VERSION
from federated_core.adapters.blob_store import BlobStore
from federated_core.adapters.chunk_sender import ChunkSender
from federated_core.adapters.inbox import Inbox, TimerFired
from federated_core.adapters.link import Link, LinkDown, LinkNews, LinkUp, MessageArrived, MessageSent
from federated_core.errors import AdapterError, LocalMisuseError, RemoteProtocolError
from federated_core.protocol import keys, messages, topics, wire
from federated_core.protocol.transfer import Chunk

_log = logging.getLogger(__name__)
_ANSWERS = msgspec.msgpack.Decoder(messages.AggregatorMessage)
JOURNAL_RETRY_S = 10.0


class StopAsked(msgspec.Struct, frozen=True):
    """The process is asked to end."""


News = LinkNews | TrainerNews | TrialNews | TimerFired | StopAsked


class SensorsLike(Protocol):
    """What tells the conditions."""

    def look(self, trainer_pid: int | None = None) -> Conditions:
        """Read every sensor now."""


class TrainerLike(Protocol):
    """What runs the work."""

    @property
    def pid(self) -> int | None:
        """The trainer's process, None if none runs."""

    def prepare(self) -> None:
        """Be ready for work soon."""

    def start(self, piece: work.Work) -> None:
        """Do a piece of work; AdapterError if that cannot be begun."""

    def ask_to_stop(self) -> None:
        """End soon."""

    def kill(self) -> None:
        """End now."""

    def forget(self, pid: int) -> None:
        """Know that a process has ended."""


class Runtime:
    """One device. `handle` takes one piece of news; `run` takes them from the inbox until it is asked to stop."""

    def __init__(  # noqa: PLR0913 - every adapter by name.
        self,
        *,
        folder: Path,
        settings: AgentSettings,
        identity: Identity,
        inbox: Inbox[News],
        link: Link,
        journal: Journal,
        blobs: BlobStore,
        trainer: TrainerLike,
        trial: TrialLike,
        sensors: SensorsLike,
        chance: Chance,
        now_s: Callable[[], float],
        engine: str = "",
    ) -> None:
        """Take up the device's journaled state; ``now_s`` is the wall clock, for the owner's eyes only."""
        if identity.grant is None:
            raise LocalMisuseError("this device is not enrolled; run: edge-agent enroll --token TOKEN")
        self._folder = folder
        self._settings = settings
        self._identity = identity
        self._grant = identity.grant
        self._signing_key = keys.SigningKey(identity.signing_secret)
        self._inbox = inbox
        self._link = link
        self._journal = journal
        self._blobs = blobs
        self._trainer = trainer
        self._sensors = sensors
        self._chance = chance
        self._now_s = now_s
        self._engine = engine
        self._chunks = ChunkSender(link, blobs)
        self._fetcher = ArtifactFetcher(blobs, inbox, self._send)
        self._updates = UpdateDesk(
            folder=folder,
            settings=settings.releases,
            fleet=self._grant.fleet,
            model_key=identity.token.model_key,
            inbox=inbox,
            journal=journal,
            blobs=blobs,
            trial=trial,
            chance=chance,
            now_s=now_s,
            send=self._send,
            make_room=self._end_resting_trainer,
        )
        self._up = topics.device_up(self._grant.fleet, self._grant.device)
        self._down = topics.device_down(self._grant.fleet, self._grant.device)
        self._state: session.SessionState = journal.load("session", session.STATES) or session.Resting()
        self._work_id = 0
        self._assigned: messages.Assignment | None = None  # What the trainer was last given.
        self._is_training = False
        self._is_connected = False
        self._deadline_of: bytes | None = None  # The check-in whose assignment's deadline runs.
        self._reasons: tuple[str, ...] | None = None

    # --- The loop

    def run(self) -> None:
        """Handle news until the process is asked to stop."""
        self.start()
        while True:
            news = self._inbox.next()
            if isinstance(news, StopAsked):
                break
            if news is not None:
                self.handle(news)
        self._trainer.kill()
        self._updates.stop()

    def start(self) -> None:
        """Go on from the journaled state."""
        for waiver in waivers(self._settings.eligibility):
            _log.warning("eligibility: %s by this device's settings", waiver)
        self._sensors.look()  # The first look at the load has nothing to compare with.
        self._inbox.set_timer("look", self._settings.idle_interval_s)
        self._advance(session.Restarted())
        self._updates.start()

    def handle(self, news: News) -> None:
        """Turn one piece of news into events. What others send wrongly is counted and forgotten."""
        try:
            self._dispatch(news)
        except RemoteProtocolError as error:
            _log.warning("ignored: %s", error)
            with contextlib.suppress(AdapterError):  # A full disk counts no errors, and is no reason to die.
                self._journal.count("protocol_errors", 1)
        except AdapterError as error:
            _log.warning("%s", error)

    def _dispatch(self, news: News) -> None:
        match news:
            case LinkUp():
                _log.info("connected")
                self._is_connected = True
                self._advance(session.LinkRestored())
                self._updates.note_link()
            case LinkDown(reason):
                _log.warning("not connected: %s", reason)
                self._is_connected = False
            case MessageArrived(topic, payload):
                self._receive(topic, payload)
            case MessageSent(ticket):
                self._chunks.sent(ticket)
            case TimerFired(name):
                self._ring(name)
            case TrainerSaid(outcome):
                self._hear_trainer(outcome)
            case TrainerExited(pid, code):
                self._bury_trainer(pid, code)
            case TrialSaid() | TrialExited():
                self._updates.hear(news)
            case StopAsked():
                pass
            case _:
                assert_never(news)

    def _advance(self, event: session.SessionEvent) -> None:
        before = self._state
        state, actions = session.step(before, event)
        if state != before and not self._save(state):
            return
        self._state = state
        if self._state != before or actions:
            names = " ".join(type(action).__name__ for action in actions)
            after = type(self._state).__name__
            _log.info("session %s --%s--> %s [%s]", type(before).__name__, type(event).__name__, after, names)
        for action in actions:
            try:
                self._perform(action)
            except AdapterError as error:
                _log.warning("%s: %s", type(action).__name__, error)  # One that fails must not cost those after it.

    def _save(self, state: session.SessionState) -> bool:
        """Journal a state. What cannot be journaled does not happen: work stops, and begins again later."""
        try:
            self._journal.save("session", state)
        except AdapterError as error:
            _log.warning("session: %s; going on from the state before in %.0f s", error, JOURNAL_RETRY_S)
            for name in ("pacing", "answer"):
                self._inbox.cancel_timer(name)
            self._stop_work()
            self._inbox.set_timer("again", JOURNAL_RETRY_S)
            return False
        self._inbox.cancel_timer("again")
        return True

    # --- News to events

    def _receive(self, topic: str, payload: bytes) -> None:
        frame = wire.decode_frame(payload)
        if isinstance(frame, wire.ChunkFrame):
            match self._fetcher.take(frame):
                case "whole":
                    self._conclude_fetch()
                case "failed":
                    self._advance(session.FetchFailed("fetch-failed"))
            self._updates.take(frame)
            return
        message = wire.open_message(frame, topic, self._identity.token.verify_key, _ANSWERS)
        match message:
            case messages.ChunksMissing(digest, indices):
                self._chunks.want(self._up, tuple(Chunk(digest, index) for index in indices))
            case messages.BlobUnavailable(digest) if self._updates.is_fetching(digest):
                self._updates.give_up_fetching()
            case messages.BlobUnavailable(digest):
                if self._fetcher.is_fetching(digest):
                    self._fetcher.give_up()
                    self._advance(session.FetchFailed("fetch-failed"))
            case messages.ReleaseOffer() | messages.ReleaseAnnouncement() | messages.ReleaseAcknowledgement():
                self._updates.receive(message)
            case _:
                self._advance(message)

    def _ring(self, name: str) -> None:
        match name:
            case "pacing":
                self._advance(session.PacingElapsed())
            case "answer":
                self._advance(session.AnswerOverdue())
            case "again":
                self._advance(session.Restarted())
            case "deadline":
                self._advance(session.DeadlinePassed())
            case "quiet":
                if self._fetcher.note_silence() == "failed":
                    self._advance(session.FetchFailed("fetch-failed"))
            case "watch":
                if self._judge():
                    self._advance(session.BecameIneligible())
                elif isinstance(self._state, session.Fetching | session.Training):
                    self._inbox.set_timer("watch", self._settings.watch_interval_s)
            case "look":
                self._judge()
                self._inbox.set_timer("look", self._settings.idle_interval_s)
            case "kill" | "linger":
                self._trainer.kill()
            case _ if name.startswith(TIMERS):
                self._updates.ring(name.removeprefix(TIMERS))
            case _:
                raise LocalMisuseError(f"timer: nobody set {name!r}")

    def _hear_trainer(self, outcome: work.Outcome) -> None:
        assignment = self._assigned
        if outcome.work_id != self._work_id or assignment is None:
            return
        if not isinstance(outcome, work.Holding) and not isinstance(self._state, session.Training):
            return
        match outcome:
            case work.Holding(base=base):  # Whatever became of the round: the files have moved, the journal follows.
                held = messages.HeldCheckpoint(assignment.task, assignment.bundle, base)
                self._journal.save(f"held/{assignment.task}", held)
                for artifact in assignment.fetch:
                    if artifact.kind != "bundle":
                        self._blobs.delete(artifact.blob.digest.hex())
            case work.Progress(step_count=step_count, step_count_planned=planned):
                _log.debug("training: step %d of %d", step_count, planned)
            case work.Done():
                self._rest_trainer()
                report = self._write_report(assignment, outcome)
                _log.info("round %d: %d examples, %.2f s", report.round, report.example_count, report.training_s)
                self._advance(session.Trained(report))
            case work.Failed(why=why, detail=detail):
                self._rest_trainer()
                _log.warning("round %d: %s (%s)", assignment.round, why, detail)
                if why == "untrusted":
                    self._forget_model(assignment)
                self._advance(session.TrainingFailed(why))

    def _forget_model(self, assignment: messages.Assignment) -> None:
        """Claim nothing of a model that turned out to be damaged: the aggregator sends all of it anew."""
        self._journal.forget(f"held/{assignment.task}")
        self._blobs.delete(assignment.bundle.hex())

    def _bury_trainer(self, pid: int, code: int) -> None:
        if pid != self._trainer.pid:
            return
        self._trainer.forget(pid)
        self._inbox.cancel_timer("kill")
        if self._is_training:
            self._is_training = False
            _log.warning("the trainer ended in the middle of its work (code %d)", code)
            self._advance(session.TrainingFailed("training-failed"))

    # --- Actions to adapter calls

    def _perform(self, action: session.SessionAction) -> None:
        match action:
            case session.AwaitPacing(window):
                self._inbox.cancel_timer("answer")
                self._inbox.set_timer("pacing", self._chance.uniform(window.min_s, window.max_s))
            case session.JudgeEligibility():
                reasons = self._judge()
                self._advance(
                    session.BecameIneligible() if reasons else session.BecameEligible(self._chance.token_bytes(8))
                )
            case session.SendCheckIn(check_in_id):
                self._inbox.set_timer("answer", self._settings.answer_timeout_s)
                self._send(self._make_check_in(check_in_id))
            case session.Fetch(assignment):
                self._begin_fetch(assignment)
            case session.StartTraining(assignment):
                self._begin_training(assignment)
            case session.StopWork():
                self._stop_work()
            case session.SendAbandonment(task, round_number, why):
                self._send(messages.Abandonment(task, round_number, why))
            case session.SendReport(report):
                self._inbox.set_timer("answer", self._settings.answer_timeout_s)
                self._send(report)
                if report.update is not None:
                    chunk_count = wire.chunk_count(report.update.size_bytes)
                    self._chunks.want(
                        self._up, tuple(Chunk(report.update.digest, index) for index in range(chunk_count))
                    )
            case session.EmptyOutbox():
                self._empty_outbox()
            case _:
                assert_never(action)

    def _send(self, message: messages.DeviceMessage) -> None:
        if not self._is_connected:
            return  # `LinkRestored` says again what still matters; what is queued for hours does not.
        self._link.send(self._up, wire.sign_message(self._signing_key, self._up, message))

    def _make_check_in(self, check_in_id: bytes) -> messages.CheckIn:
        held = [self._journal.load(key, HELD) for key in self._journal.keys("held/")]
        return messages.CheckIn(
            check_in_id,
            held=tuple(one for one in held if one is not None and self._blobs.has(one.bundle.hex())),
            eligibility="eligible-by-waiver" if waivers(self._settings.eligibility) else "eligible",
            engine=self._engine,
            agent_version=VERSION,
        )

    def _begin_fetch(self, assignment: messages.Assignment) -> None:
        self._inbox.cancel_timer("answer")
        if self._deadline_of != assignment.check_in_id:  # A link that comes back gives no more time.
            self._deadline_of = assignment.check_in_id
            self._inbox.set_timer("deadline", assignment.deadline_s)
        self._inbox.set_timer("watch", self._settings.watch_interval_s)
        statement = keys.bundle_statement(assignment.bundle)
        if not keys.is_signed_by(self._identity.token.model_key, assignment.bundle_signature, statement):
            _log.error("refused: the bundle of task %s is not signed by the model key", assignment.task)
            self._advance(session.FetchFailed("untrusted"))
            return
        self._trainer.prepare()
        self._inbox.cancel_timer("kill")  # It was for the child before this one.
        try:
            if self._fetcher.begin(assignment.fetch) == "whole":
                self._conclude_fetch()
        except AdapterError as error:
            _log.warning("cannot fetch: %s", error)
            self._advance(session.FetchFailed("fetch-failed"))

    def _conclude_fetch(self) -> None:
        self._inbox.cancel_timer("quiet")
        self._advance(session.Fetched())

    def _begin_training(self, assignment: messages.Assignment) -> None:
        self._inbox.cancel_timer("linger")
        self._work_id += 1
        self._assigned = assignment
        artifacts = [artifact for artifact in assignment.fetch if artifact.kind != "bundle"]
        model_folder = self._folder / "models" / assignment.task
        model_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        piece = work.Work(
            work_id=self._work_id,
            task=assignment.task,
            round=assignment.round,
            plan=assignment.plan,
            base=assignment.base,
            bundle_path=str(self._blobs.path(assignment.bundle.hex())),
            model_folder=str(model_folder),
            fetched=tuple((artifact.kind, str(self._blobs.path(artifact.blob.digest.hex()))) for artifact in artifacts),
            store_path=str(self._folder / "examples.db"),
            noise_key=self._derive_key(b"noise", assignment),
            order_key=self._derive_key(b"order", assignment),
            update_path=str(model_folder / "update"),
        )
        try:
            self._trainer.start(piece)
            self._is_training = True
        except AdapterError as error:
            _log.warning("%s", error)
            self._advance(session.TrainingFailed("training-failed"))

    def _derive_key(self, purpose: bytes, assignment: messages.Assignment) -> bytes:
        """Return a private key for one round's randomness: the same again after a crash, unknown to everyone else."""
        parts = msgspec.msgpack.encode([assignment.task, assignment.round, assignment.base.digest])
        return hashlib.blake2b(parts, key=self._identity.noise_secret, person=purpose, digest_size=16).digest()

    def _write_report(self, assignment: messages.Assignment, done: work.Done) -> messages.Report:
        update = None
        if assignment.plan.kind == "train":
            path = self._folder / "models" / assignment.task / "update"
            context = keys.update_context(
                self._grant.fleet, self._grant.device, assignment.task, assignment.round, assignment.base.digest
            )
            sealed = keys.seal(self._identity.token.seal_key, path.read_bytes(), context)
            update = messages.BlobReference(bytes.fromhex(self._blobs.put(sealed)), len(sealed))
            path.unlink()
        return messages.Report(
            task=assignment.task,
            round=assignment.round,
            kind=assignment.plan.kind,
            base=assignment.base.digest,
            example_count=done.example_count,
            metrics=done.metrics,
            update=update,
            training_loss=done.training_loss,
            training_s=round(done.training_s, 3),
        )

    def _stop_work(self) -> None:
        for name in ("deadline", "watch", "quiet"):
            self._inbox.cancel_timer(name)
        self._deadline_of = None
        self._fetcher.give_up()
        if self._is_training:
            self._is_training = False
            self._trainer.ask_to_stop()
            self._inbox.set_timer("kill", self._settings.trainer.grace_s)

    def _end_resting_trainer(self) -> None:
        if not self._is_training:
            self._inbox.cancel_timer("linger")
            self._trainer.kill()

    def _rest_trainer(self) -> None:
        self._is_training = False
        self._inbox.set_timer("linger", self._settings.trainer.linger_s)

    def _empty_outbox(self) -> None:
        """Delete what was sent, and every blob that nothing needs any more."""
        held = [self._journal.load(key, HELD) for key in self._journal.keys("held/")]
        needed = {one.bundle.hex() for one in held if one is not None}
        for digest in self._blobs.digests():
            if digest not in needed:
                self._blobs.delete(digest)

    def _judge(self) -> tuple[str, ...]:
        """Return why the device must not train now; a change is logged and kept for the status page."""
        reasons = ineligibilities(self._sensors.look(self._trainer.pid), self._settings.eligibility)
        if reasons != self._reasons:
            if not reasons or self._reasons is None or len(reasons) != len(self._reasons):
                _log.info("eligible" if not reasons else "not eligible: %s", *(["; ".join(reasons)] if reasons else []))
            self._reasons = reasons
            with contextlib.suppress(AdapterError):  # For the status page only: work must stop on a full disk too.
                self._journal.save("reasons", (self._now_s(), reasons))
        return reasons
