"""One connection over paho-mqtt, from TCP to its end, run by the thread that calls `Connection.serve`.

Only that thread touches paho (its external-loop functions, no paho thread), so no lock of ours or paho's can be taken
in the wrong order. Paho ignores its window on a reconnect and keeps what it was given: it is given at most ``WINDOW``
publishes that are not acknowledged, and never reconnects.
"""

import contextlib
import dataclasses
import logging
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import cast

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, error_string
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from federated_core.adapters.link import LinkNews, LinkSettings, LinkUp, MessageArrived, MessageSent
from federated_core.errors import AdapterError

WINDOW = 4
_HEADROOM_BYTES = 1024  # Topic, packet id and header around a payload.
_TICK_MAX_S = 5.0  # How often an idle connection looks at its keepalive.

_log = logging.getLogger(__name__)


class Bell:
    """Wakes a thread that waits in a selector."""

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.settimeout(0.0)
        self._sender.settimeout(0.0)

    def fileno(self) -> int:
        """Be something that a selector can wait for."""
        return self._receiver.fileno()

    def ring(self) -> None:
        """Wake the thread, from any thread."""
        with contextlib.suppress(OSError):  # Full: the thread wakes anyway. Closed: it is gone.
            self._sender.send(b"\0")

    def silence(self) -> None:
        """Take note that it rang."""
        with contextlib.suppress(BlockingIOError):
            self._receiver.recv(4096)

    def close(self) -> None:
        """Give both sockets back."""
        self._receiver.close()
        self._sender.close()


@dataclasses.dataclass(frozen=True, slots=True)
class Outgoing:
    """A message on its way, from `MqttLink.send` to its PUBACK."""

    ticket: int
    topic: str
    payload: bytes


class Outbox:
    """What is to be published: first what waits, then what is in paho's hands until its PUBACK. Counts the bytes."""

    def __init__(self, capacity: int) -> None:
        self.sent_bytes = 0
        self.received_bytes = 0
        self._capacity = capacity
        self._lock = threading.Lock()  # Never held while paho is called.
        self._waiting: deque[Outgoing] = deque()
        self._in_hand: dict[int, Outgoing] = {}
        self._last_ticket = 0

    def __len__(self) -> int:
        with self._lock:
            return len(self._waiting) + len(self._in_hand)

    @property
    def in_hand_count(self) -> int:
        """Messages that paho sent and the broker has not acknowledged."""
        return len(self._in_hand)

    def put(self, topic: str, payload: bytes) -> int:
        """Queue a message and return its ticket."""
        with self._lock:
            if len(self._waiting) + len(self._in_hand) >= self._capacity:
                raise AdapterError(f"the send queue is full: {self._capacity} messages are not acknowledged")
            self._last_ticket += 1
            self._waiting.append(Outgoing(self._last_ticket, topic, payload))
            return self._last_ticket

    def take(self) -> Outgoing | None:
        """Take the next message if the window has room for it, and count it as sent."""
        with self._lock:
            if not self._waiting or len(self._in_hand) >= WINDOW:
                return None
            outgoing = self._waiting.popleft()
            self.sent_bytes += len(outgoing.payload)
            return outgoing

    def hand(self, packet_id: int, outgoing: Outgoing) -> None:
        """Remember under which packet id paho sends ``outgoing``."""
        with self._lock:
            self._in_hand[packet_id] = outgoing

    def acknowledge(self, packet_id: int) -> int | None:
        """Forget the message of a PUBACK and return its ticket."""
        with self._lock:
            outgoing = self._in_hand.pop(packet_id, None)
        return None if outgoing is None else outgoing.ticket

    def take_back(self) -> None:
        """Put what was in paho's hands before everything that waits, in its old order."""
        with self._lock:
            self._waiting.extendleft(reversed(self._in_hand.values()))
            self._in_hand.clear()


class _BoundedClient(Client):
    """A paho client that reads no packet larger than ``packet_max_bytes``: the broker is not trusted."""

    packet_max_bytes = 0
    oversize_bytes = 0

    def _sock_recv(self, bufsize: int) -> bytes:
        # Paho asks for the whole packet at once, and Python would allocate as much as the broker announced (256 MB).
        if bufsize > self.packet_max_bytes:
            self.oversize_bytes = bufsize
            raise ConnectionAbortedError(f"a packet of {bufsize} bytes")
        return super()._sock_recv(bufsize)


class Connection:
    """One attempt: it is up after CONNACK and SUBACK, and ends for a reason in words."""

    def __init__(
        self, settings: LinkSettings, tls: ssl.SSLContext | None, outbox: Outbox, report: Callable[[LinkNews], None]
    ) -> None:
        self._settings = settings
        self._outbox = outbox
        self._report = report
        self._is_up = False
        self._end = ""
        self._progress_s = time.monotonic()
        self._client = client = _BoundedClient(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            clean_session=settings.clean_session,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.packet_max_bytes = settings.payload_max_bytes + _HEADROOM_BYTES
        client.connect_timeout = settings.connect_timeout_s
        client.username_pw_set(settings.username, settings.password)
        if tls is not None:
            client.tls_set_context(tls)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect

    def serve(self, bell: Bell, closing: threading.Event) -> str:
        """Connect, subscribe, publish and receive until it ends or ``closing`` is set; return why it ended."""
        try:
            self._client.connect(self._settings.host, self._settings.port, self._settings.keepalive_s)
        except OSError as error:
            return f"no connection to {self._settings.host}:{self._settings.port}: {error}"
        sock = cast("socket.socket | ssl.SSLSocket", self._client.socket())
        # An acknowledgement of 60 bytes must not wait 40 ms for company.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._progress_s = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(bell, selectors.EVENT_READ)
            selector.register(sock, selectors.EVENT_READ)
            while not self._end and not closing.is_set():
                self._turn(selector, sock, bell)
        if self._client.socket() is not None:
            self._client.disconnect()  # NATS jails a client id that comes back before its end was noticed.
        return self._end

    def drop(self) -> None:
        """Close the socket and cut the references between paho and us, which would keep both alive."""
        if (sock := self._client.socket()) is not None:
            sock.close()
        self._client.on_connect = self._client.on_subscribe = self._client.on_publish = None
        self._client.on_message = self._client.on_disconnect = None

    def _turn(self, selector: selectors.BaseSelector, sock: socket.socket | ssl.SSLSocket, bell: Bell) -> None:
        self._hand_over()
        if self._client.socket() is None:
            self._end = self._end or "the connection was lost"
            return
        # TLS decrypts whole records: what it holds already wakes no selector.
        has_leftover = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        timeout_s = min(_TICK_MAX_S, self._settings.keepalive_s / 4) if self._is_up else 1.0
        selector.modify(sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if self._client.want_write() else 0))
        masks = {key.fileobj: mask for key, mask in selector.select(0.0 if has_leftover else timeout_s)}
        if bell in masks:
            bell.silence()
        if has_leftover or masks.get(sock, 0) & selectors.EVENT_READ:
            self._check(self._client.loop_read())
        if masks.get(sock, 0) & selectors.EVENT_WRITE and not self._end:
            self._check(self._client.loop_write())
        if not self._end:
            self._check(self._client.loop_misc())
        self._watch_deadlines()

    def _hand_over(self) -> None:
        while self._is_up and not self._end and (outgoing := self._outbox.take()) is not None:
            if self._outbox.in_hand_count == 0:
                self._progress_s = time.monotonic()
            information = self._client.publish(outgoing.topic, outgoing.payload, qos=1)
            self._outbox.hand(information.mid, outgoing)  # Whatever the return code: if this ends, it is taken back.
            self._check(information.rc)

    def _check(self, code: MQTTErrorCode) -> None:
        if self._client.oversize_bytes:
            self._end = (
                f"the broker sent a packet of {self._client.oversize_bytes} bytes, "
                f"at most {self._client.packet_max_bytes} are read"
            )
        elif code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._end = self._end or error_string(code).rstrip(".").lower()

    def _watch_deadlines(self) -> None:
        waited_s = time.monotonic() - self._progress_s
        if not self._is_up and waited_s > self._settings.connect_timeout_s:
            self._end = self._end or f"no CONNACK and SUBACK within {self._settings.connect_timeout_s:g} s"
        if self._is_up and self._outbox.in_hand_count and waited_s > self._settings.keepalive_s:
            self._end = self._end or f"no PUBACK within {self._settings.keepalive_s} s"

    def _on_connect(
        self, _client: Client, _data: object, _flags: ConnectFlags, code: ReasonCode, _properties: Properties | None
    ) -> None:
        if code.is_failure:
            self._end = f"the broker refused the connection: {str(code).lower()}"
        elif self._settings.subscriptions:  # Every time: a session that the broker says it kept may be another's.
            self._client.subscribe([(topic_filter, 1) for topic_filter in self._settings.subscriptions])
        else:
            self._rise()

    def _on_subscribe(
        self, _client: Client, _data: object, _packet_id: int, codes: list[ReasonCode], _properties: Properties | None
    ) -> None:
        expected = self._settings.subscriptions
        refused = [each for each, code in zip(expected, codes, strict=False) if code.is_failure]
        if refused or len(codes) != len(expected):
            self._end = f"the broker refused the subscription: {', '.join(refused) or 'an answer of the wrong length'}"
        else:
            self._rise()

    def _rise(self) -> None:
        self._is_up = True
        self._report(LinkUp())

    def _on_publish(
        self, _client: Client, _data: object, packet_id: int, _code: ReasonCode, _properties: Properties
    ) -> None:
        self._progress_s = time.monotonic()
        if (ticket := self._outbox.acknowledge(packet_id)) is not None:
            self._report(MessageSent(ticket))

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            _log.warning("a message on a topic that is no UTF-8 was dropped")
            return
        self._outbox.received_bytes += len(message.payload)
        self._report(MessageArrived(topic, bytes(message.payload)))

    def _on_disconnect(
        self, _client: Client, _data: object, _flags: DisconnectFlags, code: ReasonCode, _properties: Properties | None
    ) -> None:
        if str(code) == "Keep alive timeout":
            self._end = self._end or f"the broker did not answer for {self._settings.keepalive_s} s"
