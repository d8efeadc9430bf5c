"""External power, battery and under-voltage, from sysfs below an injectable root."""

from pathlib import Path

import msgspec

_EXTERNAL_TYPES = {"Mains", "USB", "Wireless"}
_BATTERY_TYPES = {"Battery", "UPS"}


class Power(msgspec.Struct, frozen=True):
    """What sysfs says about power; None is "not listed" or "not readable"."""

    has_external_power: bool | None
    battery_percent: int | None
    is_undervoltage: bool | None


def read_power(root: Path = Path("/")) -> Power:
    """Read all power supplies. External power that is online wins over any battery's status."""
    supplies = [_read_supply(folder) for folder in sorted((root / "sys/class/power_supply").glob("*"))]
    supplies = [supply for supply in supplies if supply.get("scope") != "Device"]  # Mice and headsets.
    external = [supply for supply in supplies if supply.get("type") in _EXTERNAL_TYPES]
    batteries = [supply for supply in supplies if supply.get("type") in _BATTERY_TYPES and supply.get("present") != "0"]
    percents = [int(supply["capacity"]) for supply in batteries if supply.get("capacity", "").isdigit()]
    return Power(_has_external_power(external, batteries), min(percents, default=None), _read_undervoltage(root))


def _has_external_power(external: list[dict[str, str]], batteries: list[dict[str, str]]) -> bool | None:
    if any(supply.get("online", "0") != "0" for supply in external):  # 2 is a programmable USB supply.
        return True
    if not batteries:
        return None
    statuses = {battery.get("status") for battery in batteries}
    if "Discharging" in statuses:
        return False
    return bool(statuses & {"Charging", "Full", "Not charging"})


def _read_supply(folder: Path) -> dict[str, str]:
    names = ("type", "scope", "online", "present", "status", "capacity")
    return {name: text for name in names if (text := _read_text(folder / name)) is not None}


def _read_undervoltage(root: Path) -> bool | None:
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if _read_text(folder / "name") == "rpi_volt":
            alarm = _read_text(folder / "in0_lcrit_alarm")
            return None if alarm is None else alarm != "0"
    return None


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None  # A file may exist and its read fail: that is "unknown".
