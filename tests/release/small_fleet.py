"""A fleet in one thread: the real coordinator, wire, database and devices; only the broker is a list."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloud_aggregator import commands
from cloud_aggregator.adapters.brokers.directory import BrokerUser
from cloud_aggregator.adapters.database import Database, Event
from cloud_aggregator.adapters.keyring import MODEL_KEY_NAME, load_keyring, make_keys
from cloud_aggregator.adapters.schema import DeviceRow
from cloud_aggregator.config import AggregatorSettings, ReleaseSettings, database_url
from cloud_aggregator.coordinator import Coordinator
from cloud_aggregator.recipe import ModelSettings, Recipe
from cloud_aggregator.rollout import RolloutPolicy
from cloud_aggregator.service import BLOBS_NAME, KEYS_NAME, Service
from cloud_aggregator.task_progress import TaskSettings
from federated_core.adapters.blob_store import BlobStore
from federated_core.adapters.inbox import TimerFired
from federated_core.adapters.link import MessageArrived, MessageSent
from federated_core.errors import LocalMisuseError
from federated_core.protocol import keys, messages, topics, wire
from tests.release.lone_device import LoneDevice, TinyAggregator, add_examples
from tests.release.tiny_releases import FAMILY, FLEET, TASK
from tests.release.virtual_inbox import VirtualInbox
from tests.simulation.tiny_model import tiny_onnx

POLICY = RolloutPolicy(canary_ratio=0.25, failure_ratio_max=0.1, finished_count_min=5, soak_s=60.0)
_ANSWERS = msgspec.msgpack.Decoder(messages.AggregatorMessage)
Examples = tuple[NDArray[np.float32], NDArray[np.int64]]


class ListBroker:
    """Messages in order of their sending; what it has seen it could send again."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, str, bytes]] = []
        self.seen: list[tuple[str, bytes]] = []

    def send(self, topic: str, payload: bytes) -> int:
        """Take a message."""
        self.seen.append((topic, payload))
        self.waiting.append((len(self.seen), topic, payload))
        return len(self.seen)

    def users(self) -> tuple[BrokerUser, ...]:
        """Nobody logs in to a list."""
        return ()

    def add_user(self, user: BrokerUser) -> None:
        """Let in whoever asks."""

    def remove_user(self, name: str) -> None:
        """Keep nobody out."""

    def apply(self) -> None:
        """Obey."""


class Member:
    """A device of the fleet: a lone device whose aggregator is at the other end of the broker."""

    def __init__(self, folder: Path, name: str, broker: ListBroker, aggregator_public: bytes, wall_s: float) -> None:
        self.name = name
        self.key = keys.SigningKey(name.encode().ljust(32, b"."))
        self.up, self.down = topics.device_up(FLEET, name), topics.device_down(FLEET, name)
        self.folder = folder
        self._broker = broker
        self._public = aggregator_public
        self._wall_s = wall_s
        self.is_away = False
        self.device = self._make()

    def _make(self) -> LoneDevice:
        device = LoneDevice(self.folder, TinyAggregator())
        device.send_out = lambda message: self._broker.send(self.up, wire.sign_message(self.key, self.up, message))
        device.wall_s = self._wall_s
        return device

    def restart(self) -> None:
        """Begin anew on the same folder."""
        self.device.journal.close()
        now_s, self.device = self.device.inbox.now_s, self._make()
        self.device.inbox.now_s = now_s
        self.device.start()

    def receive(self, topic: str, payload: bytes) -> None:
        """Take a message from the broker, if it is for this device and is what it says."""
        if self.is_away or not (topic == self.down or topic.startswith(topics.task_multicast(FLEET, ""))):
            return
        frame = wire.decode_frame(payload)
        if isinstance(frame, wire.SignedFrame):
            self.device.inbox.put(wire.open_message(frame, topic, self._public, _ANSWERS))
        else:
            self.device.inbox.put(frame)

    @property
    def running(self) -> int:
        """Number of the release that runs here."""
        pointer = self.device.desk._read_pointer(FAMILY)
        return 0 if pointer is None else pointer.release.number


class DirectService(Service):
    """The service of an operator who sits in the same thread as the coordinator."""

    ring: Callable[[], None]

    def ask(self, command: commands.Command, timeout_s: float = 30.0) -> None:
        """Have ``command`` carried out now."""
        with self._database.transaction() as tx:
            number = tx.add_command(msgspec.msgpack.encode(command), self._actor).number
        self.ring()
        with self._database.transaction() as tx:
            error = tx.command(number).error
        if error:
            raise LocalMisuseError(error)


class SmallFleet:
    """An aggregator with one paused task, and devices whose examples the test chooses."""

    def __init__(self, folder: Path, examples: list[Examples], policy: RolloutPolicy = POLICY) -> None:
        self.folder = folder
        self.settings = AggregatorSettings(
            fleet=FLEET, release=ReleaseSettings(rollout=policy), command_interval_s=60.0
        )
        make_keys(folder / KEYS_NAME)
        (folder / KEYS_NAME / MODEL_KEY_NAME).write_bytes(bytes(range(100, 132)))  # As in `tiny_model`.
        (folder / KEYS_NAME / "model.pub").write_bytes(keys.SigningKey(bytes(range(100, 132))).public)
        self.keyring = load_keyring(folder / KEYS_NAME)
        self.broker = ListBroker()
        self.events: list[Event] = []
        self.database = Database(database_url(folder, self.settings))
        self.members: dict[str, Member] = {}
        self.coordinator = self._make_coordinator()
        for index, (x, label) in enumerate(examples):
            self.add_member(f"d{index:02}", x, label)
        self.coordinator.start()
        self.service = DirectService(folder, self.settings, "operator")
        self.service.ring = lambda: self.coordinator.handle(TimerFired("commands"))
        recipe = Recipe(
            ModelSettings(FAMILY, "softmax-cross-entropy", classes=("left", "right")),
            TaskSettings(messages.Plan("train")),
        )
        self.service.create_task(TASK, tiny_onnx(), recipe)
        self.service.ask(commands.PauseTask(TASK))

    def _make_coordinator(self) -> Coordinator:
        self.inbox = VirtualInbox()
        return Coordinator(
            settings=self.settings,
            keyring=self.keyring,
            database=self.database,
            blobs=BlobStore(self.folder / BLOBS_NAME),
            inbox=self.inbox,
            link=self.broker,
            broker=self.broker,
            restart_broker=lambda: None,
            announce=self.events.append,
        )

    def restart(self) -> None:
        """Begin the aggregator anew on the same database."""
        now_s, self.coordinator = self.inbox.now_s, self._make_coordinator()
        self.inbox.now_s = now_s
        self.coordinator.start()

    def add_member(self, name: str, x: NDArray[np.float32], label: NDArray[np.int64]) -> Member:
        """Enroll a device with these examples, and let it connect."""
        folder = self.folder / "devices" / name
        add_examples(folder, x, label)
        with self.database.transaction() as tx:
            member = Member(folder, name, self.broker, self.keyring.signing.public, tx.now_s)
            tx.add_device(
                DeviceRow(
                    name=name,
                    verify_key=member.key.public,
                    seal_key=bytes(32),
                    machine=name.encode().ljust(16),
                    broker_password="",
                    token="t",
                    enrolled_at=tx.now_s,
                )
            )
        self.coordinator._device_keys[name] = member.key.public
        member.device.inbox.now_s = self.inbox.now_s
        self.members[name] = member
        return member

    def connect(self) -> "SmallFleet":
        """Let every device that is not away come to the broker."""
        for member in self.members.values():
            if not member.is_away:
                member.device.start()
        return self.settle(1.0)

    def publish(self, vector: NDArray[np.float32]) -> int:
        """Make ``vector`` the newest version of the task, as a round would; return its number."""
        desk = self.coordinator._desks[TASK]
        model = desk._model
        model.advance(vector.astype(np.float64) - model._state.parameters)
        model.flush()
        desk._office.commit(lambda tx: tx.add_checkpoint(model.newest_row(tx.now_s)))
        return model.reference.version

    def settle(self, for_s: float = 600.0) -> "SmallFleet":
        """Deliver everything, and let time pass."""
        until_s = self.inbox.now_s + for_s
        while True:
            self._deliver()
            inboxes = [self.inbox, *(member.device.inbox for member in self.members.values())]
            due_s = min((at for one in inboxes if (at := one.next_due_s()) is not None), default=until_s + 1.0)
            for one in inboxes:
                one.turn_to(min(due_s, until_s))
            if due_s > until_s:
                return self

    def _deliver(self) -> None:
        while True:
            while self.inbox.news:
                self.coordinator.handle(self.inbox.news.pop(0))
            for member in self.members.values():
                while member.device.inbox.news:
                    member.device.handle(member.device.inbox.news.pop(0))
            if not self.broker.waiting:
                return
            ticket, topic, payload = self.broker.waiting.pop(0)
            if isinstance(topics.parse(topic), topics.DeviceUp):
                self.coordinator.handle(MessageArrived(topic, payload))
                continue
            self.coordinator.handle(MessageSent(ticket))
            for member in self.members.values():
                member.receive(topic, payload)

    def release(self, number: int) -> dict[str, object]:
        """Return what the status says of a release."""
        releases = self.service.release_status()["releases"]
        return next(dict(one) for one in releases if one["number"] == number)

    @property
    def running(self) -> dict[str, int]:
        """What every device runs."""
        return {name: member.running for name, member in self.members.items()}
