"""The aggregator's one loop: news become events of a machine, its actions become messages, files and rows.

Order, everywhere: journal the new state in the database, then perform the actions. Nothing here decides a round; who is
believed is decided in `_identify`, everything else in the machines.
"""

import logging
from collections.abc import Callable
from typing import assert_never

import msgspec

from cloud_aggregator import commands, enrollment_desk
from cloud_aggregator.adapters.brokers.directory import BrokerDirectory, BrokerUser, new_password
from cloud_aggregator.adapters.database import Database, Event, Transaction
from cloud_aggregator.adapters.keyring import Keyring
from cloud_aggregator.adapters.model_registry import ModelRegistry
from cloud_aggregator.adapters.schema import DeviceRow
from cloud_aggregator.config import AggregatorSettings
from cloud_aggregator.release_desk import TIMERS as RELEASE_TIMERS
from cloud_aggregator.release_desk import ReleaseDesk
from cloud_aggregator.round_desk import Office, resting_window
from cloud_aggregator.task_desk import TaskDesk
from cloud_aggregator.traffic import TrafficMeter
from cloud_aggregator.update_intake import FETCH_TIMER, UpdateIntake
from federated_core.adapters.blob_store import BlobStore
from federated_core.adapters.chunk_sender import ChunkSender
from federated_core.adapters.inbox import Inbox, TimerFired
from federated_core.adapters.link import Link, LinkDown, LinkNews, LinkUp, MessageArrived, MessageSent
from federated_core.errors import AdapterError, FallowError, LocalMisuseError, RemoteProtocolError
from federated_core.protocol import enrollment, keys, messages, topics, wire
from federated_core.protocol.transfer import Chunk, Outgoing

_log = logging.getLogger(__name__)
_DEVICE_MESSAGES = msgspec.msgpack.Decoder(messages.DeviceMessage)
_ENROLLMENT_REQUESTS = msgspec.msgpack.Decoder(messages.EnrollmentRequest)
_COMMANDS = msgspec.msgpack.Decoder(commands.Command)


class StopAsked(msgspec.Struct, frozen=True):
    """The process is asked to end."""


class BrokerExited(msgspec.Struct, frozen=True):
    """The embedded broker ended unasked."""

    reason: str


News = LinkNews | TimerFired | BrokerExited | StopAsked


class Coordinator:
    """One fleet. `handle` takes one piece of news; `run` takes them from the inbox until it is asked to stop."""

    def __init__(
        self,
        *,
        settings: AggregatorSettings,
        keyring: Keyring,
        database: Database,
        blobs: BlobStore,
        inbox: Inbox[News],
        link: Link,
        broker: BrokerDirectory,
        restart_broker: Callable[[], None],
        announce: Callable[[Event], None],
    ) -> None:
        self._settings = settings
        self._keyring = keyring
        self._database = database
        self._blobs = blobs
        self._inbox = inbox
        self._link = link
        self._broker = broker
        self._restart_broker = restart_broker
        self._announce = announce
        self._registry = ModelRegistry(blobs)
        self._traffic = TrafficMeter()
        self._chunks = ChunkSender(link, blobs, self._note_chunk)
        self._intake = UpdateIntake(settings.fleet, blobs, inbox, keyring.sealing, settings.update_quiet_s)
        self._office = Office(
            settings=settings,
            database=database,
            registry=self._registry,
            intake=self._intake,
            inbox=inbox,
            traffic=self._traffic,
            selection_secret=keyring.selection_secret,
            send=self._send,
            multicast=self._multicast,
            commit=self._commit,
        )
        self._releases = ReleaseDesk(self._office, keyring.model_public, self._broadcast)
        self._desks: dict[str, TaskDesk] = {}
        self._device_keys: dict[str, bytes] = {}

    # --- The loop

    def run(self) -> None:
        """Handle news until the process is asked to stop."""
        self.start()
        while True:
            news = self._inbox.next()
            if isinstance(news, StopAsked):
                return
            if news is not None:
                self.handle(news)

    def start(self) -> None:
        """Go on from what the database says."""
        with self._database.transaction() as tx:
            for device in tx.devices():
                self._device_keys[device.name] = device.verify_key
                self._broker.add_user(self._device_user(device.name, device.broker_password))
            for token in tx.tokens():
                if token.revoked_at is None and token.expires_at > tx.now_s:
                    self._broker.add_user(self._enrollment_user(token.name, token.secret))
            tasks = [row.name for row in tx.tasks()]
        self._broker.apply()
        for name in tasks:
            self._desks[name] = TaskDesk.restore(self._office, name)
            self._desks[name].resume()
        self._releases.restore()
        self._inbox.set_timer("commands", 0.0)

    def handle(self, news: News) -> None:
        """Handle one piece of news. What others send wrongly is counted and forgotten."""
        try:
            self._dispatch(news)
        except RemoteProtocolError as error:
            _log.warning("ignored: %s", error)
            with self._database.transaction() as tx:
                tx.count("protocol_errors", 1)
        except AdapterError as error:
            _log.warning("%s", error)

    def _dispatch(self, news: News) -> None:
        match news:
            case LinkUp():
                _log.info("connected to the broker")
            case LinkDown(reason):
                _log.warning("no broker: %s", reason)
            case MessageArrived(topic, payload):
                self._receive(topic, payload)
            case MessageSent(ticket):
                self._chunks.sent(ticket)
            case TimerFired(name):
                self._ring(name)
            case BrokerExited(reason):
                _log.error("the broker ended (%s), starting it again", reason)
                self._restart_broker()
            case StopAsked():
                pass
            case _:
                assert_never(news)

    def _ring(self, name: str) -> None:
        if name == "commands":
            self._carry_out_commands()
            self._inbox.set_timer("commands", self._settings.command_interval_s)
        elif name.startswith(FETCH_TIMER):
            self._ask_for_chunks(name.removeprefix(FETCH_TIMER))
        elif name.startswith(RELEASE_TIMERS):
            self._releases.ring(name.removeprefix(RELEASE_TIMERS))
        else:
            timer, _, task = name.partition("/")
            self._desks[task].ring(timer)

    # --- Messages from devices

    def _receive(self, topic: str, payload: bytes) -> None:
        address = topics.parse(topic)
        frame = wire.decode_frame(payload)
        match address:
            case topics.DeviceUp(_, device):
                self._receive_from_device(device, topic, frame, len(payload))
            case topics.EnrollUp(_, token) if isinstance(frame, wire.SignedFrame):
                self._receive_enrollment(token, topic, frame, len(payload))
            case _:
                raise RemoteProtocolError(f"{topic}: nothing is expected there")

    def _receive_from_device(self, device: str, topic: str, frame: wire.Frame, size_bytes: int) -> None:
        public = self._device_keys.get(device)
        if public is None:
            raise RemoteProtocolError(f"{topic}: no such device is enrolled")
        self._traffic.note("up", size_bytes)
        if isinstance(frame, wire.ChunkFrame):
            self._receive_chunk(device, frame)
            return
        message = wire.open_message(frame, topic, public, _DEVICE_MESSAGES)
        match message:
            case messages.CheckIn():
                self._receive_check_in(device, message)
            case messages.Report():
                self._desk_of(message.task).rounds.report(device, message)
            case messages.Abandonment():
                self._desk_of(message.task).rounds.give_back(device, message)
            case messages.ChunkRequest(digest, indices):
                self._serve_chunks(device, digest, indices)
            case messages.ReleaseStatus():
                self._releases.hear(device, message)

    def _desk_of(self, task: str) -> TaskDesk:
        desk = self._desks.get(task)
        if desk is None:
            raise RemoteProtocolError(f"$.task: no task {task!r}")
        return desk

    def _receive_check_in(self, device: str, check_in: messages.CheckIn) -> None:
        desks = [desk for desk in self._desks.values() if desk.is_open]
        if desks:
            desks[0].check_in(device, check_in)
            return
        why: messages.RejectionReason = "no-task"
        if self._desks:
            why = "task-paused" if any(desk.is_paused for desk in self._desks.values()) else "task-finished"
        self._send(device, messages.Rejection(check_in.check_in_id, why, resting_window(self._settings.pacing)))

    def _receive_chunk(self, device: str, frame: wire.ChunkFrame) -> None:
        try:
            is_whole = self._intake.take(device, frame)
        except RemoteProtocolError:
            for desk in self._desks.values():
                desk.rounds.judge_update(device, is_damaged=True)
            raise
        if is_whole:
            for desk in self._desks.values():
                desk.rounds.judge_update(device)

    def _ask_for_chunks(self, device: str) -> None:
        requests = self._intake.note_silence(device)
        for request in requests or ():
            self._send(device, messages.ChunksMissing(request.digest, request.indices))

    def _serve_chunks(self, device: str, digest: bytes, indices: tuple[int, ...]) -> None:
        if not self._registry.is_public(digest):
            self._send(device, messages.BlobUnavailable(digest))
            return
        down = topics.device_down(self._settings.fleet, device)
        self._chunks.want(down, tuple(Chunk(digest, index) for index in indices))

    # --- Enrollment

    def _receive_enrollment(self, token_name: str, topic: str, frame: wire.SignedFrame, size_bytes: int) -> None:
        request = wire.decode_body(frame.body, _ENROLLMENT_REQUESTS)
        wire.open_message(frame, topic, request.verify_key, _ENROLLMENT_REQUESTS)  # It holds the key that it names.
        if request.token != token_name:
            raise RemoteProtocolError(f"$.token: expected {token_name!r}, got {request.token!r}")
        answer = self._decide_enrollment(request)
        down = topics.enroll_down(self._settings.fleet, token_name)
        payload = wire.sign_message(self._keyring.signing, down, answer)
        with self._database.transaction() as tx:
            tx.count("bytes_enrollment", size_bytes + len(payload))
        self._link.send(down, payload)

    def _decide_enrollment(self, request: messages.EnrollmentRequest) -> messages.EnrollmentAnswer:
        fleet, name = self._settings.fleet, enrollment.device_name(request.verify_key)
        with self._database.transaction() as tx:
            token, device = tx.token(request.token), tx.device(name)
            on_record = None
            if token is not None:
                on_record = enrollment_desk.TokenOnRecord(
                    token.secret, token.uses, token.uses_max, token.expires_at, token.revoked_at is not None
                )
            known = None if device is None else enrollment_desk.DeviceOnRecord(device.seal_key)
            why = enrollment_desk.find_refusal(fleet, request, on_record, known, tx.now_s)
            if why is not None:
                tx.record("enrollment-refused", device=name, token=request.token, why=why)
            elif device is None and token is not None:
                others = [other.name for other in tx.devices() if other.machine == request.machine]
                if others:
                    tx.record("identity-alert", device=name, machine_also_enrolled_as=others)
                device = self._enroll(tx, name, request)
                token.uses += 1
                tx.record("enrolled", device=name, token=request.token)
            password = device.broker_password if device else ""
        self._publish(tx)
        if why is not None:
            return messages.EnrollmentRefusal(request.nonce, why)
        self._device_keys[name] = request.verify_key
        self._broker.add_user(self._device_user(name, password))
        self._broker.apply()
        grant = messages.EnrollmentGrant(fleet, name, name, password)
        context = keys.grant_context(fleet, request.token, request.nonce)
        return messages.EnrollmentReply(
            request.nonce, keys.seal(request.seal_key, msgspec.msgpack.encode(grant), context)
        )

    def _enroll(self, tx: Transaction, name: str, request: messages.EnrollmentRequest) -> DeviceRow:
        row = DeviceRow(
            name=name,
            verify_key=request.verify_key,
            seal_key=request.seal_key,
            machine=request.machine,
            broker_password=new_password(),
            token=request.token,
            enrolled_at=tx.now_s,
            agent_version="",
            engine="",
        )
        tx.add_device(row)
        return row

    def _device_user(self, name: str, password: str) -> BrokerUser:
        fleet = self._settings.fleet
        return BrokerUser(
            name,
            password,
            publish=(topics.device_up(fleet, name),),
            subscribe=topics.device_subscriptions(fleet, name),
        )

    def _enrollment_user(self, token: str, secret: bytes) -> BrokerUser:
        fleet = self._settings.fleet
        return BrokerUser(
            enrollment.broker_username(token),
            enrollment.broker_password(secret),
            publish=(topics.enroll_up(fleet, token),),
            subscribe=(topics.enroll_down(fleet, token),),
        )

    # --- The operator's commands

    def _carry_out_commands(self) -> None:
        with self._database.transaction() as tx:
            asked = [(row.number, row.actor, row.body) for row in tx.open_commands()]
        for number, actor, body in asked:
            problem = None
            try:
                command = _COMMANDS.decode(body)
                self._carry_out(command, actor)
            except (FallowError, msgspec.DecodeError) as error:
                problem = str(error)
                _log.warning("command %d of %s: %s", number, actor, problem)
            with self._database.transaction() as tx:
                tx.conclude_command(number, problem)

    def _carry_out(self, command: commands.Command, actor: str) -> None:
        with self._database.transaction() as tx:
            tx.record("command", task=getattr(command, "name", None), actor=actor, command=type(command).__name__)
        self._publish(tx)
        match command:
            case commands.CreateToken(name, secret, uses_max, lifetime_s):
                with self._database.transaction() as tx:
                    if tx.token(name) is not None:
                        raise LocalMisuseError(f"token {name!r} exists already")
                    tx.add_token(name, secret, uses_max, lifetime_s)
                self._broker.add_user(self._enrollment_user(name, secret))
                self._broker.apply()
            case commands.RevokeToken(name):
                with self._database.transaction() as tx:
                    token = tx.token(name)
                    if token is None:
                        raise LocalMisuseError(f"no token {name!r}")
                    token.revoked_at = tx.now_s
                self._broker.remove_user(enrollment.broker_username(name))
                self._broker.apply()
            case commands.CreateTask(name):
                if name in self._desks:
                    raise LocalMisuseError(f"task {name!r} exists already")
                self._desks[name] = TaskDesk.create(self._office, command, self._keyring.model_public)
                self._desks[name].resume()
            case commands.PauseTask(name):
                self._known_desk(name).pause()
            case commands.ResumeTask(name):
                self._known_desk(name).unpause()
            case commands.AbortTask(name):
                self._known_desk(name).abort()
            case commands.PromoteRelease():
                self._releases.promote(command, actor)
            case commands.HaltRelease(number):
                self._releases.halt(number)
            case commands.AdvanceRelease(number):
                self._releases.advance(number)
            case _:
                assert_never(command)

    def _known_desk(self, name: str) -> TaskDesk:
        desk = self._desks.get(name)
        if desk is None:
            raise LocalMisuseError(f"no task {name!r}; known are {', '.join(sorted(self._desks)) or 'none'}")
        return desk

    # --- Out

    def _send(self, device: str, message: messages.AggregatorMessage) -> None:
        down = topics.device_down(self._settings.fleet, device)
        payload = wire.sign_message(self._keyring.signing, down, message)
        self._traffic.note("down", len(payload))
        self._link.send(down, payload)

    def _broadcast(self, task: str, message: messages.AggregatorMessage) -> None:
        topic = topics.task_multicast(self._settings.fleet, task)
        payload = wire.sign_message(self._keyring.signing, topic, message)
        self._traffic.note("down", len(payload) * len(self._device_keys))
        self._link.send(topic, payload)

    def _multicast(self, task: str, blob: messages.BlobReference) -> None:
        topic = topics.task_multicast(self._settings.fleet, task)
        self._chunks.want(topic, tuple(Chunk(blob.digest, index) for index in range(wire.chunk_count(blob.size_bytes))))

    def _note_chunk(self, outgoing: Outgoing, size_bytes: int) -> None:
        """Count a chunk that goes out; a multicast one is delivered to every device that listens."""
        is_multicast = isinstance(topics.parse(outgoing.topic), topics.TaskMulticast)
        receiver_count = len(self._device_keys) if is_multicast else 1
        self._traffic.note(self._registry.purpose_of(outgoing.chunk.digest), size_bytes * receiver_count)

    def _commit(self, write: Callable[[Transaction], None]) -> None:
        """Run ``write`` in one transaction, then announce what it recorded."""
        with self._database.transaction() as tx:
            write(tx)
        self._publish(tx)

    def _publish(self, tx: Transaction) -> None:
        for event in tx.recorded:
            self._announce(event)
