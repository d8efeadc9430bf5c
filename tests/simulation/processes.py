"""The processes of a world: the real runtimes on simulated adapters, killed and started again from their disks."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec

from cloud_aggregator.adapters.brokers.directory import BrokerUser
from cloud_aggregator.adapters.database import Database, Transaction
from cloud_aggregator.adapters.keyring import Keyring
from cloud_aggregator.config import AggregatorSettings
from cloud_aggregator.coordinator import Coordinator
from edge_agent import work
from edge_agent.adapters.identity import Identity
from edge_agent.config import AgentSettings
from edge_agent.eligibility import Conditions
from edge_agent.runtime import Runtime
from federated_core.errors import AdapterError
from federated_core.learning.parameters import Layout
from federated_core.protocol import topics
from tests.simulation.clockwork import EPOCH_S, Dice, Schedule, VirtualInbox
from tests.simulation.network import Network, SimulatedLink
from tests.simulation.parties import LINK_LIES, LyingLink
from tests.simulation.peril import Peril, PerilousBlobStore, PerilousJournal, PowerLost, tear_partials
from tests.simulation.trainer import Lie, SimulatedTrainer

_ROOM = 2**30
_LIGHTS_ON = Conditions(
    has_external_power=True,
    battery_percent=80,
    is_undervoltage=False,
    busy_cores=0.0,
    idle_s=3600.0,
    memory_available_bytes=_ROOM,
    disk_free_bytes=_ROOM,
)


class Witness(Protocol):
    """Who sees what processes do."""

    def enter(self, name: str | None) -> None:
        """From here on ``name`` acts."""

    def saw_save(self, device: str, key: str, value: object) -> None:
        """A device journaled something."""

    def saw_update(self, device: str, piece: work.Work, blob: bytes) -> None:
        """A trainer encoded an update."""

    def saw_trainer(self, device: str, *, is_busy: bool) -> None:
        """A trainer began to work, or ended."""

    def saw_commit(self) -> None:
        """The aggregator committed."""

    def saw_exception(self, name: str, error: Exception) -> None:
        """An exception reached the top of a process."""

    def saw_crash(self, name: str, call: str) -> None:
        """A process died."""


class Process(ABC):
    """What dies and is started again."""

    def __init__(self, name: str, schedule: Schedule, network: Network, dice: Dice, witness: Witness) -> None:
        self.name = name
        self.peril = Peril()
        self.wall_clock_offset_s = 0.0
        self.crash_count = 0
        self.booted_at_s = 0.0
        self.tears = False
        self._schedule = schedule
        self._network = network
        self._dice = dice
        self._witness = witness
        self._inbox: VirtualInbox | None = None

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._inbox is not None

    def now_s(self) -> float:
        """Read the wall clock."""
        return EPOCH_S + self._schedule.now_s + self.wall_clock_offset_s

    def boot(self) -> None:
        """Start from what is on disk."""
        if self._inbox is not None:
            return
        self._inbox = VirtualInbox(self._schedule, self._take)
        self.booted_at_s = self._schedule.now_s
        link = self._make_link(self._inbox)
        link.peril = self.peril
        self._run(lambda: self._begin(link))
        if self._inbox is not None:
            self._network.attach(link)

    def _make_link(self, inbox: VirtualInbox) -> SimulatedLink:
        return SimulatedLink(self._network, self.name, inbox.put, 4096)

    def die(self, call: str = "killed", restart_after_s: float | None = None) -> None:
        """End at once; the disk keeps what it has."""
        if self._inbox is None:
            return
        self._inbox.close()
        self._inbox = None
        self._network.detach(self.name)
        self.crash_count += 1
        self._leave_disk()
        self._witness.saw_crash(self.name, call)
        self._schedule.after(restart_after_s or self._dice.uniform(0.5, 20.0), self.boot)

    def _take(self, news: Any) -> None:
        self._run(lambda: self._handle(news))

    def _run(self, act: Callable[[], None]) -> None:
        self._witness.enter(self.name)
        try:
            act()
        except PowerLost as lost:
            self.die(str(lost))
        except AdapterError:
            self.die("could not start")  # Outside `handle`: the process ends with an exit code, and is started again.
        except Exception as error:  # noqa: BLE001 - A bug of ours, which a check reports.
            self._witness.saw_exception(self.name, error)
            self.die("exception")
        finally:
            self._witness.enter(None)

    @abstractmethod
    def _begin(self, link: SimulatedLink) -> None:
        """Make the runtime from what is on disk, and let it begin."""

    @abstractmethod
    def _handle(self, news: Any) -> None:
        """Hand news to the runtime."""

    @abstractmethod
    def _leave_disk(self) -> None:
        """Leave on disk what a power cut leaves."""


class SimulatedSensors:
    """What a device feels."""

    def __init__(self, peril: Peril) -> None:
        self.is_plugged = True
        self.is_busy = False
        self._peril = peril

    def look(self, trainer_pid: int | None = None) -> Conditions:
        return msgspec.structs.replace(
            _LIGHTS_ON,
            has_external_power=self.is_plugged,
            busy_cores=2.0 if self.is_busy else 0.0,
            disk_free_bytes=0 if self._peril.is_disk_full else _ROOM,
        )


class Device(Process):
    """One agent with its disk, its trainer and its sensors."""

    def __init__(
        self,
        *,
        identity: Identity,
        settings: AgentSettings,
        folder: Path,
        layout: Layout,
        lie: Lie | None,
        speed_s: float,
        schedule: Schedule,
        network: Network,
        dice: Dice,
        witness: Witness,
    ) -> None:
        assert identity.grant is not None
        super().__init__(identity.grant.device, schedule, network, dice, witness)
        self.identity = identity
        self.settings = settings
        self.lie = lie
        self.folder = folder
        self.sensors = SimulatedSensors(self.peril)
        self.runtime: Runtime | None = None
        self.journal: PerilousJournal | None = None
        self.trainer: SimulatedTrainer | None = None
        self.trainer_breaks = 0.0
        self.trainer_stays = 0.0
        self._layout = layout
        self._speed_s = speed_s

    @property
    def is_eligible(self) -> bool:
        """Whether it may train now, by a rule of our own."""
        return self.sensors.is_plugged and not self.sensors.is_busy and not self.peril.is_disk_full

    def _make_link(self, inbox: VirtualInbox) -> SimulatedLink:
        if self.lie in LINK_LIES:
            return LyingLink(self._network, self.name, inbox.put, 64, self.identity.signing_secret, self.lie)
        return SimulatedLink(self._network, self.name, inbox.put, 64)

    def _begin(self, link: SimulatedLink) -> None:
        assert self._inbox is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = PerilousJournal(
            self.folder / "journal.db",
            self.peril,
            lambda key, value: self._witness.saw_save(self.name, key, value),
        )
        self.trainer = SimulatedTrainer(
            schedule=self._schedule,
            dice=self._dice,
            layout=self._layout,
            news=self._inbox.put,
            peril=self.peril,
            made=lambda piece, blob: self._witness.saw_update(self.name, piece, blob),
            speed_s=self._speed_s,
            lie=self.lie,
            busy=lambda is_busy: self._witness.saw_trainer(self.name, is_busy=is_busy),
        )
        self.trainer.breaks, self.trainer.stays = self.trainer_breaks, self.trainer_stays
        self.runtime = Runtime(
            folder=self.folder,
            settings=self.settings,
            identity=self.identity,
            inbox=self._inbox,
            link=link,
            journal=self.journal,
            blobs=PerilousBlobStore(self.folder, self.peril, open_max=32),
            trainer=self.trainer,
            trial=NoTrial(),
            sensors=self.sensors,
            chance=self._dice,
            now_s=self.now_s,
        )
        self.runtime.start()

    def _handle(self, news: Any) -> None:
        assert self.runtime is not None
        self.runtime.handle(news)

    def _leave_disk(self) -> None:
        if self.journal is not None:
            self.journal.tear(self._dice, is_torn=self.tears)
        if self.trainer is not None:
            self.trainer.perish()
        tear_partials(self.folder, self._dice)
        self.runtime = self.journal = self.trainer = None

    def damage_model(self) -> bool:
        """Rot: spoil what it holds of the model; False if it holds nothing."""
        paths = [*self.folder.glob("models/*/position"), *self.folder.glob("models/*/keyframe")]
        if paths:
            path = paths[self._dice.below(len(paths))]
            path.write_bytes(path.read_bytes()[: self._dice.below(20)])
        return bool(paths)


class NoTrial:
    """Runs no release."""

    pid: int | None = None

    def start(self, piece: msgspec.Struct) -> None:
        raise AdapterError("no trial process here")

    def kill(self) -> None:
        pass

    def forget(self, pid: int) -> None:
        pass


class NoDirectory:
    """The broker's users: the network of a world asks nobody for a password."""

    def users(self) -> tuple[BrokerUser, ...]:
        return ()

    def add_user(self, user: BrokerUser) -> None:
        pass

    def remove_user(self, name: str) -> None:
        pass

    def apply(self) -> None:
        pass


class PerilousDatabase(Database):
    """Any database, with a crash before or after a commit, and a witness of what was committed."""

    def __init__(self, inner: Database, peril: Peril, committed: Callable[[], None]) -> None:
        self.inner = inner
        self._peril = peril
        self._committed = committed

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        with self.inner.transaction() as tx:
            yield tx
            self._peril.touch("database.commit")
        self._committed()
        self._peril.touch("database.committed")


class Aggregator(Process):
    """The coordinator with its disk."""

    def __init__(
        self,
        *,
        settings: AggregatorSettings,
        keyring: Keyring,
        database: Database,
        folder: Path,
        schedule: Schedule,
        network: Network,
        dice: Dice,
        witness: Witness,
    ) -> None:
        super().__init__(topics.PREFIX, schedule, network, dice, witness)
        self.database = database
        self.folder = folder
        self.coordinator: Coordinator | None = None
        self._settings = settings
        self._keyring = keyring

    def _begin(self, link: SimulatedLink) -> None:
        assert self._inbox is not None
        self.coordinator = Coordinator(
            settings=self._settings,
            keyring=self._keyring,
            database=PerilousDatabase(self.database, self.peril, self._witness.saw_commit),
            blobs=PerilousBlobStore(self.folder, self.peril, open_max=4096),
            inbox=self._inbox,
            link=link,
            broker=NoDirectory(),
            restart_broker=lambda: None,
            announce=lambda _event: None,
        )
        self.coordinator.start()

    def _handle(self, news: Any) -> None:
        assert self.coordinator is not None
        self.coordinator.handle(news)

    def _leave_disk(self) -> None:
        tear_partials(self.folder, self._dice)
        self.coordinator = None


def remove_folder(folder: Path) -> None:
    """Forget a world's disks."""
    shutil.rmtree(folder, ignore_errors=True)
