"""A whole fleet in one thread: the real coordinator and real runtimes, joined by a broker in memory."""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from cloud_aggregator import commands
from cloud_aggregator.adapters.brokers.directory import BrokerUser
from cloud_aggregator.adapters.database import Database, Event
from cloud_aggregator.adapters.keyring import Keyring
from cloud_aggregator.config import AggregatorSettings, PacingSettings, database_url
from cloud_aggregator.coordinator import Coordinator
from cloud_aggregator.coordinator import News as CoordinatorNews
from cloud_aggregator.service import BLOBS_NAME, Service
from cloud_aggregator.task_progress import TaskSettings
from edge_agent.adapters.identity import Identity
from edge_agent.adapters.journal import Journal
from edge_agent.config import AgentSettings
from edge_agent.eligibility import MIB, Conditions, Policy
from edge_agent.enroll import read_answer, sign_request
from edge_agent.runtime import News as RuntimeNews
from edge_agent.runtime import Runtime
from federated_core.adapters.blob_store import BlobStore
from federated_core.adapters.inbox import TimerFired
from federated_core.adapters.link import LinkNews, MessageArrived
from federated_core.learning.parameters import encode_checkpoint, flatten
from federated_core.protocol import enrollment, keys, topics
from federated_core.protocol.messages import EnrollmentGrant
from tests.aggregator.conversation.memory_broker import MemoryBroker, MemoryLink
from tests.aggregator.conversation.scripted_trainer import NoTrial, Script, ScriptedTrainer
from tests.aggregator.conversation.virtual_time import SeededChance, SimulatedInbox, World
from tests.simulation.tiny_model import MODEL_KEY, tiny_build, tiny_bundle, tiny_onnx

FLEET = "fleet"
AGGREGATOR_USER = "aggregator"
PASSWORD = "sixteen characters"
TOKEN_SECRET = bytes(range(50, 82))
ALL_IS_WELL = Conditions(
    has_external_power=True,
    battery_percent=None,
    is_undervoltage=None,
    busy_cores=0.0,
    idle_s=3600.0,
    memory_available_bytes=1000 * MIB,
    disk_free_bytes=1000 * MIB,
)
AGENT_SETTINGS = AgentSettings(eligibility=Policy(idle_for_s=60.0))
AGGREGATOR_SETTINGS = AggregatorSettings(
    fleet=FLEET,
    pacing=PacingSettings(accepted_min_s=0.0, accepted_max_s=1.0, rejected_min_s=1.0, rejected_max_s=2.0),
    command_interval_s=60.0,
)


@contextlib.contextmanager
def memory_disk() -> Iterator[Path]:
    """Return a folder in memory where there is one: a fleet syncs so often that a disk takes most of the time."""
    memory = Path("/dev/shm")  # noqa: S108 - Linux has it; a file there is as private as its mode.
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


class Sensors:
    """The conditions of one device, as a test sets them."""

    def __init__(self) -> None:
        self.conditions = ALL_IS_WELL

    def look(self, trainer_pid: int | None = None) -> Conditions:
        """Read every sensor now."""
        return self.conditions


class SimulatedAggregator:
    """One aggregator with its disk; it can be killed and started again."""

    def __init__(self, world: World, broker: MemoryBroker, folder: Path) -> None:
        self.world = world
        self.broker = broker
        self.folder = folder
        folder.mkdir()
        self.keyring = Keyring(
            signing=keys.SigningKey(world.rng.bytes(32)),
            sealing=keys.SealingKey(world.rng.bytes(32)),
            selection_secret=world.rng.bytes(32),
            client_id="aggregator",
            model_public=MODEL_KEY.public,
        )
        self.events: list[Event] = []
        own = topics.aggregator_subscriptions(FLEET)
        broker.add_user(BrokerUser(AGGREGATOR_USER, PASSWORD, (topics.everything(FLEET),), own))
        self.database = Database(database_url(folder, AGGREGATOR_SETTINGS))
        self.start()

    def start(self) -> None:
        """Start the process on what lies on its disk."""
        self.inbox: SimulatedInbox[CoordinatorNews] = SimulatedInbox(self.world)
        subscriptions = topics.aggregator_subscriptions(FLEET)
        self.link = self.broker.connect(AGGREGATOR_USER, PASSWORD, subscriptions, self.inbox.put, queue_max=4096)
        self.coordinator = Coordinator(
            settings=AGGREGATOR_SETTINGS,
            keyring=self.keyring,
            database=self.database,
            blobs=BlobStore(self.folder / BLOBS_NAME),
            inbox=self.inbox,
            link=self.link,
            broker=self.broker,
            restart_broker=lambda: None,
            announce=self.events.append,
        )
        self.inbox.connect(self.coordinator.handle)
        self.coordinator.start()

    def crash(self) -> None:
        """Lose everything that is not on disk."""
        self.inbox.close()
        self.link.close()

    def ask(self, command: commands.Command) -> None:
        """Have an operator's command carried out; one that fails is a failure of the test."""
        with self.database.transaction() as tx:
            number = tx.add_command(msgspec.msgpack.encode(command), "test").number

        self.inbox.put(TimerFired("commands"))  # An operator does not wait for the next look.
        self.world.run(0.0)
        with self.database.transaction() as tx:
            row = tx.command(number)
            assert row.done_at is not None
            assert row.error is None

    def create_token(self, name: str = "t1", uses_max: int = 100) -> enrollment.Token:
        """Return a token with which devices may enroll."""
        self.ask(commands.CreateToken(name, TOKEN_SECRET, uses_max, lifetime_s=3600.0))
        return enrollment.Token(
            host="memory",
            port=1883,
            fleet=FLEET,
            token=name,
            secret=TOKEN_SECRET,
            verify_key=self.keyring.signing.public,
            seal_key=self.keyring.sealing.public,
            model_key=MODEL_KEY.public,
        )

    def create_task(self, settings: TaskSettings, name: str = "tiny") -> None:
        """Begin to train the tiny model."""
        layout = tiny_bundle().description.layout
        statement = keys.bundle_statement(hashlib.sha256(tiny_build().data).digest())
        self.ask(
            commands.CreateTask(
                name=name,
                settings=settings,
                bundle=tiny_build().data,
                bundle_signature=MODEL_KEY.sign(statement),
                checkpoint=encode_checkpoint(layout, name, 0, flatten(layout, tiny_build().tensors)),
                model=tiny_onnx(),
            )
        )

    def happened(self, kind: str) -> list[Event]:
        """Return the events of one kind, in order."""
        return [event for event in self.events if event.kind == kind]

    def has_happened(self, kind: str, count: int = 1) -> bool:
        """Say whether something happened at least ``count`` times."""
        return len(self.happened(kind)) >= count

    def parameters(self, task: str = "tiny") -> list[float]:
        """Return the newest published parameters, as an operator would read them."""
        service = Service(self.folder, AGGREGATOR_SETTINGS, "test")
        _, _, vector = service.checkpoint(task)
        return [float(value) for value in vector]

    def counter(self, name: str) -> int:
        """Return a counter of the database."""
        with self.database.transaction() as tx:
            return tx.counter(name)


class SimulatedDevice:
    """One device with its disk, its sensors and its script; it can be killed and started again."""

    def __init__(
        self, world: World, broker: MemoryBroker, folder: Path, token: enrollment.Token, script: Script
    ) -> None:
        self.world = world
        self.broker = broker
        self.folder = folder
        self.script = script
        self.sensors = Sensors()
        folder.mkdir()
        self.identity = enroll(world, broker, token)
        assert self.identity.grant is not None
        self.grant: EnrollmentGrant = self.identity.grant
        self.name = self.grant.device
        self.up, self.down = topics.device_up(FLEET, self.name), topics.device_down(FLEET, self.name)

    def start(self) -> None:
        """Start the process on what lies on its disk."""
        self.inbox: SimulatedInbox[RuntimeNews] = SimulatedInbox(self.world)
        self.link: MemoryLink = self.broker.connect(
            self.grant.username, self.grant.password, topics.device_subscriptions(FLEET, self.name), self.inbox.put
        )
        self.journal = Journal(self.folder / "journal.db")
        self.trainer = ScriptedTrainer(self.world, self.script, self.inbox.put)
        self.runtime = Runtime(
            folder=self.folder,
            settings=AGENT_SETTINGS,
            identity=self.identity,
            inbox=self.inbox,
            link=self.link,
            journal=self.journal,
            blobs=BlobStore(self.folder, open_max=32),
            trainer=self.trainer,
            trial=NoTrial(),
            sensors=self.sensors,
            chance=SeededChance(self.world),
            now_s=lambda: self.world.now_s,
        )
        self.inbox.connect(self.runtime.handle)
        self.runtime.start()

    def crash(self) -> None:
        """Lose everything that is not on disk; the trainer dies with its daemon."""
        self.inbox.close()
        self.link.close()
        self.trainer.kill()
        self.journal.close()

    @property
    def session(self) -> str:
        """The name of the state that the session is in."""
        return type(self.runtime._state).__name__


class Fleet:
    """An aggregator and its devices in a world of their own."""

    def __init__(self, folder: Path, scripts: Sequence[Script], seed: int = 0) -> None:
        self.world = World(seed)
        self.broker = MemoryBroker(self.world)
        self.aggregator = SimulatedAggregator(self.world, self.broker, folder / "aggregator")
        self.token = self.aggregator.create_token()
        self.devices = [
            SimulatedDevice(self.world, self.broker, folder / f"device-{number}", self.token, script)
            for number, script in enumerate(scripts)
        ]

    def start(self) -> None:
        """Start every device."""
        for device in self.devices:
            device.start()

    def close(self) -> None:
        """Close what holds files open."""
        self.aggregator.database.close()


def enroll(world: World, broker: MemoryBroker, token: enrollment.Token) -> Identity:
    """Enroll a new device by the real conversation, and return its identity."""
    identity = Identity(
        signing_secret=world.rng.bytes(32),
        sealing_secret=world.rng.bytes(32),
        noise_secret=world.rng.bytes(32),
        client_id=world.rng.bytes(16).hex(),
        machine=world.rng.bytes(16),
        token=token,
    )
    nonce = world.rng.bytes(16)
    grants: list[EnrollmentGrant] = []

    def hear(news: LinkNews) -> None:
        if isinstance(news, MessageArrived):
            grant = read_answer(identity, nonce, news.topic, news.payload)
            grants.extend([grant] if grant is not None else [])

    link = broker.connect(
        enrollment.broker_username(token.token),
        enrollment.broker_password(token.secret),
        (topics.enroll_down(FLEET, token.token),),
        hear,
    )
    link.send(topics.enroll_up(FLEET, token.token), sign_request(identity, nonce))
    world.run_until(lambda: bool(grants), limit_s=10.0)
    link.close()
    return msgspec.structs.replace(identity, grant=grants[0])


def constant_delta(value: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return a delta that moves every parameter by ``value``: with a step of one times its rms it travels exactly."""
    return np.full(tiny_bundle().description.layout.update_size, value, np.float32)
