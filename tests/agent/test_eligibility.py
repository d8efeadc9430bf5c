"""Eligibility: every reason in words with numbers, and none where there is none."""

import msgspec
import pytest

from edge_agent.eligibility import MIB, Conditions, Policy, ineligibilities, waivers

AT_REST = Conditions(
    has_external_power=True,
    battery_percent=80,
    is_undervoltage=False,
    busy_cores=0.1,
    idle_s=700.0,
    memory_available_bytes=500 * MIB,
    disk_free_bytes=1000 * MIB,
)
POLICY = Policy()


def reasons(policy: Policy = POLICY, /, **changed: object) -> tuple[str, ...]:
    return ineligibilities(msgspec.structs.replace(AT_REST, **changed), policy)


def test_a_device_at_rest_on_power_may_train() -> None:
    assert reasons() == ()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"has_external_power": False}, "on battery, 80 %"),
        ({"has_external_power": False, "battery_percent": None}, "on battery"),
        ({"is_undervoltage": True}, "under-voltage: the power supply is too weak"),
        ({"busy_cores": None, "idle_s": 0.0}, "load not known yet"),
        ({"busy_cores": 1.26, "idle_s": 0.0}, "busy: 1.3 cores used by others, allows 0.2"),
        ({"idle_s": 30.0}, "idle for 30 s, needs 600 s"),
        ({"memory_available_bytes": 100 * MIB}, "memory: 100 MiB free, needs 160 MiB"),
        ({"disk_free_bytes": 63 * MIB + 1}, "disk: 63 MiB free, needs 64 MiB"),
    ],
)
def test_each_obstacle_is_said_in_words(changed: dict[str, object], reason: str) -> None:
    assert reasons(**changed) == (reason,)


def test_all_obstacles_are_said_at_once() -> None:
    said = reasons(
        has_external_power=False, is_undervoltage=True, idle_s=0.0, memory_available_bytes=0, disk_free_bytes=0
    )
    assert [reason.split()[0].rstrip(":,") for reason in said] == ["on", "under-voltage", "idle", "memory", "disk"]


def test_what_a_board_cannot_tell_is_no_obstacle() -> None:
    assert reasons(has_external_power=None, battery_percent=None, is_undervoltage=None) == ()


@pytest.mark.parametrize(
    "changed",
    [
        {"idle_s": 600.0},
        {"busy_cores": 0.25},
        {"memory_available_bytes": 160 * MIB},
        {"disk_free_bytes": 64 * MIB},
    ],
)
def test_a_bound_that_is_just_met_is_met(changed: dict[str, object]) -> None:
    assert reasons(**changed) == ()


def test_what_the_owner_waives_is_no_obstacle_but_is_said() -> None:
    busy_on_battery: dict[str, object] = {"has_external_power": False, "is_undervoltage": True, "busy_cores": 3.0}
    waiving = Policy(require_power=False, require_idle=False)
    assert reasons(waiving, **busy_on_battery) == ()
    assert waivers(waiving) == ("power requirement waived", "idle requirement waived")
    assert waivers(Policy(require_idle=False)) == ("idle requirement waived",)
    assert waivers(POLICY) == ()


def test_memory_and_disk_cannot_be_waived_with_the_rest() -> None:
    waiving = Policy(require_power=False, require_idle=False)
    assert reasons(waiving, memory_available_bytes=0) == ("memory: 0 MiB free, needs 160 MiB",)
