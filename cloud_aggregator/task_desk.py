"""One task at work: its two machines (task and round), and what their actions mean in messages, files and rows."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable
from typing import Any, assert_never

import msgspec

from cloud_aggregator import commands, task_progress, training_round
from cloud_aggregator.adapters.database import Database, Transaction
from cloud_aggregator.adapters.model_registry import ModelRegistry, TaskModel
from cloud_aggregator.adapters.schema import RoundRow, TaskRow
from cloud_aggregator.config import AggregatorSettings, PacingSettings
from cloud_aggregator.selection import Candidate, round_seed
from cloud_aggregator.traffic import TrafficMeter
from cloud_aggregator.update_intake import UpdateIntake
from federated_core.adapters.inbox import Inbox
from federated_core.errors import AdapterError, UntrustedReleaseError
from federated_core.learning.aggregation import FixedPointSum, SumCaps
from federated_core.learning.algorithms import FederatedAlgorithm, federated_averaging
from federated_core.learning.server_optimizers import sgd
from federated_core.learning.update_codec import largest_symbol
from federated_core.protocol import keys, messages

_log = logging.getLogger(__name__)
_SETTINGS = msgspec.msgpack.Decoder(task_progress.TaskSettings)
_TASK_STATES: msgspec.msgpack.Decoder[task_progress.TaskState] = msgspec.msgpack.Decoder(task_progress.TaskState)
_ROUND_STATES: msgspec.msgpack.Decoder[training_round.RoundState] = msgspec.msgpack.Decoder(training_round.RoundState)


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


class TaskDesk:
    """Made by `create` when an operator begins a task, by `restore` when the aggregator starts again."""

    def __init__(
        self,
        office: Office,
        name: str,
        settings: task_progress.TaskSettings,
        state: task_progress.TaskState,
        model: TaskModel,
    ) -> None:
        self._office = office
        self._name = name
        self._settings = settings
        self._state = state
        self._model = model
        self._round: training_round.RoundState | None = None
        self._waiting: tuple[Candidate, ...] = ()  # Checked in between two rounds.

    @classmethod
    def create(cls, office: Office, command: commands.CreateTask, model_public: bytes) -> "TaskDesk":
        """Begin a task; UntrustedReleaseError if the model key did not sign its bundle."""
        statement = keys.bundle_statement(hashlib.sha256(command.bundle).digest())
        if not keys.is_signed_by(model_public, command.bundle_signature, statement):
            raise UntrustedReleaseError(f"task {command.name!r}: its bundle is not signed by this fleet's model key")
        model = office.registry.begin(
            command.name,
            command.bundle,
            command.bundle_signature,
            command.checkpoint,
            command.model,
            _algorithm(command.settings),
        )
        desk = cls(office, command.name, command.settings, task_progress.Training(), model)

        def write(tx: Transaction) -> None:
            tx.add_task(
                TaskRow(
                    name=command.name,
                    settings=msgspec.msgpack.encode(command.settings),
                    bundle=model.bundle.digest,
                    bundle_signature=command.bundle_signature,
                    model=model.original.digest,
                    state=msgspec.msgpack.encode(desk._state),
                    created_at=tx.now_s,
                )
            )
            tx.add_checkpoint(model.newest_row(tx.now_s))
            tx.record("task-created", task=command.name, parameters=model.layout.size)

        office.commit(write)
        return desk

    @classmethod
    def restore(cls, office: Office, name: str) -> "TaskDesk":
        """Take up a task where the database says it is."""
        with office.database.transaction() as tx:
            row = tx.get_task(name)
            settings = _SETTINGS.decode(row.settings)
            model = office.registry.restore(row, tx.checkpoints(name), _algorithm(settings))
            desk = cls(office, name, settings, _TASK_STATES.decode(row.state), model)
            newest = tx.newest_round(name)
            if newest is not None:
                desk._round = _ROUND_STATES.decode(newest.state)
        return desk

    @property
    def model(self) -> TaskModel:
        """The task's parameters and what devices fetch of them."""
        return self._model

    @property
    def is_open(self) -> bool:
        """Whether devices may check in for this task."""
        return isinstance(self._state, task_progress.Training | task_progress.Evaluating)

    @property
    def is_paused(self) -> bool:
        """Whether the operator paused it."""
        return isinstance(self._state, task_progress.Paused)

    # --- What happens to a task

    def resume(self) -> None:
        """Go on: with the round that was open, or with the next one."""
        current = self._round
        if current is not None and current.head.number == _round_number(self._state):
            self._advance(training_round.Restarted())
        else:
            self._perform_task(task_progress.open_next(self._state, self._settings))

    def pause(self) -> None:
        """Open no more rounds for now."""
        self._advance_task(task_progress.PauseAsked())

    def unpause(self) -> None:
        """Go on."""
        self._advance_task(task_progress.ResumeAsked())

    def abort(self) -> None:
        """End the task and its open round."""
        self._advance_task(task_progress.AbortAsked())

    def ring(self, timer: str) -> None:
        """A timer of this task is due."""
        match timer:
            case "selection":
                self._advance(training_round.SelectionDue())
            case "deadline":
                self._advance(training_round.DeadlinePassed())
            case "open":
                self._perform_task(task_progress.open_next(_without_backoff(self._state), self._settings))

    def check_in(self, device: str, check_in: messages.CheckIn) -> None:
        """A device offers itself."""
        held = next((one for one in check_in.held if one.task == self._name), None)
        candidate = Candidate(device, check_in.check_in_id, held)

        def write(tx: Transaction) -> None:
            tx.see_device(device, check_in.agent_version, check_in.engine)

        self._office.commit(write)
        if self._round is None or isinstance(self._round, training_round.Completed | training_round.Abandoned):
            self._waiting = (*(other for other in self._waiting if other.device != device), candidate)
            return
        self._offer(candidate)

    def report(self, device: str, report: messages.Report) -> None:
        """A device reports; one for an earlier round is answered from that round's record."""
        current = self._round
        if current is not None and report.round == current.head.number:
            self._advance(training_round.Reported(device, report))
            return
        with self._office.database.transaction() as tx:
            row = tx.round(self._name, report.round)
            past = None if row is None else _ROUND_STATES.decode(row.state)
        verdict: messages.Verdict = "not-selected"
        if isinstance(past, training_round.Completed):
            verdict = "accepted" if any(one.device == device for one in past.accepted) else "late"
        elif past is not None:
            verdict = "late"
        self._acknowledge(device, report.round, verdict)

    def give_back(self, device: str, message: messages.Abandonment) -> None:
        """A device will not report."""
        if self._round is not None and message.round == self._round.head.number:
            self._office.intake.forget(device)
            self._advance(training_round.AssignmentGivenBack(device, message.why))

    def judge_update(self, device: str, *, is_damaged: bool = False) -> None:
        """The update that ``device`` announced is whole on disk, or turned out to be damaged."""
        current = self._round
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
        self._advance(training_round.UpdateJudged(device, verdict))

    # --- The round machine

    def _advance(self, event: training_round.RoundEvent) -> None:
        before = self._round
        if before is None:
            return
        after, actions = training_round.step(before, event)
        self._round = after
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
            self._perform(action)

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
            accepted = _accepted_of(after)
            if len(accepted) > len(_accepted_of(before)):
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
                if self._round is not None:
                    self._acknowledge(device, self._round.head.number, verdict)
            case training_round.Cancel(devices):
                self._cancel(devices)
            case training_round.Aggregate(accepted):
                self._aggregate(accepted)
            case training_round.Finish(waiting):
                self._finish(waiting)
            case _:
                assert_never(action)

    def _offer(self, candidate: Candidate) -> None:
        with self._office.database.transaction() as tx:
            population = tx.device_count()
        self._advance(training_round.CheckedIn(candidate, population))

    def _assign(self, candidates: tuple[Candidate, ...]) -> None:
        if self._round is None:
            return
        head = self._round.head
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
        if self._round is None:
            return
        window = _rejected_window(self._office.settings.pacing)
        for device in devices:
            self._office.intake.forget(device)
            self._office.send(device, messages.Cancellation(self._name, self._round.head.number, window))

    def _aggregate(self, accepted: tuple[training_round.Accepted, ...]) -> None:
        if self._round is None:
            return
        head = self._round.head
        self._office.inbox.cancel_timer(f"deadline/{self._name}")
        if head.plan.kind == "train" and self._model.reference.version == head.base_version:
            layout = self._model.layout
            caps = SumCaps(
                example_count_max=head.plan.example_count_max,
                magnitude_max=largest_symbol(layout.update_size, head.plan.step_ratio),
                report_count_max=len(accepted),
            )
            total = FixedPointSum(layout.update_size, caps)
            for one in sorted(accepted, key=lambda one: one.device):
                update = self._office.intake.read(one.device, one.update or b"", head, layout.update_size, layout.digest)
                total.add(update.step, update.symbols, example_count=one.example_count)
            self._model.advance(total.mean())
            self._office.commit(lambda tx: tx.add_checkpoint(self._model.newest_row(tx.now_s)))
        self._advance(training_round.Aggregated())

    def _finish(self, waiting: tuple[Candidate, ...]) -> None:
        ended = self._round
        assert ended is not None
        self._waiting = (*waiting, *self._waiting)
        for name in ("selection", "deadline"):
            self._office.inbox.cancel_timer(f"{name}/{self._name}")
        event: task_progress.TaskEvent = task_progress.RoundAbandoned()
        accuracy, loss = None, None
        if isinstance(ended, training_round.Completed):
            accuracy, loss = _federated_metrics(ended.accepted)
            event = task_progress.RoundCompleted(accuracy)
        self._state, actions = task_progress.step(self._state, event, self._settings)
        traffic = self._office.traffic.take()

        def write(tx: Transaction) -> None:
            row = tx.get_round(self._name, ended.head.number)
            row.closed_at = tx.now_s
            row.accuracy, row.loss = accuracy, loss
            row.report_count = len(_accepted_of(ended))
            row.example_count = sum(one.example_count for one in _accepted_of(ended))
            row.bytes_up, row.bytes_down = traffic.up, traffic.down
            row.bytes_keyframe, row.bytes_bundle = traffic.keyframe, traffic.bundle
            tx.record(
                f"round-{row.phase}",
                task=self._name,
                round_number=row.number,
                plan=row.kind,
                why=ended.why if isinstance(ended, training_round.Abandoned) else None,
                assignments=row.assignment_count,
                reports=row.report_count,
                examples=row.example_count,
                accuracy_of_base=accuracy,
                loss_of_base=loss,
                bytes_up=row.bytes_up,
                bytes_down=row.bytes_down,
                bytes_keyframe=row.bytes_keyframe,
                bytes_bundle=row.bytes_bundle,
                seconds=round(tx.now_s - row.opened_at, 3),
                version=self._model.reference.version,
                checkpoint=self._model.reference.digest.hex(),
            )
            self._save_task(tx)

        self._office.commit(write)
        for one in _accepted_of(ended):
            if one.update is not None:
                self._office.registry.drop(one.update)
        self._perform_task(actions)
        if not self.is_open:
            self._send_waiting_away()

    def _send_waiting_away(self) -> None:
        waiting, self._waiting = self._waiting, ()
        why: messages.RejectionReason = "task-paused" if self.is_paused else "task-finished"
        for candidate in waiting:
            window = resting_window(self._office.settings.pacing)
            self._office.send(candidate.device, messages.Rejection(candidate.check_in_id, why, window))

    # --- The task machine

    def _advance_task(self, event: task_progress.TaskEvent) -> None:
        before = self._state
        self._state, actions = task_progress.step(before, event, self._settings)
        _log.info("task %s %s --%s--> %s", self._name, type(before).__name__, type(event).__name__, type(self._state).__name__)
        self._office.commit(self._save_task)
        self._perform_task(actions)

    def _save_task(self, tx: Transaction) -> None:
        row = tx.get_task(self._name)
        state = msgspec.msgpack.encode(self._state)
        if row.state != state:
            row.state = state
            if isinstance(self._state, task_progress.Finished):
                tx.record(
                    "task-finished",
                    task=self._name,
                    why=self._state.why,
                    version=self._model.reference.version,
                    checkpoint=self._model.reference.digest.hex(),
                    bytes_enrollment=tx.counter("bytes_enrollment"),
                )

    def _perform_task(self, actions: tuple[task_progress.TaskAction, ...]) -> None:
        for action in actions:
            match action:
                case task_progress.OpenRound(after_s=after_s) if after_s > 0.0:
                    self._office.inbox.set_timer(f"open/{self._name}", after_s)
                case task_progress.OpenRound():
                    self._open_round(action)
                case task_progress.FlushCheckpoint():
                    self._model.flush()
                    self._office.commit(lambda tx: tx.add_checkpoint(self._model.newest_row(tx.now_s)))
                case task_progress.AbortRound():
                    self._advance(training_round.Aborted("aborted by the operator"))

    def _open_round(self, action: task_progress.OpenRound) -> None:
        plan = msgspec.structs.replace(self._settings.plan, kind=action.kind, learning_rate=action.learning_rate)
        head = training_round.RoundHead(
            task=self._name,
            number=action.number,
            plan=plan,
            base_version=self._model.reference.version,
            base=self._model.reference.digest,
            seed=round_seed(self._office.selection_secret, self._name, action.number),
            settings=self._settings.rounds,
        )
        self._round, actions = training_round.begin(head)
        opened = self._round

        def write(tx: Transaction) -> None:
            tx.add_round(
                RoundRow(
                    task=self._name,
                    number=action.number,
                    kind=action.kind,
                    phase="selecting",
                    state=msgspec.msgpack.encode(opened),
                    transition_count=0,
                    base_version=head.base_version,
                    opened_at=tx.now_s,
                )
            )
            tx.record("round-opened", task=self._name, round_number=action.number, plan=action.kind)

        self._office.commit(write)
        for begin_action in actions:
            self._perform(begin_action)
        waiting, self._waiting = self._waiting, ()
        for candidate in waiting:
            self._offer(candidate)


def _algorithm(settings: task_progress.TaskSettings) -> FederatedAlgorithm:
    return federated_averaging(server_optimizer=sgd(settings.server_learning_rate))


def _accepted_of(state: training_round.RoundState) -> tuple[training_round.Accepted, ...]:
    return () if isinstance(state, training_round.Selecting) else state.accepted


def _federated_metrics(accepted: tuple[training_round.Accepted, ...]) -> tuple[float | None, float | None]:
    """Accuracy and loss of the base checkpoint over all holdout examples of the devices that reported."""
    example_count = sum(one.metrics.example_count for one in accepted)
    if example_count == 0:
        return None, None
    correct_count = sum(one.metrics.correct_count for one in accepted)
    return correct_count / example_count, sum(one.metrics.loss_sum for one in accepted) / example_count


def resting_window(pacing: PacingSettings) -> messages.RetryWindow:
    """When to come back while there is nothing to do."""
    return messages.RetryWindow(pacing.resting_min_s, pacing.resting_max_s)


def _rejected_window(pacing: PacingSettings) -> messages.RetryWindow:
    return messages.RetryWindow(pacing.rejected_min_s, pacing.rejected_max_s)


def _round_number(state: task_progress.TaskState) -> int | None:
    match state:
        case task_progress.Training(round_number) | task_progress.Evaluating(round_number):
            return round_number
        case task_progress.Paused(resume):
            return _round_number(resume)
        case _:
            return None


def _without_backoff(state: task_progress.TaskState) -> task_progress.TaskState:
    if isinstance(state, task_progress.Training | task_progress.Evaluating):
        return msgspec.structs.replace(state, abandoned_count=0)
    return state
