"""Power as small recorded trees of sysfs tell it."""

from pathlib import Path

import pytest

from edge_agent.adapters.power_supply import Power, read_power

Supply = dict[str, str]

BATTERY = {"type": "Battery", "present": "1", "capacity": "64", "status": "Discharging"}
CHARGER = {"type": "Mains", "online": "1"}


def board(root: Path, **supplies: Supply) -> Path:
    for name, files in supplies.items():
        folder = root / "sys/class/power_supply" / name
        folder.mkdir(parents=True)
        for file, content in files.items():
            (folder / file).write_text(content + "\n")
    return root


def monitor(root: Path, index: int, name: str, alarm: str | None) -> Path:
    folder = root / f"sys/class/hwmon/hwmon{index}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(name + "\n")
    if alarm is not None:
        (folder / "in0_lcrit_alarm").write_text(alarm + "\n")
    return root


def test_a_pi_lists_no_supply_and_runs_on_mains(tmp_path: Path) -> None:
    assert read_power(tmp_path) == Power(None, None, None)
    assert read_power(monitor(tmp_path, 0, "rpi_volt", "0")) == Power(None, None, is_undervoltage=False)


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ({"AC": CHARGER, "BAT0": {**BATTERY, "status": "Charging"}}, (True, 64)),
        ({"AC": {**CHARGER, "online": "0"}, "BAT0": BATTERY}, (False, 64)),
        ({"BAT0": BATTERY}, (False, 64)),
        ({"BAT0": {**BATTERY, "status": "Full", "capacity": "100"}}, (True, 100)),
        # Held at its limit on external power, which no supply tells of: a laptop with a charge threshold.
        ({"BAT0": {**BATTERY, "status": "Not charging"}}, (True, 64)),
        # A charger too weak for the load: external power wins over what the battery says.
        ({"AC": CHARGER, "BAT0": BATTERY}, (True, 64)),
        # A programmable USB supply says 2 when it is on.
        ({"usb": {"type": "USB", "online": "2"}, "BAT0": {**BATTERY, "status": "Unknown"}}, (True, 64)),
        ({"usb": {"type": "USB", "online": "0"}, "BAT0": {**BATTERY, "status": "Unknown"}}, (False, 64)),
        ({"pad": {"type": "Wireless", "online": "1"}, "BAT0": BATTERY}, (True, 64)),
        ({"AC": {**CHARGER, "online": "0"}}, (None, None)),
        # One of two batteries is discharging; the emptier one counts.
        ({"BAT0": {**BATTERY, "status": "Full"}, "BAT1": {**BATTERY, "capacity": "9"}}, (False, 9)),
        ({"ups": {"type": "UPS", "status": "Discharging", "capacity": "50"}}, (False, 50)),
    ],
)
def test_a_tree_of_supplies_is_one_answer(
    tmp_path: Path, supplies: dict[str, Supply], expected: tuple[bool | None, int | None]
) -> None:
    power = read_power(board(tmp_path, **supplies))
    assert (power.has_external_power, power.battery_percent) == expected


def test_the_battery_of_a_mouse_is_not_the_device_s_own(tmp_path: Path) -> None:
    mouse = {**BATTERY, "scope": "Device", "capacity": "5"}
    assert read_power(board(tmp_path, hidpp_battery_0=mouse)) == Power(None, None, None)


def test_an_empty_battery_bay_is_no_battery(tmp_path: Path) -> None:
    assert read_power(board(tmp_path, BAT0={**BATTERY, "present": "0"})) == Power(None, None, None)


def test_a_file_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    board(tmp_path, BAT0={"type": "Battery", "capacity": "not a number", "status": "Charging"})
    (tmp_path / "sys/class/power_supply/BAT0/present").mkdir()  # Reading a folder fails as a broken driver does.
    assert read_power(tmp_path) == Power(has_external_power=True, battery_percent=None, is_undervoltage=None)


@pytest.mark.parametrize(("alarm", "expected"), [("0", False), ("1", True), (None, None)])
def test_a_pi_tells_of_under_voltage(tmp_path: Path, alarm: str | None, expected: bool | None) -> None:
    monitor(tmp_path, 0, "cpu_thermal", "1")
    monitor(tmp_path, 1, "rpi_volt", alarm)
    assert read_power(tmp_path).is_undervoltage is expected
