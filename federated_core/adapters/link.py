"""What a link to a broker reports, and how one is set up: shared by the real link and by whatever stands in for it."""

import dataclasses
from typing import Protocol

from federated_core.errors import LocalMisuseError

SUBSCRIPTIONS_MAX = 8  # In one SUBSCRIBE: AWS IoT Core's limit, the lowest that we know.


@dataclasses.dataclass(frozen=True, slots=True)
class LinkUp:
    """The broker accepted us and every subscription; what is sent from now on is published."""


@dataclasses.dataclass(frozen=True, slots=True)
class LinkDown:
    """The connection ended, or an attempt failed, for ``reason`` in words; the link tries again by itself."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class MessageArrived:
    """A message on one of our subscriptions."""

    topic: str
    payload: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class MessageSent:
    """The broker acknowledged the publish of ``ticket``; nobody else has."""

    ticket: int


LinkNews = LinkUp | LinkDown | MessageArrived | MessageSent


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """Where to connect, as whom, and within which bounds."""

    host: str
    port: int
    username: str
    password: str = dataclasses.field(repr=False)
    client_id: str
    clean_session: bool = True
    subscriptions: tuple[str, ...] = ()
    ca_pem: str = ""
    """The only certificate authority that is trusted; empty means TCP without TLS."""
    keepalive_s: int = 60
    """Also how long a publish may stay without its PUBACK while none other arrives."""
    payload_max_bytes: int = 65536
    """Both ways: a larger one is refused here, and from the broker it ends the connection before it is read."""
    queue_max: int = 64
    """Messages that wait or are not acknowledged yet."""
    connect_timeout_s: float = 10.0
    """For TCP and TLS, and again for CONNACK and SUBACK."""
    first_delay_max_s: float = 0.0
    """The first attempt waits a random time up to this: a fleet boots together after a power cut."""
    reconnect_min_s: float = 1.0
    reconnect_max_s: float = 60.0
    """A reconnect waits a random time up to a ceiling that doubles from the minimum to the maximum (full jitter)."""

    def __post_init__(self) -> None:
        if len(self.subscriptions) > SUBSCRIPTIONS_MAX:
            raise LocalMisuseError(f"subscriptions: at most {SUBSCRIPTIONS_MAX}, got {len(self.subscriptions)}")
        if not self.client_id:
            raise LocalMisuseError("client_id: expected a name of at least 1 character, got ''")
        if not 0 < self.reconnect_min_s <= self.reconnect_max_s:
            raise LocalMisuseError(
                "reconnect_min_s: expected a value above 0 and at most reconnect_max_s, "
                f"got {self.reconnect_min_s} and {self.reconnect_max_s}"
            )


class Link(Protocol):
    """What a runtime asks of its link; the news comes to the receiver that the link was made with."""

    def send(self, topic: str, payload: bytes) -> int:
        """Queue a message and return its ticket; `AdapterError` when the queue is full."""
