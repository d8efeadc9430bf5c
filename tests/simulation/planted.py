"""The planted bugs of `planted-bugs.md`: each replaces one function of the product while a world runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from cloud_aggregator import round_desk, task_progress, training_round, update_intake
from cloud_aggregator.adapters import model_registry
from edge_agent import runtime, session
from edge_agent.runtime import Runtime
from federated_core.adapters import chunk_sender
from federated_core.errors import AdapterError
from federated_core.learning.aggregation import FixedPointSum
from federated_core.protocol import keys, messages, transfer

Make = Callable[[Any], Any]  # From the right function to the wrong one.


def _acts_before_journal(_right: Any) -> Any:
    def advance(self: Runtime, event: session.SessionEvent) -> None:
        before = self._state
        self._state, actions = session.step(before, event)
        after = self._state
        for action in actions:
            self._perform(action)
        if after != before:
            self._journal.save("session", self._state)

    return advance


def _desk_acts_before_commit(_right: Any) -> Any:
    def advance(self: round_desk.RoundDesk, event: training_round.RoundEvent) -> None:
        before = self._state
        assert before is not None
        after, actions = training_round.step(before, event)
        self._state = after
        for action in actions:
            self._perform(action)
        if after != before and not isinstance(after, training_round.Selecting):
            self._office.commit(lambda tx: self._save_round(tx, before, event, after))

    return advance


def _counts_twice(right: Any) -> Any:
    def judge(state: training_round.Collecting, device: str, report: messages.Report) -> training_round.Transition:
        if training_round._is_accepted(state.accepted, device):
            return training_round._announce(state, device, report), (training_round.ExpectUpdate(device, report),)
        return right(state, device, report)  # type: ignore[no-any-return]

    return judge


def _counts_uninvited(right: Any) -> Any:
    def judge(state: training_round.Collecting, device: str, report: messages.Report) -> training_round.Transition:
        if device not in state.cohort and not training_round._is_accepted(state.accepted, device):
            return training_round._announce(state, device, report), (training_round.ExpectUpdate(device, report),)
        return right(state, device, report)  # type: ignore[no-any-return]

    return judge


def _blind_to(verdict: messages.Verdict) -> Make:
    def make(right: Any) -> Any:
        def find_fault(head: training_round.RoundHead, report: messages.Report) -> messages.Verdict | None:
            found = right(head, report)
            return None if found == verdict else found

        return find_fault

    return make


def _unweighted(right: Any) -> Any:
    def add(self: FixedPointSum, step: float, symbols: Any, *, example_count: int) -> None:
        right(self, step, symbols, example_count=1)

    return add


def _applied_twice(_right: Any) -> Any:
    def aggregate(self: Any, accepted: tuple[training_round.Accepted, ...]) -> None:
        head = self._state.head
        self._office.inbox.cancel_timer(f"deadline/{self._name}")
        if head.plan.kind == "train":
            self._model.advance(self._sum(head, accepted).mean())
            self._office.commit(lambda tx: tx.add_checkpoint(self._model.newest_row(tx.now_s)))
        self.advance(training_round.Aggregated())

    return aggregate


def _restores_older(right: Any) -> Any:
    def restore(self: Any, task: Any, rows: Any, algorithm: Any) -> Any:
        return right(self, task, rows[:-1] or rows, algorithm)

    return restore


def _closes_late(right: Any) -> Any:
    def close_if_done(state: training_round.Collecting, actions: Any) -> Any:
        if len(state.accepted) == state.head.settings.goal and training_round.outstanding(state):
            return state, actions
        return right(state, actions)

    return close_if_done


def _on(state: type, event: type, wrong: Callable[[Any, Any, Any], Any]) -> Make:
    """Let a machine do something else for one pair; ``wrong`` is given state, event and the right transition."""

    def make(right: Any) -> Any:
        def step(now: Any, what: Any, *more: Any) -> Any:
            result = right(now, what, *more)
            return wrong(now, what, result) if isinstance(now, state) and isinstance(what, event) else result

        return step

    return make


def _ignored(state: Any, _event: Any, _right: Any) -> Any:
    return state, ()


def _abandons_at_minimum(state: training_round.Collecting, _event: Any, right: Any) -> Any:
    if len(state.accepted) == state.head.settings.report_count_min:
        return training_round._abandon(state, "too few")
    return right


def _without(*kinds: type) -> Callable[[Any, Any, Any], Any]:
    return lambda _state, _event, right: (right[0], tuple(one for one in right[1] if not isinstance(one, kinds)))


def _leaves_trainer(_right: Any) -> Any:
    def stop_work(self: Runtime) -> None:
        for name in ("deadline", "watch", "quiet"):
            self._inbox.cancel_timer(name)
        self._fetcher.give_up()

    return stop_work


def _never_kills(right: Any) -> Any:
    return lambda self, name: None if name == "kill" else right(self, name)


def _seals_anew(right: Any) -> Any:
    def perform(self: Runtime, action: session.SessionAction) -> None:
        if isinstance(action, session.SendReport) and action.report.update is not None:
            data = self._blobs.get(action.report.update.digest.hex())
            fresh = keys.seal(self._identity.token.seal_key, data, b"")
            reference = messages.BlobReference(bytes.fromhex(self._blobs.put(fresh)), len(fresh))
            action = session.SendReport(msgspec.structs.replace(action.report, update=reference))
        right(self, action)

    return perform


def _does_not_answer_past(right: Any) -> Any:
    def report(self: Any, device: str, report: messages.Report) -> None:
        if isinstance(self._state, training_round.Collecting) and report.round == self._state.head.number:
            right(self, device, report)

    return report


def _accepts_past(right: Any) -> Any:
    def report(self: Any, device: str, report: messages.Report) -> None:
        if self._state is not None and report.round == self._state.head.number:
            right(self, device, report)
        else:
            self._acknowledge(device, report.round, "accepted")

    return report


def _same_number(state: Any, _event: Any, right: Any) -> Any:
    after, _ = right
    if not isinstance(after, task_progress.Training):
        return right
    again = msgspec.structs.replace(after, round_number=state.round_number)
    return again, (task_progress.OpenRound(again.round_number, "train", 0.05, 1.0),)


def _counts_two(right: Any) -> Any:
    def after_round(state: task_progress.Training, accuracy: float | None, settings: Any) -> Any:
        return right(msgspec.structs.replace(state, trained_count=state.trained_count + 1), accuracy, settings)

    return after_round


def _believes_full_disk(_right: Any) -> Any:
    def save(self: Runtime, state: session.SessionState) -> bool:
        with suppress(AdapterError):
            self._journal.save("session", state)
        return True

    return save


_SESSION, _ROUND, _TASK = (session, "step"), (training_round, "step"), (task_progress, "step")

PLANTED: dict[str, tuple[tuple[Any, str], Make]] = {
    "agent-acts-before-journal": ((Runtime, "_advance"), _acts_before_journal),
    "aggregator-acts-before-journal": ((round_desk.RoundDesk, "advance"), _desk_acts_before_commit),
    "count-twice": ((training_round, "_judge_report"), _counts_twice),
    "count-uninvited": ((training_round, "_judge_report"), _counts_uninvited),
    "wrong-base-accepted": ((training_round, "find_fault"), _blind_to("wrong-base")),
    "too-many-examples-accepted": ((training_round, "find_fault"), _blind_to("too-many-examples")),
    "too-few-examples-accepted": ((training_round, "find_fault"), _blind_to("too-few-examples")),
    "norm-gate-open": ((update_intake, "_bound_norm"), lambda _: lambda update, _head: update),
    "decoder-trusted": ((update_intake.UpdateIntake, "judge"), lambda _: lambda *_args: "accepted"),
    "sum-unweighted": ((FixedPointSum, "add"), _unweighted),
    "sum-forgets-one": (
        (round_desk.RoundDesk, "_sum"),
        lambda right: lambda self, head, accepted: right(self, head, accepted[:-1]),
    ),
    "aggregate-applied-twice": ((round_desk.RoundDesk, "_aggregate"), _applied_twice),
    "old-version-restored": ((model_registry.ModelRegistry, "restore"), _restores_older),
    "goal-off-by-one": ((training_round, "_close_if_done"), _closes_late),
    "minimum-off-by-one": (
        _ROUND,
        _on(training_round.Collecting, training_round.DeadlinePassed, _abandons_at_minimum),
    ),
    "cohort-off-by-one": ((training_round, "cohort_size"), lambda right: lambda *args: right(*args) + 1),
    "trains-while-ineligible": (_SESSION, _on(session.Training, session.BecameIneligible, _ignored)),
    "trainer-not-stopped": ((Runtime, "_stop_work"), _leaves_trainer),
    "trainer-never-killed": ((Runtime, "_ring"), _never_kills),
    "deadline-ignored": (_SESSION, _on(session.Training, session.DeadlinePassed, _ignored)),
    "acknowledgement-for-another-round": ((session, "_is_for"), lambda _: lambda _answer, _work: True),
    "sealed-anew": ((Runtime, "_perform"), _seals_anew),
    "noise-not-keyed": (
        (Runtime, "_derive_key"),
        lambda _: lambda self, _purpose, _assignment: self._chance.token_bytes(16),
    ),
    "restart-forgets-deadline": (
        _ROUND,
        _on(training_round.Collecting, training_round.Restarted, _without(training_round.AwaitDeadline)),
    ),
    "restart-forgets-sum": (
        _ROUND,
        _on(training_round.Aggregating, training_round.Restarted, _without(training_round.Aggregate)),
    ),
    "restart-forgets-uploads": (
        _ROUND,
        _on(training_round.Collecting, training_round.Restarted, _without(training_round.ExpectUpdate)),
    ),
    "silence-ignored": (_SESSION, _on(session.CheckedIn, session.AnswerOverdue, _ignored)),
    "late-not-answered": ((round_desk.RoundDesk, "report"), _does_not_answer_past),
    "chunks-asked-once": (
        (transfer, "step_fetch"),
        _on(transfer.Fetching, transfer.Quiet, _without(transfer.AskFor)),
    ),
    "window-never-frees": ((chunk_sender.ChunkSender, "sent"), lambda _: lambda _self, _ticket: None),
    "round-number-reused": (_TASK, _on(task_progress.Training, task_progress.RoundAbandoned, _same_number)),
    "round-counted-twice": ((task_progress, "_after_training_round"), _counts_two),
    "past-always-accepted": ((round_desk.RoundDesk, "report"), _accepts_past),
    "full-disk-forgets": ((runtime.Runtime, "_save"), _believes_full_disk),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Run what is inside with one bug in the product."""
    (owner, attribute), make = PLANTED[name]
    right = owner.__dict__[attribute]
    setattr(owner, attribute, make(right))
    try:
        yield
    finally:
        setattr(owner, attribute, right)
