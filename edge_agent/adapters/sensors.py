"""All sensors at once: what `eligibility` judges."""

from pathlib import Path

from edge_agent.adapters.power_supply import read_power
from edge_agent.adapters.system_load import LoadMeter, disk_free_bytes, memory_available_bytes
from edge_agent.eligibility import Conditions, Policy


class Sensors:
    """The sensors of one device, below an injectable root."""

    def __init__(self, folder: Path, policy: Policy, root: Path = Path("/")) -> None:
        self._folder = folder
        self._root = root
        self._load = LoadMeter(root, policy.busy_cores_max)

    def look(self, trainer_pid: int | None = None) -> Conditions:
        """Read every sensor now; ``trainer_pid`` is our own child, whose load does not count."""
        power = read_power(self._root)
        busy_cores, idle_s = self._load.look(trainer_pid)
        return Conditions(
            has_external_power=power.has_external_power,
            battery_percent=power.battery_percent,
            is_undervoltage=power.is_undervoltage,
            busy_cores=busy_cores,
            idle_s=idle_s,
            memory_available_bytes=memory_available_bytes(self._root),
            disk_free_bytes=disk_free_bytes(self._folder),
        )
