"""A broker and the links to it: at least once, in any order, or not at all."""

import zlib
from collections.abc import Callable

import msgspec

from federated_core.adapters.link import LinkDown, LinkNews, LinkUp, MessageArrived, MessageSent
from federated_core.errors import AdapterError, LocalMisuseError, RemoteProtocolError
from federated_core.protocol import topics, wire
from federated_core.protocol.wire import PAYLOAD_BYTES_MAX
from tests.simulation.clockwork import Dice, Schedule
from tests.simulation.peril import Peril


class Weather(msgspec.Struct):
    """How bad the network is; all zero is a good day."""

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    delay: float = 0.0
    tampering: float = 0.0
    replay: float = 0.0


class SimulatedLink:
    """One process's link: what is sent waits until the broker has it, and is offered again after a break."""

    def __init__(self, network: "Network", name: str, take: Callable[[LinkNews], None], queue_max: int) -> None:
        self.name = name
        self.take = take
        self.connection = 0  # Of which number; 0 while there is none.
        self.is_dead = False
        self.peril: Peril | None = None
        self._network = network
        self._queue_max = queue_max
        self._outbox: dict[int, tuple[str, bytes]] = {}
        self._ticket = 0

    def send(self, topic: str, payload: bytes) -> int:
        """Queue a message, as the real link does."""
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise LocalMisuseError(f"payload for {topic}: {len(payload)} bytes")
        if self.peril is not None:
            self.peril.touch("send")
        if len(self._outbox) >= self._queue_max:
            raise AdapterError("the queue of the link is full")
        self._network.watch_send(self.name, topic, payload)
        self._ticket += 1
        self._outbox[self._ticket] = (topic, payload)
        if self.connection:
            self._offer(self._ticket)
        if self.peril is not None:
            self.peril.touch("sent")
        return self._ticket

    def connect(self, number: int) -> None:
        """The broker accepted us."""
        self.connection = number
        self.take(LinkUp())
        for ticket in list(self._outbox):
            if self.connection == number:
                self._offer(ticket)

    def disconnect(self, reason: str) -> None:
        """The connection is gone."""
        if self.connection:
            self.connection = 0
            self.take(LinkDown(reason))

    def _offer(self, ticket: int) -> None:
        number = self.connection
        self._network.schedule.after(self._network.latency_s(), lambda: self._arrive(ticket, number))

    def _arrive(self, ticket: int, number: int) -> None:
        if self.is_dead or self.connection != number or ticket not in self._outbox:
            return
        self._network.route(*self._outbox[ticket])
        self._network.schedule.after(self._network.latency_s(), lambda: self._acknowledge(ticket, number))

    def _acknowledge(self, ticket: int, number: int) -> None:
        if not self.is_dead and self.connection == number and self._outbox.pop(ticket, None) is not None:
            self.take(MessageSent(ticket))


class Network:
    """One broker. Devices have clean sessions; the aggregator's session outlives its connection."""

    def __init__(self, schedule: Schedule, dice: Dice, watch_send: Callable[[str, str, bytes], None]) -> None:
        self.schedule = schedule
        self.weather = Weather()
        self.watch_send = watch_send
        self.hits: dict[str, int] = {}
        self._dice = dice
        self._links: dict[str, SimulatedLink] = {}
        self._cut_until_s: dict[str, float] = {}
        self._connection_count = 0
        self._kept: list[tuple[str, bytes]] = []  # For the aggregator while it is away.
        self._overheard: list[tuple[str, bytes]] = []

    def latency_s(self) -> float:
        """Draw the time of one hop."""
        delay_s = self._dice.uniform(0.005, 0.05)
        if self._dice.happens(self.weather.delay):
            self.hit("delay")
            delay_s += self._dice.exponential(3.0)
        return delay_s

    def hit(self, fault: str) -> None:
        """Count a fault that took place."""
        self.hits[fault] = self.hits.get(fault, 0) + 1

    def attach(self, link: SimulatedLink) -> None:
        """Let a process's new link connect soon; the one that it had is gone."""
        former = self._links.get(link.name)
        if former is not None:
            former.is_dead = True
        self._links[link.name] = link
        self._connect_later(link, self._dice.uniform(0.01, 1.0))

    def detach(self, name: str) -> None:
        """The process died."""
        link = self._links.pop(name, None)
        if link is not None:
            link.is_dead, link.connection = True, 0

    def cut(self, name: str, for_s: float) -> None:
        """Part one process from the broker."""
        self._cut_until_s[name] = self.schedule.now_s + for_s
        link = self._links.get(name)
        if link is not None:
            link.disconnect("partition")
            self._connect_later(link, for_s)

    def restart_broker(self, *, forgets: bool) -> None:
        """End every connection; what was on its way to devices is lost, and all if the disk of the broker is."""
        if forgets:
            self._kept.clear()
        for link in list(self._links.values()):
            link.disconnect("the broker ended")
            self._connect_later(link, self._dice.uniform(0.2, 10.0))

    def route(self, topic: str, payload: bytes) -> None:
        """Hand a message to whoever listens, as well as the weather allows."""
        weather, dice = self.weather, self._dice
        if dice.happens(weather.loss):
            self.hit("loss")
            return
        if dice.happens(weather.tampering):
            topic, payload = self._tamper(topic, payload)
        if dice.happens(weather.replay):
            self.hit("replay")
            self.schedule.after(dice.uniform(5.0, 200.0), lambda: self._say_again(topic, payload))
        for name in self._receivers(topic):
            self._deliver(name, topic, payload)
            if dice.happens(weather.duplication):
                self.hit("duplication")
                self._deliver(name, topic, payload)

    def _say_again(self, topic: str, payload: bytes) -> None:
        for name in self._receivers(topic):
            self._deliver(name, topic, payload)

    def _deliver(self, name: str, topic: str, payload: bytes) -> None:
        link = self._links.get(name)
        number = link.connection if link is not None else 0
        if link is None or not number:
            if name == topics.PREFIX:
                self._kept.append((topic, payload))
            return
        delay_s = self.latency_s()
        if self._dice.happens(self.weather.reordering):
            self.hit("reordering")
            delay_s += self._dice.uniform(0.0, 1.0)
        target = link

        def arrive() -> None:
            if target.connection == number and not target.is_dead:
                target.take(MessageArrived(topic, payload))

        self.schedule.after(delay_s, arrive)

    def _receivers(self, topic: str) -> tuple[str, ...]:
        levels = topic.split("/")
        if levels[-1] == "up":
            return (topics.PREFIX,)
        if levels[3] == "d":
            return (levels[4],)
        return tuple(name for name in self._links if name != topics.PREFIX)

    def _tamper(self, topic: str, payload: bytes) -> tuple[str, bytes]:
        """Do what a hostile broker can do."""
        dice = self._dice
        self.hit("tampering")
        self._overheard = [*self._overheard[-50:], (topic, payload)]
        match dice.below(5):
            case 0:
                place = dice.below(len(payload))
                return topic, payload[:place] + bytes([payload[place] ^ 1 << dice.below(8)]) + payload[place + 1 :]
            case 1:
                return topic, payload[: dice.below(len(payload))]
            case 2:
                return topic, _forge_chunk(payload)
            case 3:
                return self._overheard[dice.below(len(self._overheard))]
            case _:
                other = self._overheard[dice.below(len(self._overheard))][0]
                return other, payload

    def _connect_later(self, link: SimulatedLink, after_s: float) -> None:
        def connect() -> None:
            if link.is_dead or link.connection:
                return
            left_s = self._cut_until_s.get(link.name, 0.0) - self.schedule.now_s
            if left_s > 0.0:
                self._connect_later(link, left_s)
                return
            self._connection_count += 1
            link.connect(self._connection_count)
            if link.name == topics.PREFIX:
                kept, self._kept = self._kept, []
                for topic, payload in kept:
                    self._deliver(link.name, topic, payload)

        self.schedule.after(after_s, connect)


def _forge_chunk(payload: bytes) -> bytes:
    """Change what a chunk holds, so that only the digest of the whole can tell; what is signed cannot be forged."""
    try:
        frame = wire.decode_frame(payload)
    except RemoteProtocolError:
        return payload
    if isinstance(frame, wire.SignedFrame):
        return payload
    data = bytes([frame.data[0] ^ 1]) + frame.data[1:]
    return wire.encode_frame(wire.ChunkFrame(frame.digest_prefix, frame.index, zlib.crc32(data), data))
