"""A link to an MQTT 3.1.1 broker, kept up by a thread of its own; the rest of the process sees only news and tickets.

Each connection is a new paho client (`mqtt_connection`), which forgets with its end what it was given. What was not
acknowledged goes back to the front of our own queue, in order, and is offered again on the next connection: a frame may
arrive twice, and must be idempotent. A PUBACK is not delivery: ``MessageSent`` frees a slot of the queue and proves
nothing else.
"""

import logging
import random
import ssl
import threading
import time
from collections.abc import Callable

from federated_core.adapters.link import LinkDown, LinkNews, LinkSettings
from federated_core.adapters.mqtt_connection import Bell, Connection, Outbox
from federated_core.errors import AdapterError, LocalMisuseError

_log = logging.getLogger(__name__)


class MqttLink:
    """Keeps one connection up and reports ``LinkNews``; every failed attempt is one ``LinkDown``.

    ``news`` is called from the link's thread and must only enqueue. The thread runs from construction to `close`.
    """

    def __init__(self, settings: LinkSettings, news: Callable[[LinkNews], None]) -> None:
        self._settings = settings
        self._news = news
        self._tls = _trust_only(settings.ca_pem) if settings.ca_pem else None
        self._outbox = Outbox(settings.queue_max)
        self._bell = Bell()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{settings.client_id}", daemon=True)
        self._thread.start()

    @property
    def sent_bytes(self) -> int:
        """Payload bytes handed to connections so far, repetitions included."""
        return self._outbox.sent_bytes

    @property
    def received_bytes(self) -> int:
        """Payload bytes that arrived so far."""
        return self._outbox.received_bytes

    @property
    def queued_count(self) -> int:
        """Messages that wait or are not acknowledged: `send` takes more while this is below ``queue_max``."""
        return len(self._outbox)

    def send(self, topic: str, payload: bytes) -> int:
        """Queue a message and return its ticket; `AdapterError` when the queue is full. Callable from any thread."""
        if len(payload) > self._settings.payload_max_bytes:
            raise LocalMisuseError(
                f"payload for {topic}: at most {self._settings.payload_max_bytes} bytes, got {len(payload)}"
            )
        if not topic or "+" in topic or "#" in topic:
            raise LocalMisuseError(f"topic: expected a name without wildcards, got {topic!r}")
        if self._closing.is_set():
            raise LocalMisuseError(f"send to {topic} after close()")
        ticket = self._outbox.put(topic, payload)
        self._bell.ring()
        return ticket

    def close(self) -> None:
        """Disconnect and wait for the thread; what was not sent is dropped, and no news comes afterwards."""
        self._closing.set()
        self._bell.ring()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        ceiling_s = self._settings.reconnect_min_s
        delay_s = random.uniform(0.0, self._settings.first_delay_max_s)
        while not self._closing.wait(delay_s):
            began_s = time.monotonic()
            reason = self._connect_once()
            self._outbox.take_back()
            if self._closing.is_set():
                break
            self._report(LinkDown(reason))
            # A link that held for longer than the wait it might cost starts afresh; one that is cut at once does not.
            if time.monotonic() - began_s > ceiling_s:
                ceiling_s = self._settings.reconnect_min_s
            delay_s = random.uniform(0.0, ceiling_s)
            ceiling_s = min(2.0 * ceiling_s, self._settings.reconnect_max_s)
        self._bell.close()

    def _connect_once(self) -> str:
        connection = Connection(self._settings, self._tls, self._outbox, self._report)
        try:
            return connection.serve(self._bell, self._closing)
        except Exception as error:  # noqa: BLE001  Whatever paho raises, the thread survives and builds a new client.
            _log.exception("the MQTT client failed")
            return f"the MQTT client failed: {error!r}"
        finally:
            connection.drop()

    def _report(self, news: LinkNews) -> None:
        try:
            self._news(news)
        except Exception:  # noqa: BLE001  A receiver's mistake must not end the link that others hear from.
            _log.exception("the receiver of %s failed", type(news).__name__)


def _trust_only(ca_pem: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as error:
        raise AdapterError(f"ca_pem: expected a certificate in PEM form: {error}") from error
