"""What goes wrong in a world: drawn once per seed, then let loose until the world calms down."""

from collections.abc import Callable

import msgspec

from tests.simulation.clockwork import Dice, Schedule
from tests.simulation.network import Network
from tests.simulation.parties import Gatecrasher, OldAgent, Stranger
from tests.simulation.processes import Aggregator, Device
from tests.simulation.trainer import LIES, Lie

FAULTS = (
    "loss",
    "duplication",
    "reordering",
    "delay",
    "tampering",
    "partition",
    "broker-restart",
    "agent-crash",
    "aggregator-crash",
    "torn-write",
    "clock-jump",
    "unplug",
    "full-disk",
    "aggregator-full-disk",
    "rot",
    "trainer-death",
    "stubborn-trainer",
    "stranger",
    "liar",
    "old-agent",
    "gatecrasher",
    "pause",
    "replay",
)


class Plan(msgspec.Struct, frozen=True):
    """Which faults a world has, and how often each comes."""

    faults: tuple[str, ...]
    scale: float  # Above 1: rarer.

    def mean_s(self, fault: str, mean_s: float) -> float | None:
        """Return the mean time between two of them, None if there are none."""
        return mean_s * self.scale if fault in self.faults else None


def draw_plan(seed: int, allowed: tuple[str, ...]) -> Plan:
    """Draw about half of the faults: some mistakes hide behind others."""
    dice = Dice(seed, 1)
    drawn = {fault: dice.happens(0.6) for fault in FAULTS}
    return Plan(tuple(fault for fault in FAULTS if drawn[fault] and fault in allowed), Dice(seed, 14).uniform(0.7, 3.0))


def draw_lies(seed: int, device_count: int, faults: tuple[str, ...]) -> dict[int, Lie]:
    """Choose the liars by number: at most one device in five."""
    if "liar" not in faults:
        return {}
    dice = Dice(seed, 2)
    return {dice.below(device_count): LIES[dice.below(len(LIES))] for _ in range(max(1, device_count // 5))}


class Misfortune:
    """Lets the faults of a plan happen to a world's processes."""

    def __init__(
        self,
        *,
        plan: Plan,
        schedule: Schedule,
        dice: Dice,
        network: Network,
        devices: tuple[Device, ...],
        aggregator: Aggregator,
        stranger: Stranger,
        old_agent: OldAgent,
        gatecrasher: Gatecrasher,
        newest_round: Callable[[], tuple[int, bytes]],
        pause: Callable[[float], None],
    ) -> None:
        self._plan = plan
        self._schedule = schedule
        self._dice = dice
        self._network = network
        self._devices = devices
        self._aggregator = aggregator
        self._stranger = stranger
        self._old_agent = old_agent
        self._gatecrasher = gatecrasher
        self._newest_round = newest_round
        self._pause = pause
        self._is_over = False

    def begin(self) -> None:
        """From now on things go wrong."""
        plan, dice, weather = self._plan, self._dice, self._network.weather
        weather.loss = dice.uniform(0.0, 0.05) if "loss" in plan.faults else 0.0
        weather.duplication = dice.uniform(0.0, 0.2) if "duplication" in plan.faults else 0.0
        weather.reordering = dice.uniform(0.0, 0.3) if "reordering" in plan.faults else 0.0
        weather.delay = dice.uniform(0.0, 0.1) if "delay" in plan.faults else 0.0
        weather.replay = dice.uniform(0.0, 0.2) if "replay" in plan.faults else 0.0
        weather.tampering = dice.uniform(0.0, 0.02) if "tampering" in plan.faults else 0.0
        for device in self._devices:
            device.trainer_breaks = 0.05 if "trainer-death" in plan.faults else 0.0
            device.trainer_stays = 0.5 if "stubborn-trainer" in plan.faults else 0.0
            device.tears = "torn-write" in plan.faults
        for fault, mean_s, happen in (
            ("partition", 60.0, self._part),
            ("broker-restart", 200.0, self._restart_broker),
            ("agent-crash", 15.0, self._doom_agent),
            ("aggregator-crash", 60.0, self._doom_aggregator),
            ("clock-jump", 60.0, self._jump_clock),
            ("unplug", 15.0, self._unplug),
            ("full-disk", 60.0, self._fill_disk),
            ("aggregator-full-disk", 200.0, self._fill_aggregator_disk),
            ("rot", 100.0, self._rot),
            ("stranger", 10.0, lambda: self._stranger.speak(*self._newest_round())),
            ("old-agent", 15.0, self._old_agent.speak),
            ("gatecrasher", 15.0, lambda: self._gatecrasher.speak(*self._newest_round())),
            ("pause", 300.0, lambda: self._pause(dice.uniform(5.0, 60.0))),
        ):
            wanted_s = plan.mean_s(fault, mean_s)
            if wanted_s is not None:
                self._repeat(fault, wanted_s, happen)

    def end(self) -> None:
        """Everything is mended."""
        self._is_over = True
        for name in ("loss", "duplication", "reordering", "delay", "tampering", "replay"):
            setattr(self._network.weather, name, 0.0)
        for process in (*self._devices, self._aggregator):
            process.peril.calls_left = None
            process.peril.is_disk_full = False
        for device in self._devices:
            device.sensors.is_plugged, device.sensors.is_busy = True, False
            device.trainer_breaks = device.trainer_stays = 0.0
            if device.trainer is not None:
                device.trainer.breaks = device.trainer.stays = 0.0

    def _repeat(self, fault: str, mean_s: float, happen: Callable[[], None]) -> None:
        def act() -> None:
            if not self._is_over:
                if fault not in ("stranger", "old-agent", "gatecrasher"):
                    self._network.hit(fault)
                happen()
                self._repeat(fault, mean_s, happen)

        self._schedule.after(self._dice.exponential(mean_s), act)

    def _any_device(self) -> Device:
        return self._devices[self._dice.below(len(self._devices))]

    def _part(self) -> None:
        process = self._aggregator if self._dice.happens(0.1) else self._any_device()
        self._network.cut(process.name, self._dice.exponential(20.0))

    def _restart_broker(self) -> None:
        self._network.restart_broker(forgets=self._dice.happens(0.5))

    def _doom_agent(self) -> None:
        """End it at one of its next calls of an adapter: mostly in the middle of its work."""
        self._any_device().peril.calls_left = 1 + self._dice.below(12)

    def _doom_aggregator(self) -> None:
        self._aggregator.peril.calls_left = 1 + self._dice.below(60)

    def _jump_clock(self) -> None:
        process = self._aggregator if self._dice.happens(0.2) else self._any_device()
        process.wall_clock_offset_s = self._dice.uniform(-1e8, 1e8)

    def _unplug(self) -> None:
        sensors = self._any_device().sensors
        name = "is_plugged" if self._dice.happens(0.5) else "is_busy"
        setattr(sensors, name, name == "is_busy")

        def mend() -> None:
            setattr(sensors, name, name == "is_plugged")

        self._schedule.after(self._dice.exponential(30.0), mend)

    def _fill_disk(self) -> None:
        self._fill(self._any_device())

    def _fill_aggregator_disk(self) -> None:
        self._fill(self._aggregator)

    def _fill(self, process: Device | Aggregator) -> None:
        process.peril.is_disk_full = True

        def mend() -> None:
            process.peril.is_disk_full = False

        self._schedule.after(self._dice.exponential(20.0), mend)

    def _rot(self) -> None:
        self._any_device().damage_model()
