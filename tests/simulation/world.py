"""A fleet in one thread: the real machines, loops, messages, signatures, codec and sums on simulated adapters."""

import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from cloud_aggregator import commands
from cloud_aggregator.adapters.database import Database
from cloud_aggregator.adapters.keyring import Keyring
from cloud_aggregator.adapters.schema import DeviceRow
from cloud_aggregator.config import AggregatorSettings, PacingSettings
from cloud_aggregator.task_progress import Finished, TaskSettings, TaskState
from cloud_aggregator.training_round import Abandoned, Completed, RoundSettings
from edge_agent.adapters.identity import Identity
from edge_agent.config import AgentSettings
from federated_core.adapters import blob_transfer
from federated_core.protocol import enrollment, keys, messages, wire
from tests.simulation import coverage
from tests.simulation.clockwork import Dice, Schedule
from tests.simulation.faults import FAULTS, Misfortune, draw_lies, draw_plan
from tests.simulation.memory_database import MemoryDatabase
from tests.simulation.network import Network
from tests.simulation.oracle import Oracle, Violation
from tests.simulation.parties import Gatecrasher, OldAgent, Stranger
from tests.simulation.processes import Aggregator, Device, remove_folder
from tests.simulation.small_model import small_model
from tests.simulation.trainer import HONEST_NORM_MAX

FLEET, TASK = "fleet", "task"
CALM_S = 1500.0  # After this long at the latest nothing goes wrong any more.
PATIENCE_S = 7200.0  # In calm weather everything must be done within this time.
SETTLING_S = 1500.0  # After the end of the task each device must be heard and answered within this time.
_TASK_STATES: msgspec.msgpack.Decoder[TaskState] = msgspec.msgpack.Decoder(TaskState)
_MODEL_KEY = keys.SigningKey(bytes(range(100, 132)))


class Scenario(msgspec.Struct, frozen=True):
    """Everything that makes a world: the same scenario is the same history."""

    seed: int
    device_count: int = 20
    round_count: int = 10
    faults: tuple[str, ...] = FAULTS
    database: Literal["memory", "sqlite"] = "memory"


class Outcome(msgspec.Struct, frozen=True):
    """What became of a world."""

    scenario: Scenario
    violations: tuple[Violation, ...]
    faults: tuple[str, ...]
    completed_count: int
    abandoned_count: int
    virtual_s: float
    event_count: int
    cpu_s: float
    hits: dict[str, int]
    crashes: dict[str, int]
    pairs: dict[coverage.Pair, int]
    history: bytes  # Digest of all steps of all machines: the same for the same scenario.


class World:
    """One scenario, played once."""

    def __init__(self, scenario: Scenario, transcript: list[str] | None = None) -> None:
        self._scenario = scenario
        self._transcript = transcript
        self._history = hashlib.sha256()
        self._actor: str | None = None
        self._pairs: coverage.Counts = {}
        seed = scenario.seed
        self._folder = Path(tempfile.mkdtemp(prefix="fallow-world-", dir=_memory_folder()))
        self.schedule = Schedule()
        self.network = Network(self.schedule, Dice(seed, 3), self._saw_send)
        self._plan = draw_plan(seed, scenario.faults)
        self._settings = _task_settings(seed, scenario)
        model = small_model()
        keyring, (crasher, *identities) = _make_keys(seed, scenario.device_count + 1)
        lies = draw_lies(seed, scenario.device_count, self._plan.faults)
        dice = Dice(seed, 4)
        devices: dict[str, Device] = {}
        for number, identity in enumerate(identities):
            device = Device(
                identity=identity,
                settings=AgentSettings(watch_interval_s=2.0),
                folder=self._folder / f"device-{number}",
                layout=model.layout,
                lie=lies.get(number),
                speed_s=dice.uniform(100.0, 300.0) if dice.happens(0.1) else dice.uniform(3.0, 40.0),
                schedule=self.schedule,
                network=self.network,
                dice=Dice(seed, 5, number),
                witness=self,
            )
            devices[device.name] = device
        self.devices = devices
        aggregator_folder = self._folder / "aggregator"
        aggregator_folder.mkdir()
        self.database: Database = MemoryDatabase(self._aggregator_now_s)
        if scenario.database == "sqlite":
            self.database = Database(f"sqlite:///{aggregator_folder / 'aggregator.db'}", self._aggregator_now_s)
        self.aggregator: Aggregator = Aggregator(
            settings=AggregatorSettings(
                fleet=FLEET, pacing=PacingSettings(resting_min_s=60.0, resting_max_s=300.0), command_interval_s=20.0
            ),
            keyring=keyring,
            database=self.database,
            folder=aggregator_folder,
            schedule=self.schedule,
            network=self.network,
            dice=Dice(seed, 6),
            witness=self,
        )
        self.oracle = Oracle(
            task=TASK,
            settings=self._settings,
            layout=model.layout,
            database=self.database,
            blobs=aggregator_folder,
            now_s=lambda: self.schedule.now_s,
            devices=devices,
        )
        old = identities[0]
        self._misfortune = Misfortune(
            plan=self._plan,
            schedule=self.schedule,
            dice=Dice(seed, 7),
            network=self.network,
            devices=tuple(devices.values()),
            aggregator=self.aggregator,
            stranger=Stranger(self.network, Dice(seed, 8), FLEET, tuple(devices)),
            old_agent=OldAgent(self.network, Dice(seed, 9), FLEET, next(iter(devices)), old.signing_secret),
            gatecrasher=Gatecrasher(
                self.network, Dice(seed, 12), crasher, model.layout, self._settings.plan.example_count_max
            ),
            newest_round=self._newest_round,
            pause=self._pause,
        )
        self._enroll((crasher, *identities))
        self._ask(
            commands.CreateTask(
                name=TASK,
                settings=self._settings,
                bundle=model.built.data,
                bundle_signature=_MODEL_KEY.sign(keys.bundle_statement(hashlib.sha256(model.built.data).digest())),
                checkpoint=model.checkpoint(TASK),
                model=model.original,
            )
        )

    def _aggregator_now_s(self) -> float:
        return self.aggregator.now_s()

    # --- Playing

    def run(self) -> Outcome:
        """Play until the task is over and all have come to rest, or until a check fails."""
        began_s = time.process_time()
        logging.disable(logging.CRITICAL)
        try:
            with coverage.watched(self._pairs, self._saw_step), chunks_of(_draw_chunk_bytes(self._scenario.seed)):
                self._play()
        finally:
            logging.disable(logging.NOTSET)
            remove_folder(self._folder)
        states = self.oracle.round_states.values()
        return Outcome(
            scenario=self._scenario,
            violations=tuple(self.oracle.violations),
            faults=self._plan.faults,
            completed_count=sum(isinstance(state, Completed) for state in states),
            abandoned_count=sum(isinstance(state, Abandoned) for state in states),
            virtual_s=round(self.schedule.now_s, 3),
            event_count=self.schedule.event_count,
            cpu_s=time.process_time() - began_s,
            hits=self.network.hits,
            crashes=self.oracle.crashes,
            pairs=self._pairs,
            history=self._history.digest(),
        )

    def _play(self) -> None:
        self.aggregator.boot()
        dice = Dice(self._scenario.seed, 10)
        for device in self.devices.values():
            self.schedule.after(dice.uniform(0.0, 10.0), device.boot)
        self._misfortune.begin()
        self._until(CALM_S, self._is_finished)
        self._misfortune.end()
        self._until(self.schedule.now_s + PATIENCE_S, self._is_finished)
        if self.oracle.violations:
            return
        self._check_end_of_task()
        finished_s = self.schedule.now_s
        self._until(finished_s + SETTLING_S, lambda: not self._restless(finished_s))
        if not self.oracle.violations:
            self._check_rest(finished_s)

    def _until(self, until_s: float, is_reached: Callable[[], bool]) -> None:
        oracle = self.oracle
        while not oracle.violations and self.schedule.step(until_s):
            oracle.check_trainers()
            if self.schedule.event_count % 64 == 0 and is_reached():
                return

    def _is_finished(self) -> bool:
        with self.database.transaction() as tx:
            task = tx.task(TASK)
            return task is not None and isinstance(_TASK_STATES.decode(task.state), Finished)

    def _check_end_of_task(self) -> None:
        complain = self.oracle.complain
        if not self._is_finished():
            complain("nobody waits for ever", "the task is not finished, long after everything was mended")
            return
        completed = [state for state in self.oracle.round_states.values() if isinstance(state, Completed)]
        trained_count = sum(state.head.plan.kind == "train" for state in completed)
        if trained_count != self._settings.rounds_max or len(completed) != trained_count + 1:
            complain(
                "the task ends after the rounds that were asked for",
                f"{trained_count} training rounds of {self._settings.rounds_max}, {len(completed)} rounds in all",
            )

    def _restless(self, finished_s: float) -> dict[str, str]:
        """Return the devices that nobody answered since the end of the task, or that still work, and their states."""
        states = {
            name: "dead" if device.runtime is None else type(device.runtime._state).__name__
            for name, device in self.devices.items()
            if device.lie != "silent-blob"
        }
        return {
            name: state
            for name, state in states.items()
            if self.oracle.answered_at_s.get(name, 0.0) < finished_s or state in ("Training", "Reporting")
        }

    def _check_rest(self, finished_s: float) -> None:
        for name, state in self._restless(finished_s).items():
            self.oracle.complain("nobody waits for ever", f"{name} was not answered since the end: {state}")

    # --- What the world does to itself

    def _enroll(self, identities: tuple[Identity, ...]) -> None:
        with self.database.transaction() as tx:
            for identity in identities:
                assert identity.grant is not None
                tx.add_device(
                    DeviceRow(
                        name=identity.grant.device,
                        verify_key=keys.SigningKey(identity.signing_secret).public,
                        seal_key=keys.SealingKey(identity.sealing_secret).public,
                        machine=identity.machine,
                        broker_password=identity.grant.password,
                        token="token",
                        enrolled_at=tx.now_s,
                        agent_version="",
                        engine="",
                    )
                )

    def _ask(self, command: commands.Command) -> None:
        with self.database.transaction() as tx:
            tx.add_command(msgspec.msgpack.encode(command), "operator")

    def _pause(self, for_s: float) -> None:
        self._ask(commands.PauseTask(TASK))
        self.schedule.after(for_s, lambda: self._ask(commands.ResumeTask(TASK)))

    def _newest_round(self) -> tuple[int, bytes]:
        number = max(self.oracle.round_states, default=0)
        state = self.oracle.round_states.get(number)
        return number, bytes(32) if state is None else state.head.base

    # --- Witness

    def enter(self, name: str | None) -> None:
        self._actor = name

    def _saw_step(self, machine: str, state: str, event: str, after: str, actions: tuple[str, ...]) -> None:
        self.oracle.saw_step(machine, state, event, after, actions)
        line = f"{self.schedule.now_s:.3f} {self._actor} {machine} {state} --{event}--> {after} [{' '.join(actions)}]"
        self._history.update(line.encode())
        if self._transcript is not None:
            self._transcript.append(line)

    def _saw_send(self, name: str, topic: str, payload: bytes) -> None:
        self.oracle.saw_send(name, topic, payload)

    def saw_save(self, device: str, key: str, value: object) -> None:
        self.oracle.saw_save(device, key, value)

    def saw_update(self, device: str, piece: object, blob: bytes) -> None:
        self.oracle.saw_update(device, piece, blob)  # type: ignore[arg-type]

    def saw_trainer(self, device: str, *, is_busy: bool) -> None:
        self.oracle.saw_trainer(device, is_busy=is_busy)

    def saw_commit(self) -> None:
        self.oracle.saw_commit()

    def saw_exception(self, name: str, error: Exception) -> None:
        self.oracle.saw_exception(name, error)

    def saw_crash(self, name: str, call: str) -> None:
        self.oracle.saw_crash(name, call)


def _task_settings(seed: int, scenario: Scenario) -> TaskSettings:
    dice = Dice(seed, 0)
    goal = 3 + dice.below(max(1, scenario.device_count // 2 - 3))
    return TaskSettings(
        plan=messages.Plan(kind="train", example_count_max=1000, delta_norm_max=HONEST_NORM_MAX),
        rounds=RoundSettings(
            goal=goal,
            report_count_min=max(2, goal // 2),
            overselection_ratio=dice.uniform(1.0, 1.6),
            selection_s=20.0,
            reporting_s=120.0,
        ),
        rounds_max=scenario.round_count,
        patience_rounds=1000,
    )


def _draw_chunk_bytes(seed: int) -> int:
    """Draw how small chunks are: a small model in small chunks is transferred like a large one in large ones."""
    return (wire.CHUNK_BYTES, 1000, 150)[Dice(seed, 13).below(3)]


@contextmanager
def chunks_of(size_bytes: int) -> Iterator[None]:
    """Let both sides cut blobs into chunks of another size."""
    usual_bytes = wire.CHUNK_BYTES
    for module in (wire, blob_transfer):
        setattr(module, "CHUNK_BYTES", size_bytes)  # noqa: B010 - Not its to export: mypy would say so.
    try:
        yield
    finally:
        for module in (wire, blob_transfer):
            setattr(module, "CHUNK_BYTES", usual_bytes)  # noqa: B010


def _make_keys(seed: int, device_count: int) -> tuple[Keyring, tuple[Identity, ...]]:
    dice = Dice(seed, 11)
    signing, sealing = keys.SigningKey(dice.token_bytes(32)), keys.SealingKey(dice.token_bytes(32))
    keyring = Keyring(signing, sealing, dice.token_bytes(32), "aggregator", _MODEL_KEY.public)
    token = enrollment.Token(
        "broker", 1883, FLEET, "token", bytes(32), signing.public, sealing.public, _MODEL_KEY.public
    )
    identities = []
    for _ in range(device_count):
        secret = dice.token_bytes(32)
        name = enrollment.device_name(keys.SigningKey(secret).public)
        identities.append(
            Identity(
                signing_secret=secret,
                sealing_secret=dice.token_bytes(32),
                noise_secret=dice.token_bytes(32),
                client_id=name,
                machine=dice.token_bytes(16),
                token=token,
                grant=messages.EnrollmentGrant(FLEET, name, name, "password"),
            )
        )
    return keyring, tuple(identities)


def _memory_folder() -> str | None:
    folder = Path("/dev/shm")  # noqa: S108 - A world's disks: thousands of syncs that need not reach a real one.
    return str(folder) if folder.is_dir() else None
