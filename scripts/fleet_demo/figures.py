"""The figures of one run: what `--json` writes, and the sentences under the table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scripts.fleet_demo.arms import Outcome

FLOAT32_BYTES = 4


class RoundFigures(NamedTuple):
    """One training round. ``bytes_up`` and ``bytes_down`` are all MQTT payloads but keyframes and bundles."""

    round: int
    reports: int
    accuracy_unseen: float
    accuracy_holdout: float | None
    bytes_up: int
    bytes_down: int
    bytes_keyframe: int
    seconds: float
    assignments: int


class Release(NamedTuple):
    """What became of the final model: which devices use it."""

    number: int
    version: int
    devices_running: int
    devices: int


class RunFacts(NamedTuple):
    """What is known when everything is over."""

    rounds: Sequence[RoundFigures]
    outcome: Outcome
    parameter_count: int
    bytes_up: int
    bytes_down: int
    bytes_keyframe: int
    agent_idle_mib: float
    agent_peak_mib: float
    ended_because: str
    first_round_end_s: float
    seconds: float
    model_path: Path
    release: Release


def round_figures(event: Mapping[str, Any], accuracy_unseen: float) -> RoundFigures:
    """Read what the aggregator announced at the end of a round."""
    detail = event["detail"]
    return RoundFigures(
        round=event["round"],
        reports=detail["reports"],
        accuracy_unseen=accuracy_unseen,
        accuracy_holdout=detail["accuracy_of_base"],
        bytes_up=detail["bytes_up"],
        bytes_down=detail["bytes_down"],
        bytes_keyframe=detail["bytes_keyframe"] + detail["bytes_bundle"],
        seconds=detail["seconds"],
        assignments=detail["assignments"],
    )


def summarize(facts: RunFacts) -> dict[str, Any]:
    """Return the figures of ``--json``.

    Bits up count everything that devices sent in training rounds, per parameter and accepted report. Bits down count
    what was delivered to them from round 2 on, per parameter and assignment; what a newcomer fetches once (keyframe,
    bundle, enrollment) is in ``bytes_keyframe``.
    """
    later_rounds = [one for one in facts.rounds if one.round > 1]
    scores = facts.outcome.arms.items()
    return {
        "rounds": [{key: value for key, value in one._asdict().items() if value is not None} for one in facts.rounds],
        "unseen": {arm: score.unseen for arm, score in scores},
        "later": {arm: score.later for arm, score in scores},
        "later_by_device": {arm: list(score.later_by_device) for arm, score in scores},
        "devices_worse_than_alone_ratio": facts.outcome.devices_worse_than_alone_ratio,
        "bits_per_parameter_up": _bits_per_parameter(
            sum(one.bytes_up for one in facts.rounds), sum(one.reports for one in facts.rounds), facts.parameter_count
        ),
        "bits_per_parameter_down": _bits_per_parameter(
            sum(one.bytes_down for one in later_rounds),
            sum(one.assignments for one in later_rounds),
            facts.parameter_count,
        ),
        "bytes_up": facts.bytes_up,
        "bytes_down": facts.bytes_down,
        "bytes_keyframe": facts.bytes_keyframe,
        "bytes_float32": FLOAT32_BYTES
        * facts.parameter_count
        * sum(one.reports + one.assignments for one in facts.rounds),
        "agent_idle_mib": facts.agent_idle_mib,
        "agent_peak_mib": facts.agent_peak_mib,
        "parameters": facts.parameter_count,
        "ended_because": facts.ended_because,
        "first_round_end_s": facts.first_round_end_s,
        "round_s_median": float(np.median([one.seconds for one in later_rounds or facts.rounds])),
        "seconds": facts.seconds,
        "model_path": str(facts.model_path),
        "release": facts.release._asdict(),
    }


def sentences(figures: Mapping[str, Any]) -> list[str]:
    """Say what the table does not."""
    total_mb = (figures["bytes_up"] + figures["bytes_down"] + figures["bytes_keyframe"]) / 1e6
    worse = figures["devices_worse_than_alone_ratio"]
    bits_up, bits_down = figures["bits_per_parameter_up"], figures["bits_per_parameter_down"]
    idle_mib, peak_mib = figures["agent_idle_mib"], figures["agent_peak_mib"]
    bits = (
        f"Bits per parameter, headers and signatures included: {bits_up:.2f} up, {bits_down:.2f} down (float32: 32, 32)"
    )
    wire = (
        f"Bytes on the wire: {total_mb:.1f} MB, of them {figures['bytes_keyframe'] / 1e6:.1f} keyframes, bundles and "
    )
    wire += f"enrollment (float32 both ways: {figures['bytes_float32'] / 1e6:.0f} MB)"
    memory = f"Memory of an agent, all its processes: {idle_mib:.0f} MiB waiting, {peak_mib:.0f} MiB while it trains"
    release = figures["release"]
    released = f"Release {release['number']} is version {release['version']}: {release['devices_running']} of "
    released += f"{release['devices']} devices tried it and run it"
    ending = f"A round took {figures['round_s_median']:.2f} s in the median; training ended: {figures['ended_because']}"
    return [
        f"Devices worse off than alone by more than a point, after fine-tuning: {worse:.0%}",
        bits,
        wire,
        memory,
        ending,
        released,
        f"The final model, for plain onnxruntime: {figures['model_path']}",
    ]


def _bits_per_parameter(size_bytes: int, count: int, parameter_count: int) -> float:
    return 8 * size_bytes / (parameter_count * count) if count else 0.0
