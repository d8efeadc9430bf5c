"""One round at work: what the actions of `training_round` mean in messages, files and rows."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, assert_never

import msgspec

from cloud_aggregator import training_round
from cloud_aggregator.adapters.database import Database, Transaction
from cloud_aggregator.adapters.model_registry import ModelRegistry, TaskModel
from cloud_aggregator.adapters.schema import RoundRow
from cloud_aggregator.config import AggregatorSettings, PacingSettings
from cloud_aggregator.selection import Candidate
from cloud_aggregator.traffic import TrafficMeter
from cloud_aggregator.update_intake import UPDATE_STEP_MAX, UpdateIntake
from federated_core.adapters.inbox import Inbox
from federated_core.errors import AdapterError, LocalMisuseError, RemoteProtocolError
from federated_core.learning.aggregation import FixedPointSum, SumCaps
from federated_core.learning.update_codec import largest_symbol
from federated_core.protocol import messages

DISK_RETRY_S = 10.0
_log = logging.getLogger(__name__)
_STATES: msgspec.msgpack.Decoder[training_round.RoundState] = msgspec.msgpack.Decoder(training_round.RoundState)


@dataclasses.dataclass(frozen=True, slots=True)
class Office:
    """What all desks share."""

    settings: AggregatorSettings
    database: Database
    registry: ModelRegistry
    intake: UpdateIntake
    inbox: Inbox[Any]
    traffic: TrafficMeter
    selection_secret: bytes
    send: Callable[[str, messages.AggregatorMessage], None]
    multicast: Callable[[str, messages.BlobReference], None]
    commit: Callable[[Callable[[Transaction], None]], None]


class RoundDesk:
    """The rounds of one task, one after the other; ``finish`` hears when one is over, and who waits for the next."""

    def __init__(
        self, office: Office, name: str, model: TaskModel, finish: Callable[[tuple[Candidate, ...]], None]
    ) -> None:
        self._office = office
        self._name = name
        self._model = model
        self._finish = finish
        self._state: training_round.RoundState | None = None

    @property
    def state(self) -> training_round.RoundState | None:
        """The newest round, None before the first."""
        return self._state

    @property
    def is_open(self) -> bool:
        """Whether a round takes check-ins and reports."""
        return not isinstance(self._state, training_round.Completed | training_round.Abandoned | None)

    def restore(self, state: bytes) -> None:
        """Take up the round that was journaled."""
        self._state = _STATES.decode(state)

    def open(self, head: training_round.RoundHead) -> None:
        """Open a round; one that is open already stays as it is: its task was paused and resumed meanwhile."""
        if self._state is not None and self._state.head.number >= head.number:
            return
        opened, actions = training_round.begin(head)
        self._state = opened

        def write(tx: Transaction) -> None:
            tx.add_round(
                RoundRow(
                    task=self._name,
                    number=head.number,
                    kind=head.plan.kind,
                    phase="selecting",
                    state=msgspec.msgpack.encode(opened),
                    transition_count=0,
                    base_version=head.base_version,
                    opened_at=tx.now_s,
                )
            )
            tx.record("round-opened", task=self._name, round_number=head.number, plan=head.plan.kind)

        self._office.commit(write)
        for action in actions:
            self._perform(action)

    def offer(self, candidate: Candidate) -> None:
        """A device checked in for this round."""
        with self._office.database.transaction() as tx:
            population = tx.device_count()
        self.advance(training_round.CheckedIn(candidate, population))

    def report(self, device: str, report: messages.Report) -> None:
        """A device reports; one for an earlier round is answered from that round's record."""
        current = self._state
        if current is not None and report.round == current.head.number:
            self.advance(training_round.Reported(device, report))
            return
        with self._office.database.transaction() as tx:
            row = tx.round(self._name, report.round)
            past = None if row is None else _STATES.decode(row.state)
        verdict: messages.Verdict = "not-selected"
        if isinstance(past, training_round.Completed):
            verdict = "accepted" if any(one.device == device for one in past.accepted) else "late"
        elif past is not None:
            verdict = "late"
        if verdict == "late" and not isinstance(past, training_round.Selecting | None) and device in past.cohort:
            self._office.commit(
                lambda tx: tx.record("report-late", task=self._name, round_number=report.round, device=device)
            )
        self._acknowledge(device, report.round, verdict)

    def give_back(self, device: str, message: messages.Abandonment) -> None:
        """A device will not report."""
        if self._state is not None and message.round == self._state.head.number:
            self._office.intake.forget(device)
            self.advance(training_round.AssignmentGivenBack(device, message.why))

    def judge_update(self, device: str, *, is_damaged: bool = False) -> None:
        """The update that ``device`` announced is whole on disk, or turned out to be damaged."""
        current = self._state
        report = dict(current.announced).get(device) if isinstance(current, training_round.Collecting) else None
        if current is None or report is None:
            return
        verdict: messages.Verdict = "digest-mismatch"
        if not is_damaged:
            verdict = self._office.intake.judge(
                device, report, current.head, self._model.layout.update_size, self._model.layout.digest
            )
        self._office.intake.forget(device)
        if verdict != "accepted" and report.update is not None:
            self._office.registry.drop(report.update.digest)
        self.advance(training_round.UpdateJudged(device, verdict))

    def advance(self, event: training_round.RoundEvent) -> None:
        """Feed the machine one event: journal what it says, then do what it asks for."""
        before = self._state
        if before is None:
            return
        after, actions = training_round.step(before, event)
        self._state = after
        if after != before and not isinstance(after, training_round.Selecting):
            self._office.commit(lambda tx: self._save_round(tx, before, event, after))
        if after != before or actions:
            names = " ".join(type(action).__name__ for action in actions)
            _log.info(
                "round %s/%d %s --%s--> %s [%s]",
                self._name,
                after.head.number,
                type(before).__name__,
                type(event).__name__,
                type(after).__name__,
                names,
            )
        for action in actions:
            try:
                self._perform(action)
            except AdapterError as error:
                _log.warning("%s: %s", type(action).__name__, error)  # One that fails must not cost those after it.

    def _save_round(
        self,
        tx: Transaction,
        before: training_round.RoundState,
        event: training_round.RoundEvent,
        after: training_round.RoundState,
    ) -> None:
        row = tx.get_round(self._name, after.head.number)
        row.state, row.phase = msgspec.msgpack.encode(after), type(after).__name__.lower()
        row.transition_count += 1
        number = after.head.number
        if isinstance(before, training_round.Selecting) and isinstance(after, training_round.Collecting):
            row.assignment_count = len(after.cohort)
            tx.record("cohort-selected", task=self._name, round_number=number, devices=len(after.cohort))
        elif isinstance(event, training_round.UpdateJudged | training_round.Reported):
            device = event.device
            accepted = accepted_of(after)
            if len(accepted) > len(accepted_of(before)):
                tx.record("report-accepted", task=self._name, round_number=number, device=device)
            elif isinstance(after, training_round.Collecting | training_round.Abandoned) and isinstance(
                before, training_round.Collecting
            ):
                for refused in after.refused[len(before.refused) :]:
                    tx.record(
                        "report-refused", task=self._name, round_number=number, device=device, verdict=refused.verdict
                    )
        elif isinstance(event, training_round.AssignmentGivenBack):
            tx.record("assignment-given-back", task=self._name, round_number=number, device=event.device, why=event.why)

    def _perform(self, action: training_round.RoundAction) -> None:
        office = self._office
        match action:
            case training_round.AwaitSelection(after_s):
                office.inbox.set_timer(f"selection/{self._name}", after_s)
            case training_round.AwaitDeadline(after_s):
                office.inbox.cancel_timer(f"selection/{self._name}")
                office.inbox.set_timer(f"deadline/{self._name}", after_s)
            case training_round.Assign(candidates):
                self._assign(candidates)
            case training_round.TurnAway(candidates):
                for candidate in candidates:
                    window = _rejected_window(office.settings.pacing)
                    office.send(candidate.device, messages.Rejection(candidate.check_in_id, "not-selected", window))
            case training_round.ExpectUpdate(device, report):
                self._expect_update(device, report)
            case training_round.Acknowledge(device, verdict):
                if self._state is not None:
                    self._acknowledge(device, self._state.head.number, verdict)
            case training_round.Cancel(devices):
                self._cancel(devices)
            case training_round.Aggregate(accepted):
                self._aggregate(accepted)
            case training_round.Finish(waiting):
                self._finish(waiting)
            case _:
                assert_never(action)

    def _assign(self, candidates: tuple[Candidate, ...]) -> None:
        if self._state is None:
            return
        head = self._state.head
        needs = {candidate.device: self._model.artifacts_for(candidate.held) for candidate in candidates}
        all_needs = [artifact for artifacts in needs.values() for artifact in artifacts]
        shared = {artifact.blob for artifact in all_needs if all_needs.count(artifact) > 1}
        for candidate in candidates:
            fetch = tuple(
                msgspec.structs.replace(artifact, multicast=artifact.blob in shared)
                for artifact in needs[candidate.device]
            )
            assignment = messages.Assignment(
                check_in_id=candidate.check_in_id,
                task=self._name,
                round=head.number,
                plan=head.plan,
                base=self._model.reference,
                bundle=self._model.bundle.digest,
                bundle_signature=self._model.bundle_signature,
                fetch=fetch,
                deadline_s=head.settings.reporting_s,
            )
            self._office.send(candidate.device, assignment)
        for blob in dict.fromkeys(artifact.blob for artifact in all_needs if artifact.blob in shared):
            self._office.multicast(self._name, blob)

    def _expect_update(self, device: str, report: messages.Report) -> None:
        if report.update is None:
            return
        try:
            is_whole = self._office.intake.expect(device, report.update)
        except AdapterError as error:
            _log.warning("the update of %s cannot be taken: %s", device, error)
            return
        if is_whole:
            self.judge_update(device)

    def _acknowledge(self, device: str, round_number: int, verdict: messages.Verdict) -> None:
        pacing = self._office.settings.pacing
        window = messages.RetryWindow(pacing.accepted_min_s, pacing.accepted_max_s)
        if verdict != "accepted":
            window = _rejected_window(pacing)
        self._office.send(device, messages.Acknowledgement(self._name, round_number, verdict, window))

    def _cancel(self, devices: tuple[str, ...]) -> None:
        if self._state is None:
            return
        window = _rejected_window(self._office.settings.pacing)
        for device in devices:
            self._office.intake.forget(device)
            self._office.send(device, messages.Cancellation(self._name, self._state.head.number, window))

    def _aggregate(self, accepted: tuple[training_round.Accepted, ...]) -> None:
        if self._state is None:
            return
        head = self._state.head
        self._office.inbox.cancel_timer(f"deadline/{self._name}")
        if head.plan.kind == "train" and self._model.reference.version == head.base_version:
            try:
                total = self._sum(head, accepted)
            except (RemoteProtocolError, AdapterError, LocalMisuseError) as error:
                _log.exception("round %s/%d cannot be aggregated", self._name, head.number)
                self.advance(training_round.Aborted(f"cannot be aggregated: {error}"))
                return
            try:
                self._model.advance(total.mean())
            except AdapterError as error:
                _log.warning("round %s/%d: %s; trying again in %.0f s", self._name, head.number, error, DISK_RETRY_S)
                self._office.inbox.set_timer(f"again/{self._name}", DISK_RETRY_S)
                return
            self._office.commit(lambda tx: tx.add_checkpoint(self._model.newest_row(tx.now_s)))
            self._model.drop_superseded()
        self.advance(training_round.Aggregated())

    def _sum(self, head: training_round.RoundHead, accepted: tuple[training_round.Accepted, ...]) -> FixedPointSum:
        layout = self._model.layout
        caps = SumCaps(
            example_count_max=head.plan.example_count_max,
            step_max=UPDATE_STEP_MAX,
            magnitude_max=largest_symbol(layout.update_size, head.plan.step_ratio),
            report_count_max=len(accepted),
        )
        total = FixedPointSum(layout.update_size, caps)
        for one in sorted(accepted, key=lambda one: one.device):
            update = self._office.intake.read(one.device, one.update or b"", head, layout.update_size, layout.digest)
            total.add(update.step, update.symbols, example_count=one.example_count)
        return total


def accepted_of(state: training_round.RoundState) -> tuple[training_round.Accepted, ...]:
    """Return the reports that count so far."""
    return () if isinstance(state, training_round.Selecting) else state.accepted


def resting_window(pacing: PacingSettings) -> messages.RetryWindow:
    """When to come back while there is nothing to do."""
    return messages.RetryWindow(pacing.resting_min_s, pacing.resting_max_s)


def _rejected_window(pacing: PacingSettings) -> messages.RetryWindow:
    return messages.RetryWindow(pacing.rejected_min_s, pacing.rejected_max_s)
