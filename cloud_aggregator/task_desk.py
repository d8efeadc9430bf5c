"""One task at work: what the actions of `task_progress` mean, and what a round leaves behind when it is over."""

import hashlib
import logging

import msgspec

from cloud_aggregator import commands, task_progress, training_round
from cloud_aggregator.adapters.database import Transaction
from cloud_aggregator.adapters.model_registry import TaskModel
from cloud_aggregator.adapters.schema import TaskRow
from cloud_aggregator.round_desk import DISK_RETRY_S, Office, RoundDesk, accepted_of, resting_window
from cloud_aggregator.selection import Candidate, round_seed
from federated_core.errors import AdapterError, LocalMisuseError, UntrustedReleaseError
from federated_core.learning.algorithms import FederatedAlgorithm, federated_averaging
from federated_core.learning.server_optimizers import sgd
from federated_core.protocol import keys, messages

_log = logging.getLogger(__name__)
_SETTINGS = msgspec.msgpack.Decoder(task_progress.TaskSettings)
_TASK_STATES: msgspec.msgpack.Decoder[task_progress.TaskState] = msgspec.msgpack.Decoder(task_progress.TaskState)


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
        self.rounds = RoundDesk(office, name, model, self._finish)
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
                desk.rounds.restore(newest.state)
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
        current = self.rounds.state
        if current is not None and current.head.number == _round_number(self._state):
            self.rounds.advance(training_round.Restarted())
        else:
            self._open_next(self._state)

    def pause(self) -> None:
        """Open no more rounds for now."""
        self._refuse_if_finished()
        self._advance_task(task_progress.PauseAsked())

    def unpause(self) -> None:
        """Go on."""
        self._refuse_if_finished()
        self._advance_task(task_progress.ResumeAsked())

    def abort(self) -> None:
        """End the task and its open round."""
        self._refuse_if_finished()
        self._advance_task(task_progress.AbortAsked())

    def _refuse_if_finished(self) -> None:
        if isinstance(self._state, task_progress.Finished):
            raise LocalMisuseError(f"task {self._name!r} is finished: {self._state.why}")

    def ring(self, timer: str) -> None:
        """A timer of this task is due."""
        match timer:
            case "selection":
                self.rounds.advance(training_round.SelectionDue())
            case "deadline":
                self.rounds.advance(training_round.DeadlinePassed())
            case "open":
                self._open_next(_without_backoff(self._state))
            case "again":
                self.rounds.advance(training_round.Restarted())

    def check_in(self, device: str, check_in: messages.CheckIn) -> None:
        """A device offers itself."""
        held = next((one for one in check_in.held if one.task == self._name), None)
        candidate = Candidate(device, check_in.check_in_id, held)

        def write(tx: Transaction) -> None:
            tx.see_device(device, check_in.agent_version, check_in.engine)

        self._office.commit(write)
        if self.rounds.is_open:
            self.rounds.offer(candidate)
        else:
            self._waiting = (*(other for other in self._waiting if other.device != device), candidate)

    # --- Between rounds

    def _finish(self, waiting: tuple[Candidate, ...]) -> None:
        ended = self.rounds.state
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
            row.report_count = len(accepted_of(ended))
            row.example_count = sum(one.example_count for one in accepted_of(ended))
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
        for one in accepted_of(ended):
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
        _log.info(
            "task %s %s --%s--> %s", self._name, type(before).__name__, type(event).__name__, type(self._state).__name__
        )
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
                    if not self._flush():
                        return
                case task_progress.AbortRound():
                    self.rounds.advance(training_round.Aborted("aborted by the operator"))

    def _open_next(self, state: task_progress.TaskState) -> None:
        """Open the round that ``state`` is in, once the exact parameters are published if they are due."""
        if isinstance(state, task_progress.Evaluating) and not self._model.is_exact and not self._flush():
            return
        self._perform_task(task_progress.open_next(state, self._settings))

    def _flush(self) -> bool:
        """Publish the exact parameters; False if that must be tried again."""
        try:
            self._model.flush()
        except AdapterError as error:
            _log.warning("task %s: %s; trying again in %.0f s", self._name, error, DISK_RETRY_S)
            self._office.inbox.set_timer(f"open/{self._name}", DISK_RETRY_S)
            return False
        self._office.commit(lambda tx: tx.add_checkpoint(self._model.newest_row(tx.now_s)))
        self._model.drop_superseded()
        return True

    def _open_round(self, action: task_progress.OpenRound) -> None:
        plan = msgspec.structs.replace(self._settings.plan, kind=action.kind, learning_rate=action.learning_rate)
        self.rounds.open(
            training_round.RoundHead(
                task=self._name,
                number=action.number,
                plan=plan,
                base_version=self._model.reference.version,
                base=self._model.reference.digest,
                seed=round_seed(self._office.selection_secret, self._name, action.number),
                settings=self._settings.rounds,
            )
        )
        waiting, self._waiting = self._waiting, ()
        for candidate in waiting:
            self.rounds.offer(candidate)


def _algorithm(settings: task_progress.TaskSettings) -> FederatedAlgorithm:
    return federated_averaging(server_optimizer=sgd(settings.server_learning_rate))


def _federated_metrics(accepted: tuple[training_round.Accepted, ...]) -> tuple[float | None, float | None]:
    """Accuracy and loss of the base checkpoint over all holdout examples of the devices that reported."""
    example_count = sum(one.metrics.example_count for one in accepted)
    if example_count == 0:
        return None, None
    correct_count = sum(one.metrics.correct_count for one in accepted)
    return correct_count / example_count, sum(one.metrics.loss_sum for one in accepted) / example_count


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
