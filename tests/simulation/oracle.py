"""The checks: what must hold after every event, judged from what was said, journaled and committed.

It recomputes with its own formulas and never asks the machines. What it finds is kept in ``violations``; the world
stops at the first.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloud_aggregator import training_round
from cloud_aggregator.adapters.database import Database
from cloud_aggregator.adapters.model_registry import SavedState
from cloud_aggregator.adapters.schema import CheckpointRow
from cloud_aggregator.task_progress import TaskSettings
from edge_agent import session, work
from federated_core.errors import FallowError
from federated_core.learning.parameters import Layout
from federated_core.learning.update_codec import decode_update
from federated_core.protocol import messages, topics, wire
from tests.simulation.parties import DEVICE_MESSAGES
from tests.simulation.processes import Device

_AGGREGATOR_MESSAGES: msgspec.msgpack.Decoder[messages.AggregatorMessage] = msgspec.msgpack.Decoder(
    messages.AggregatorMessage
)
_ROUNDS: msgspec.msgpack.Decoder[training_round.RoundState] = msgspec.msgpack.Decoder(training_round.RoundState)
_SLACK_S = 0.5
_LIES_ABOUT_UPDATES = ("nan-step", "infinite-step", "huge-norm", "long-delta", "wrong-shape", "garbage", "silent-blob")


class Violation(msgspec.Struct, frozen=True):
    """A check that failed, when and why."""

    check: str
    at_s: float
    why: str


class Oracle:
    """Sees everything that one world's processes say and write."""

    def __init__(
        self,
        *,
        task: str,
        settings: TaskSettings,
        layout: Layout,
        database: Database,
        blobs: Path,
        now_s: Callable[[], float],
        devices: Mapping[str, Device],
    ) -> None:
        self.violations: list[Violation] = []
        self.crashes: dict[str, int] = {}
        self.round_states: dict[int, training_round.RoundState] = {}
        self.answered_at_s: dict[str, float] = {}
        self._task = task
        self._settings = settings
        self._layout = layout
        self._database = database
        self._blobs = blobs
        self._now_s = now_s
        self._devices = devices
        self._session: dict[str, session.SessionState] = {}
        self._deadline_at_s: dict[str, float] = {}
        self._ineligible_since_s: dict[str, float] = {}
        self._updates: dict[tuple[str, int], bytes] = {}  # Encoded, by device and round.
        self._reports: dict[tuple[str, int], messages.Report] = {}  # As last said.
        self._assigned: dict[int, set[str]] = {}
        self._versions: dict[int, bytes] = {}
        self._parameters: dict[int, NDArray[np.float32]] = {}
        self._heard_version = 0
        self._round_bytes = b""
        self._busy: set[str] = set()

    def complain(self, check: str, why: str) -> None:
        """A check failed."""
        self.violations.append(Violation(check, round(self._now_s(), 3), why))

    # --- What processes do (the world's `Witness`)

    def enter(self, name: str | None) -> None:
        """From here on ``name`` acts."""

    def saw_exception(self, name: str, error: Exception) -> None:
        """No input may bring a process down."""
        self.complain("no exception reaches the top", f"{name}: {type(error).__name__}: {error}")

    def saw_crash(self, name: str, call: str) -> None:
        """Count a crash by the call that it came in."""
        side = "aggregator" if name == topics.PREFIX else "agent"
        self.crashes[f"{side} at {call}"] = self.crashes.get(f"{side} at {call}", 0) + 1

    def saw_save(self, device: str, key: str, value: object) -> None:
        """Judge a step of a device's session."""
        if key != "session":
            return
        before = self._session.get(device, session.Resting())
        assert isinstance(value, session.SessionState)
        self._session[device] = value
        if isinstance(value, session.Fetching):
            self._deadline_at_s[device] = self._now_s() + value.assignment.deadline_s
        if isinstance(before, session.Reporting) and not isinstance(value, session.Reporting):
            self._judge_give_up(device, before.report)

    def saw_update(self, device: str, piece: work.Work, blob: bytes) -> None:
        """Keep an encoded update: the same work must give the same one."""
        known = self._updates.setdefault((device, piece.round), blob)
        if known != blob:
            self.complain("the same work gives the same update", f"{device} in round {piece.round}")

    def saw_trainer(self, device: str, *, is_busy: bool) -> None:
        """Know which trainers work."""
        self._ineligible_since_s.pop(device, None)
        (self._busy.add if is_busy else self._busy.discard)(device)

    def saw_step(self, machine: str, state: str, event: str, after: str, actions: tuple[str, ...]) -> None:
        """Judge a step by itself, where nothing else would show that it was forgotten."""
        if (machine, state, event, after) == ("fetch", "Fetching", "Quiet", "Fetching") and "AskFor" not in actions:
            self.complain("what is missing is asked for again", f"{actions}")

    def saw_send(self, name: str, topic: str, payload: bytes) -> None:
        """Judge what a process says, at the moment at which it says it."""
        frame = wire.decode_frame(payload)
        if name == topics.PREFIX:
            if isinstance(frame, wire.SignedFrame):
                self._judge_answer(topic.split("/")[4], _AGGREGATOR_MESSAGES.decode(frame.body))
            return
        is_liar = self._devices[name].lie is not None
        state = self._session.get(name, session.Resting())
        if isinstance(frame, wire.ChunkFrame):
            update = state.report.update if isinstance(state, session.Reporting) else None
            is_told = update is not None and update.digest.startswith(frame.digest_prefix)
            if not is_told and not is_liar:
                self._complain_of_saying(name, "a chunk", state)
            return
        self._judge_word(name, DEVICE_MESSAGES.decode(frame.body), state, is_liar=is_liar)

    # --- Devices

    def _judge_word(
        self, name: str, message: messages.DeviceMessage, state: session.SessionState, *, is_liar: bool
    ) -> None:
        match message:
            case messages.CheckIn(check_in_id):
                if not (isinstance(state, session.CheckedIn) and state.check_in_id == check_in_id):
                    self._complain_of_saying(name, "a check-in", state)
            case messages.Report():
                known = self._reports.get((name, message.round))
                if known is not None and known.update != message.update and not is_liar:
                    self.complain("one round, one update", f"{name} in round {message.round}")
                self._reports[name, message.round] = message
                if not is_liar and not (isinstance(state, session.Reporting) and state.report == message):
                    self._complain_of_saying(name, "a report", state)
            case messages.Abandonment():
                if not isinstance(state, session.Resting):
                    self._complain_of_saying(name, "an abandonment", state)
            case _:
                pass

    def _complain_of_saying(self, name: str, what: str, state: session.SessionState) -> None:
        self.complain("what a device says is true on its disk", f"{name} says {what}, its disk {type(state).__name__}")

    def _judge_give_up(self, device: str, report: messages.Report) -> None:
        state = self.round_states.get(report.round)
        is_decided = not isinstance(state, training_round.Collecting) or device not in _outstanding(state)
        if not is_decided:
            self.complain("a report is given up only when it is decided", f"{device} in round {report.round}")

    def check_trainers(self) -> None:
        """Nobody trains where it must not: looked at after every event."""
        now_s = self._now_s()
        for name in self._busy:
            device = self._devices[name]
            settings = device.settings
            reaction_s = settings.watch_interval_s + settings.trainer.grace_s + _SLACK_S
            if device.is_eligible:
                self._ineligible_since_s.pop(name, None)
            elif now_s - self._ineligible_since_s.setdefault(name, now_s) > reaction_s:
                self.complain("nobody trains while ineligible beyond the grace", name)
            deadline_s = self._deadline_at_s.get(name, math.inf)
            deadline_s = max(deadline_s, device.booted_at_s + self._settings.rounds.reporting_s)
            if now_s > deadline_s + settings.trainer.grace_s + _SLACK_S:
                self.complain("nobody trains long after the deadline", name)

    # --- The aggregator's words

    def _judge_answer(self, device: str, message: messages.AggregatorMessage) -> None:
        match message:
            case messages.Assignment():
                state = self.round_states.get(message.round)
                if not (isinstance(state, training_round.Collecting) and device in state.cohort):
                    self.complain("what is acknowledged or assigned is in the database", f"assignment of {device}")
                if message.base.version < self._heard_version:
                    self.complain("versions never go back", f"{message.base.version} after {self._heard_version}")
                self._heard_version = message.base.version
                self._assigned.setdefault(message.round, set()).add(device)
            case messages.Rejection():
                self.answered_at_s[device] = self._now_s()
            case messages.Acknowledgement():
                self.answered_at_s[device] = self._now_s()
                self._judge_acknowledgement(device, message)
            case _:
                pass

    def _judge_acknowledgement(self, device: str, message: messages.Acknowledgement) -> None:
        state = self.round_states.get(message.round)
        counted = {one.device: one for one in _accepted(state)}
        check = "what is acknowledged or assigned is in the database"
        if message.verdict == "accepted":
            if device not in counted:
                self.complain(check, f"{device} is told that it counts in round {message.round}")
            elif isinstance(state, training_round.Collecting | training_round.Aggregating):
                update = counted[device].update
                if update is not None and not (self._blobs / "blobs" / update.hex()).exists():
                    self.complain(check, f"the update of {device} in round {message.round} is not on disk")
        elif isinstance(state, training_round.Collecting) and device in _outstanding(state):
            self.complain(check, f"{device} is told {message.verdict} while its report is awaited")

    # --- The aggregator's disk

    def saw_commit(self) -> None:
        """Judge the newest round and the newest checkpoint, if they changed."""
        with self._database.transaction() as tx:
            row = tx.newest_round(self._task)
            checkpoint = tx.checkpoint(self._task, len(self._versions))
        if row is not None and row.state != self._round_bytes:
            self._round_bytes = row.state
            self._judge_round(row.number, _ROUNDS.decode(row.state))
        if checkpoint is not None:
            self._judge_checkpoint(checkpoint)

    def _judge_round(self, number: int, state: training_round.RoundState) -> None:
        before = self.round_states.get(number)
        self.round_states[number] = state
        if before is None and number <= max(self.round_states, default=0) - 1:
            self.complain("a round number is used once", f"{number}")
        if isinstance(before, training_round.Completed | training_round.Abandoned):
            self.complain("what is over is over", f"round {number} changed after its end")
        if isinstance(state, training_round.Selecting):
            return
        settings, cohort = state.head.settings, state.cohort
        wanted = max(settings.report_count_min, math.ceil(settings.goal * settings.overselection_ratio))
        if len(set(cohort)) != len(cohort) or len(cohort) > wanted:
            self.complain("a cohort has its size", f"{len(cohort)} devices in round {number}, wanted {wanted}")
        accepted = state.accepted
        names = [one.device for one in accepted]
        if len(set(names)) != len(names):
            self.complain("no device counts twice", f"round {number}: {names}")
        uninvited = set(names) - self._assigned.get(number, set())
        if uninvited or not set(names) <= set(cohort):
            self.complain("only selected devices count", f"round {number}: {sorted(uninvited)}")
        if not {one.device for one in _accepted(before)} <= set(names):
            self.complain("what is acknowledged or assigned is in the database", f"round {number} lost a report")
        is_collecting = isinstance(state, training_round.Collecting)
        if len(accepted) > settings.goal or (is_collecting and len(accepted) == settings.goal):
            self.complain("a round closes when its goal is reached", f"{len(accepted)} in round {number}")
        is_given_up = isinstance(state, training_round.Abandoned) and "operator" not in state.why
        if is_given_up and len(accepted) >= settings.report_count_min:
            self.complain("a round that could complete did", f"round {number} had {len(accepted)} reports")
        for one in accepted:
            self._judge_accepted(number, state.head, one)

    def _judge_accepted(self, number: int, head: training_round.RoundHead, one: training_round.Accepted) -> None:
        report = self._reports.get((one.device, number))
        if report is None or report.base != head.base:
            self.complain("what counts was made from the round's base", f"{one.device} in round {number}")
        if one.example_count > head.plan.example_count_max:
            self.complain("no weight beyond the plan's cap", f"{one.device}: {one.example_count}")
        if one.example_count < head.plan.example_count_min:
            self.complain("no weight below the plan's minimum", f"{one.device}: {one.example_count}")
        if one.metrics.correct_count > one.metrics.example_count or not math.isfinite(one.metrics.loss_sum):
            self.complain("metrics are possible", one.device)
        device = self._devices.get(one.device)
        if device is not None and head.plan.kind == "train" and device.lie in _LIES_ABOUT_UPDATES:
            self.complain("no lie is believed", f"{one.device}: {device.lie}")

    def _judge_checkpoint(self, row: CheckpointRow) -> None:
        self._versions[row.version] = row.digest
        data = (self._blobs / "blobs" / row.state.hex()).read_bytes()
        saved = msgspec.msgpack.decode(data, type=SavedState)
        parameters = np.frombuffer(saved.parameters, "<f4")
        before = self._parameters.get(row.version - 1)
        self._parameters[row.version] = parameters
        state = self.round_states.get(max(self.round_states, default=0))
        if before is None:
            return
        expected = before.astype(np.float64)
        if isinstance(state, training_round.Aggregating):
            if state.head.base_version != row.version - 1:
                self.complain("the aggregate is the reference sum", f"version {row.version} was made twice")
            expected = expected + self._settings.server_learning_rate * self._reference_mean(state)
        elif row.delta is not None:
            self.complain("the aggregate is the reference sum", f"version {row.version} comes from no round")
        if not np.allclose(parameters, expected, rtol=1e-5, atol=1e-6):
            worst = float(np.abs(parameters - expected).max())
            self.complain("the aggregate is the reference sum", f"version {row.version} is off by {worst:.3g}")

    def _reference_mean(self, state: training_round.Aggregating) -> NDArray[np.float64]:
        total = np.zeros(self._layout.update_size)
        weight = 0
        plan = state.head.plan
        for one in state.accepted:
            blob = self._updates.get((one.device, state.head.number), b"")
            try:
                update = decode_update(
                    blob,
                    parameter_count=self._layout.update_size,
                    layout_digest=self._layout.digest,
                    base_digest=state.head.base,
                    size_max=100_000,
                    step_per_rms=plan.step_ratio,
                )
            except FallowError as error:
                self.complain("the aggregate is the reference sum", f"{one.device} counts, but: {error}")
                continue
            delta = update.step * update.symbols.astype(np.float64)
            norm = math.sqrt(math.fsum(float(value) ** 2 for value in delta))
            if plan.delta_norm_max is not None and norm > (bound := plan.delta_norm_max * math.sqrt(plan.step_ratio)):
                delta = delta * (bound / norm)
            total += one.example_count * delta
            weight += one.example_count
        return total / max(1, weight)


def _accepted(state: training_round.RoundState | None) -> tuple[training_round.Accepted, ...]:
    return () if state is None or isinstance(state, training_round.Selecting) else state.accepted


def _outstanding(state: training_round.Collecting) -> set[str]:
    settled = {one.device for one in state.accepted} | {one.device for one in state.refused}
    return set(state.cohort) - settled - {one.device for one in state.given_back}
