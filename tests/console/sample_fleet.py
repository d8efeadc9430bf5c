"""A fleet as it looks after some weeks, written through the ORM; the same arguments give the same fleet."""

import hashlib
import math
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from cloud_aggregator import task_progress, training_round
from cloud_aggregator.adapters.release_schema import DeviceReleaseRow, ReleaseRow, RunningReleaseRow
from cloud_aggregator.adapters.schema import (
    CheckpointRow,
    CounterRow,
    DeviceRow,
    EventRow,
    RoundRow,
    TaskRow,
    TokenRow,
)
from federated_core.protocol.messages import Metrics, Plan

TASK = "spar"
ROUND_S = 900.0
ENGINES = ("onnxruntime 1.32.0", "onnxruntime 1.29.1", "numpy 2.4.6")
AGENTS = ("0.1.0", "0.1.1")
_ABANDONED_EVERY = 17
_COMMIT_EVERY = 50


def fill_fleet(
    engine: Engine,
    *,
    now_s: float,
    device_count: int = 40,
    round_count: int = 30,
    goal: int = 10,
    hostile_text: str = "",
) -> None:
    """Write ``device_count`` devices and ``round_count`` closed rounds with their events, and one round that is open.

    ``hostile_text`` takes the place of every text that a device, or a stranger, supplies.
    """
    rng = np.random.default_rng(7)
    with Session(engine) as session:
        _add_devices(session, rng, device_count, now_s, hostile_text)
        _add_tokens(session, now_s)
        _add_task(session, round_count, now_s, hostile_text)
        session.commit()
        for number in range(1, round_count + 2):
            opened_at = now_s - 120.0 - (round_count + 1 - number) * ROUND_S
            _add_round(session, rng, number, opened_at, device_count, goal, is_open=number == round_count + 1)
            if number % _COMMIT_EVERY == 0:
                session.commit()
        for name, value in (("bytes_enrollment", 2_100 * device_count), ("protocol_errors", 3)):
            session.add(CounterRow(name=name, value=value))
        _add_audit(session, now_s, hostile_text)
        _add_releases(session, now_s, device_count, round_count, hostile_text)
        session.commit()


def device_name(index: int) -> str:
    """Name of the device number ``index``."""
    return f"d{hashlib.sha256(str(index).encode()).hexdigest()[:15]}"


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def _add_devices(session: Session, rng: np.random.Generator, count: int, now_s: float, hostile_text: str) -> None:
    for index in range(count):
        age_s = float(rng.exponential(3 * 3600.0))
        session.add(
            DeviceRow(
                name=device_name(index),
                verify_key=_digest("verify", index),
                seal_key=_digest("seal", index),
                machine=_digest("machine", max(index, 1))[:16],  # The first two are the same machine.
                broker_password="x" * 22,
                token="spring",
                enrolled_at=now_s - 30 * 86_400.0 + index,
                last_seen_at=None if index % 23 == 22 else now_s - age_s * (20.0 if index % 11 == 10 else 1.0),
                agent_version=hostile_text or AGENTS[index % len(AGENTS)],
                engine=hostile_text or ENGINES[index % len(ENGINES)],
            )
        )


def _add_tokens(session: Session, now_s: float) -> None:
    tokens = (
        ("spring", 1000, 40, 86_400.0, None),
        ("lab", 5, 5, 86_400.0, None),
        ("lost", 20, 2, 9_000.0, now_s - 60.0),
    )
    for name, uses_max, uses, lifetime_s, revoked_at in tokens:
        session.add(
            TokenRow(
                name=name,
                secret=_digest(name),
                uses_max=uses_max,
                uses=uses,
                created_at=now_s - 7200.0,
                expires_at=now_s - 7200.0 + lifetime_s,
                revoked_at=revoked_at,
            )
        )


def _add_task(session: Session, round_count: int, now_s: float, hostile_text: str) -> None:
    settings = task_progress.TaskSettings(plan=Plan(kind="train"), rounds_max=max(round_count + 5, 20))
    state = task_progress.Training(round_number=round_count + 1, trained_count=round_count)
    begun_at = now_s - (round_count + 2) * ROUND_S
    session.add(
        TaskRow(
            name=TASK,
            settings=msgspec.msgpack.encode(settings),
            bundle=_digest("bundle"),
            bundle_signature=bytes(64),
            model=_digest("model"),
            state=msgspec.msgpack.encode(state),
            created_at=begun_at,
        )
    )
    session.add(
        TaskRow(
            name="digits",
            settings=msgspec.msgpack.encode(settings),
            bundle=_digest("bundle of digits"),
            bundle_signature=bytes(64),
            model=_digest("model of digits"),
            state=msgspec.msgpack.encode(task_progress.Finished(hostile_text or "aborted by the operator")),
            created_at=begun_at - 86_400.0,
        )
    )
    session.flush()
    session.add(_checkpoint(0, begun_at))
    _record(session, begun_at, "task-created", task=TASK, parameters=105_839)


def _checkpoint(version: int, at: float) -> CheckpointRow:
    return CheckpointRow(
        task=TASK,
        version=version,
        digest=_digest("checkpoint", version),
        keyframe=_digest("keyframe"),
        delta=_digest("delta", version) if version else None,
        state=_digest("state", version),
        created_at=at,
    )


def _add_round(
    session: Session,
    rng: np.random.Generator,
    number: int,
    opened_at: float,
    device_count: int,
    goal: int,
    *,
    is_open: bool,
) -> None:
    plan = Plan(kind="train", learning_rate=0.1)
    head = training_round.RoundHead(
        task=TASK,
        number=number,
        plan=plan,
        base_version=number - 1,
        base=_digest("checkpoint", number - 1),
        seed=_digest("seed", number),
        settings=training_round.RoundSettings(goal=goal),
    )
    size = min(device_count, math.ceil(goal * 1.3))
    cohort = tuple(device_name(int(index)) for index in rng.choice(device_count, size, replace=False))
    mean = 0.93 - 0.75 * math.exp(-number / 25.0)
    is_abandoned = number % _ABANDONED_EVERY == 0 and not is_open
    accepted_count = min(goal, size - 2) if not (is_open or is_abandoned) else min(3, size - 2)
    accepted = tuple(
        training_round.Accepted(
            device=device,
            example_count=int(rng.integers(200, 600)),
            metrics=_metrics(rng, mean),
            update=_digest("update", number, device),
            training_loss=float(2.0 * math.exp(-number / 20.0)),
            training_s=float(rng.uniform(4.0, 30.0)),
        )
        for device in cohort[:accepted_count]
    )
    refused = (training_round.Refused(cohort[-1], "not-finite"),) if number % 5 == 0 else ()
    given_back = (training_round.GivenBack(cohort[-2], "became-ineligible"),)
    state: training_round.RoundState
    if is_open:
        state, phase = training_round.Collecting(head, cohort, (), accepted, refused, given_back), "collecting"
    elif is_abandoned:
        why = "3 reports at the deadline, needs 8"
        state, phase = training_round.Abandoned(head, why, cohort, accepted, refused, given_back), "abandoned"
    else:
        state, phase = training_round.Completed(head, cohort, accepted, refused, given_back), "completed"
    seconds = float(rng.uniform(40.0, 300.0))
    correct = sum(one.metrics.correct_count for one in accepted)
    examples = sum(one.metrics.example_count for one in accepted)
    is_completed = phase == "completed"
    session.add(
        RoundRow(
            task=TASK,
            number=number,
            kind="train",
            phase=phase,
            state=msgspec.msgpack.encode(state),
            transition_count=accepted_count + 3,
            base_version=number - 1,
            opened_at=opened_at,
            closed_at=None if is_open else opened_at + seconds,
            report_count=0 if is_open else accepted_count,
            example_count=sum(one.example_count for one in accepted),
            accuracy=correct / examples if is_completed else None,
            loss=0.3 if is_completed else None,
            assignment_count=size,
            bytes_up=0 if is_open else int(accepted_count * rng.integers(52_000, 61_000)),
            bytes_down=0 if is_open else int(size * rng.integers(20_000, 31_000)),
            bytes_keyframe=size * 400_000 if number == 1 else 0,
            bytes_bundle=size * 21_000 if number == 1 else 0,
        )
    )
    _record_round(session, state, opened_at, seconds, number)
    if not is_open and not is_abandoned:
        session.add(_checkpoint(number, opened_at + seconds))


def _metrics(rng: np.random.Generator, mean: float) -> Metrics:
    example_count = int(rng.integers(30, 120))
    share = float(np.clip(rng.normal(mean, 0.06), 0.0, 1.0))
    return Metrics(example_count, round(share * example_count), loss_sum=float(example_count) * 0.4)


def _record_round(
    session: Session, state: training_round.RoundState, opened_at: float, seconds: float, number: int
) -> None:
    assert not isinstance(state, training_round.Selecting)

    def note(at: float, kind: str, device: str | None = None, **detail: object) -> None:
        _record(session, at, kind, task=TASK, round=number, device=device, **detail)

    note(opened_at, "round-opened", plan="train")
    note(opened_at + 2.0, "cohort-selected", devices=len(state.cohort))
    for index, one in enumerate(state.accepted):
        at = opened_at + 3.0 + index * seconds / (len(state.accepted) + 1)
        note(at, "report-accepted", device=one.device)
    for refused in state.refused:
        note(opened_at + 20.0, "report-refused", device=refused.device, verdict=refused.verdict)
    for back in state.given_back:
        note(opened_at + 30.0, "assignment-given-back", device=back.device, why=back.why)
    if isinstance(state, training_round.Completed):
        reports = len(state.accepted)
        note(opened_at + seconds, "round-completed", reports=reports, seconds=round(seconds, 1))
    elif isinstance(state, training_round.Abandoned):
        note(opened_at + seconds, "round-abandoned", why=state.why)


def _add_audit(session: Session, now_s: float, hostile_text: str) -> None:
    first, second = device_name(0), device_name(1)
    address = hostile_text or "10.0.0.7"
    _record(session, now_s - 900.0, "command", task=TASK, actor="anna at 10.0.0.7", command="CreateTask")
    _record(session, now_s - 800.0, "identity-alert", device=first, machine_also_enrolled_as=[hostile_text or second])
    _record(
        session, now_s - 700.0, "enrollment-refused", device=second, token=hostile_text or "lab", why="used-up-token"
    )
    _record(session, now_s - 650.0, "sign-in-refused", user=hostile_text or "root", address=address)
    _record(session, now_s - 600.0, "signed-in", user="anna", address=address)
    _record(session, now_s - 500.0, "something-new", device=first, about=hostile_text or "nothing")


def _add_releases(session: Session, now_s: float, device_count: int, round_count: int, hostile_text: str) -> None:
    """One release that is everywhere, one that was halted at its canary, and one that is at its canary now."""
    canary_count = max(3, device_count // 10)
    everyone = [(index, "everyone", "committed") for index in range(device_count)]
    halted = [(index, "canary", "failed" if index % 2 else "committed") for index in range(canary_count)]
    states = ("committed", "offered", "waiting", "refused")
    current = [(index, "canary", states[index % 4]) for index in range(canary_count)]
    plans = (
        (1, round_count // 2, "completed", None, None, everyone),
        (3, round_count - 1, "halted", 1, "2 of 4 failed, at most 10 % may", halted),
        (5, round_count, "canary", 1, None, current),
    )
    for number, version, phase, replaces, why, members in plans:
        created_at = now_s - (6 - number) * 1800.0
        session.add(
            ReleaseRow(
                number=number,
                family=TASK,
                task=TASK,
                version=version,
                kind="promotion",
                phase=phase,
                state=b"",
                policy=b"",
                manifest=b"",
                bundle=_digest("bundle"),
                checkpoint=_digest("checkpoint", version),
                issued_at=created_at,
                expires_at=created_at + 30 * 86_400.0,
                replaces=replaces,
                restricted_to=None,
                way_back=None,
                way_back_number=number + 1 if replaces else None,
                actor="anna at 10.0.0.7",
                why=why,
                created_at=created_at,
                closed_at=None if phase == "canary" else created_at + 1200.0,
            )
        )
        session.flush()
        for index, stage, state in members:
            is_bad = state in {"failed", "refused"}
            session.add(
                DeviceReleaseRow(
                    release=number,
                    device=device_name(index),
                    stage=stage,
                    state=state,
                    reason="accuracy-dropped" if is_bad else None,
                    detail=(hostile_text or "0.61 on its own holdout, runs with 0.83") if is_bad else None,
                    offered_at=None if state == "waiting" else created_at + 5.0,
                    concluded_at=created_at + 60.0 + index % 50 if state == "committed" or is_bad else None,
                )
            )
        about: dict[str, Any] = {"number": number, "family": TASK, "version": version, "release_kind": "promotion"}
        _record(session, created_at, "release-promoted", task=TASK, **about)
        if why:
            _record(session, created_at + 1200.0, "release-halted", task=TASK, number=number, why=why)
    for index in range(device_count):
        number = 5 if index < canary_count and states[index % 4] == "committed" else 1
        session.add(
            RunningReleaseRow(
                device=device_name(index),
                family=TASK,
                number=number,
                checkpoint=_digest("checkpoint", round_count),
                reported_at=now_s - 600.0,
            )
        )


def _record(
    session: Session,
    at: float,
    kind: str,
    *,
    task: str | None = None,
    round: int | None = None,  # noqa: A002 -- named as the column.
    device: str | None = None,
    **detail: object,
) -> None:
    text = msgspec.json.encode(detail).decode()
    session.add(EventRow(at=at, kind=kind, task=task, round=round, device=device, detail=text))
