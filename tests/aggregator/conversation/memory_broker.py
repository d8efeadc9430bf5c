"""A broker in memory: users with rights, links that can be cut, and a weather that loses, doubles and delays."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Sequence

from paho.mqtt.client import topic_matches_sub

from cloud_aggregator.adapters.brokers.directory import BrokerUser
from federated_core.adapters.link import LinkDown, LinkNews, LinkUp, MessageArrived, MessageSent
from federated_core.errors import AdapterError
from tests.aggregator.conversation.virtual_time import World

LATENCY_S = 0.01
Weather = Callable[[str, bytes], Sequence[float]]
"""The delays after which copies of a message arrive; none means that it is lost."""


def fair_weather(topic: str, payload: bytes) -> Sequence[float]:
    """Deliver every message once, at once."""
    return (LATENCY_S,)


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """A message that somebody who may has published."""

    at_s: float
    user: str
    topic: str
    payload: bytes


class MemoryBroker:
    """Also the directory of its users; changes are live at once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.weather: Weather = fair_weather
        self.published: list[Published] = []
        self.forbidden: list[Published] = []
        self._users: dict[str, BrokerUser] = {}
        self._links: list[MemoryLink] = []

    def users(self) -> tuple[BrokerUser, ...]:
        """List the users, sorted by name."""
        return tuple(self._users[name] for name in sorted(self._users))

    def add_user(self, user: BrokerUser) -> None:
        """Add a user, or replace the one of the same name."""
        self._users[user.name] = user

    def remove_user(self, name: str) -> None:
        """Remove a user, if there is one; its links end."""
        self._users.pop(name, None)
        for link in [link for link in self._links if link.user == name]:
            link.cut("the user was removed")

    def apply(self) -> None:
        """Nothing is left to do."""

    def connect(
        self,
        user: str,
        password: str,
        subscriptions: Sequence[str],
        news: Callable[[LinkNews], None],
        queue_max: int = 64,
    ) -> "MemoryLink":
        """Log in; what a user may not subscribe to fails."""
        known = self._users[user]
        assert known.password == password
        assert set(subscriptions) <= set(known.subscribe), f"{user} may not subscribe to {subscriptions}"
        link = MemoryLink(self, user, tuple(subscriptions), news, queue_max)
        self._links.append(link)
        link.mend()
        return link

    def accept(self, user: str, topic: str, payload: bytes) -> None:
        """Deliver a message to who hears it, as the weather has it; a forbidden one is dropped without a word."""
        message = Published(self.world.now_s, user, topic, payload)
        known = self._users.get(user)
        if known is None or not any(topic_matches_sub(pattern, topic) for pattern in known.publish):
            self.forbidden.append(message)
            return
        self.published.append(message)
        self.inject(topic, payload, self.weather(topic, payload))

    def inject(self, topic: str, payload: bytes, delays_s: Sequence[float] = (LATENCY_S,)) -> None:
        """Deliver a message that nobody need have published: what a hostile broker can do."""
        for delay_s in delays_s:
            self.world.after(delay_s, lambda: self._deliver(topic, payload))

    def forget(self, link: "MemoryLink") -> None:
        """Deliver nothing more to ``link``."""
        self._links.remove(link)

    def _deliver(self, topic: str, payload: bytes) -> None:
        for link in tuple(self._links):
            link.hear(topic, payload)


class MemoryLink:
    """What a runtime is given for a link."""

    def __init__(
        self,
        broker: MemoryBroker,
        user: str,
        subscriptions: tuple[str, ...],
        news: Callable[[LinkNews], None],
        queue_max: int,
    ) -> None:
        self.user = user
        self.sent_bytes = 0
        self.received_bytes = 0
        self._broker = broker
        self._subscriptions = subscriptions
        self._news = news
        self._queue_max = queue_max
        self._queue: deque[tuple[int, str, bytes]] = deque()
        self._tickets = itertools.count()
        self._is_up = False

    @property
    def queued_count(self) -> int:
        """Messages that wait or are not acknowledged."""
        return len(self._queue)

    def send(self, topic: str, payload: bytes) -> int:
        """Queue a message and return its ticket; `AdapterError` when the queue is full."""
        if len(self._queue) >= self._queue_max:
            raise AdapterError("the link's queue is full")
        ticket = next(self._tickets)
        self._queue.append((ticket, topic, payload))
        if self._is_up:
            self._broker.world.after(0.0, self._flush)
        return ticket

    def close(self) -> None:
        """Disconnect; what was not sent is dropped, and no news comes afterwards."""
        self._is_up = False
        self._queue.clear()
        self._broker.forget(self)

    def cut(self, reason: str = "the connection was cut") -> None:
        """Lose the connection; what is sent from now on waits."""
        self._is_up = False
        self._news(LinkDown(reason))

    def mend(self) -> None:
        """Connect again, and send what waits."""
        self._is_up = True
        self._news(LinkUp())
        self._broker.world.after(LATENCY_S, self._flush)

    def hear(self, topic: str, payload: bytes) -> None:
        """Pass a message on, if it is on a subscription and the link is up."""
        if self._is_up and any(topic_matches_sub(pattern, topic) for pattern in self._subscriptions):
            self.received_bytes += len(payload)
            self._news(MessageArrived(topic, payload))

    def _flush(self) -> None:
        while self._is_up and self._queue:
            ticket, topic, payload = self._queue.popleft()
            self.sent_bytes += len(payload)
            self._broker.accept(self.user, topic, payload)
            self._news(MessageSent(ticket))
