"""Whether a device may train now, as reasons why not: the log, the status page and the owner can read them."""

from typing import Annotated

import msgspec
from msgspec import Meta

MIB = 1024 * 1024


class Conditions(msgspec.Struct, frozen=True):
    """What the sensors say; None is "unknown on this board"."""

    has_external_power: bool | None  # None: no power supply is listed, which on a board without battery means mains.
    battery_percent: int | None
    is_undervoltage: bool | None
    busy_cores: float | None  # Cores used by others since the last look; None before the second look.
    idle_s: float  # How long others have been idle.
    memory_available_bytes: int
    disk_free_bytes: int


class Policy(msgspec.Struct, frozen=True):
    """What the owner asks for. A requirement that is waived is said in the log, the status and each check-in."""

    require_power: bool = True
    require_idle: bool = True
    idle_for_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 600.0
    busy_cores_max: Annotated[float, Meta(ge=0.0, le=1024.0)] = 0.25
    memory_min_mib: Annotated[int, Meta(ge=0, le=1_048_576)] = 160
    disk_min_mib: Annotated[int, Meta(ge=0, le=1_048_576)] = 64


def ineligibilities(conditions: Conditions, policy: Policy) -> tuple[str, ...]:
    """Return every reason why the device must not train now, in words with numbers; none means that it may."""
    reasons: list[str] = []
    if policy.require_power:
        if conditions.has_external_power is False:
            level = "" if conditions.battery_percent is None else f", {conditions.battery_percent} %"
            reasons.append(f"on battery{level}")
        if conditions.is_undervoltage:
            reasons.append("under-voltage: the power supply is too weak")
    if policy.require_idle:
        if conditions.busy_cores is None:
            reasons.append("load not known yet")
        elif conditions.busy_cores > policy.busy_cores_max:
            reasons.append(
                f"busy: {conditions.busy_cores:.1f} cores used by others, allows {policy.busy_cores_max:.1f}"
            )
        elif conditions.idle_s < policy.idle_for_s:
            reasons.append(f"idle for {conditions.idle_s:.0f} s, needs {policy.idle_for_s:.0f} s")
    reasons += _shortage("memory", conditions.memory_available_bytes, policy.memory_min_mib)
    reasons += _shortage("disk", conditions.disk_free_bytes, policy.disk_min_mib)
    return tuple(reasons)


def waivers(policy: Policy) -> tuple[str, ...]:
    """Return the requirements that the policy waives, in words."""
    words = {"power": policy.require_power, "idle": policy.require_idle}
    return tuple(f"{word} requirement waived" for word, is_required in words.items() if not is_required)


def _shortage(what: str, available_bytes: int, needed_mib: int) -> list[str]:
    if available_bytes >= needed_mib * MIB:
        return []
    return [f"{what}: {available_bytes // MIB} MiB free, needs {needed_mib} MiB"]
