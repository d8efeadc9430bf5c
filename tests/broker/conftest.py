"""Both real brokers, one of each per test, with an operator who adds users and connects them."""

import contextlib
import dataclasses
import itertools
import queue
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_aggregator.adapters.brokers.directory import BrokerUser, new_password
from cloud_aggregator.adapters.brokers.embedded_nats import EmbeddedNats, find_nats_server
from cloud_aggregator.adapters.brokers.mosquitto_site import MosquittoChild
from federated_core.adapters.link import LinkSettings
from federated_core.errors import AdapterError
from federated_core.protocol import topics
from tests.adapters.listener import Listener

FLEET = "f"
KINDS = [
    pytest.param(EmbeddedNats, id="nats"),
    pytest.param(MosquittoChild, id="mosquitto", marks=pytest.mark.needs_program("mosquitto", "mosquitto")),
]


@dataclasses.dataclass
class Operator:
    """A running broker, its users, and the links that the test opened."""

    broker: EmbeddedNats | MosquittoChild
    exits: "queue.Queue[str]"
    links: contextlib.ExitStack
    numbers: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    def add(self, name: str, publish: tuple[str, ...], subscribe: tuple[str, ...]) -> BrokerUser:
        user = BrokerUser(name, new_password(), publish, subscribe)
        self.broker.add_user(user)
        return user

    def add_device(self, device: str) -> BrokerUser:
        return self.add(device, (topics.device_up(FLEET, device),), topics.device_subscriptions(FLEET, device))

    def add_enrollment(self, token: str) -> BrokerUser:
        up, down = topics.enroll_up(FLEET, token), topics.enroll_down(FLEET, token)
        return self.add(f"enroll-{token}", (up,), (down,))

    def add_aggregator(self) -> BrokerUser:
        return self.add("aggregator", (topics.everything(FLEET),), topics.aggregator_subscriptions(FLEET))

    def settings(self, user: BrokerUser, subscriptions: tuple[str, ...] | None = None) -> LinkSettings:
        return LinkSettings(
            host=self.broker.host,
            port=self.broker.port,
            username=user.name,
            password=user.password,
            client_id=f"{user.name}-{next(self.numbers)}",  # NATS jails an id that comes back too soon.
            subscriptions=user.subscribe if subscriptions is None else subscriptions,
            queue_max=300,
        )

    def open(self, settings: LinkSettings) -> Listener:
        return self.links.enter_context(Listener(settings))

    def connect(self, user: BrokerUser) -> Listener:
        return self.open(self.settings(user)).wait_up()


@pytest.fixture(params=KINDS)
def broker_kind(request: pytest.FixtureRequest) -> type[EmbeddedNats | MosquittoChild]:
    kind: type[EmbeddedNats | MosquittoChild] = request.param
    if kind is EmbeddedNats:
        try:
            find_nats_server()
        except AdapterError as error:
            pytest.skip(str(error))
    return kind


@pytest.fixture
def operator(broker_kind: type[EmbeddedNats | MosquittoChild], tmp_path: Path) -> Iterator[Operator]:
    exits: queue.Queue[str] = queue.Queue()
    broker = broker_kind(tmp_path / "broker", on_exit=exits.put)
    broker.start()
    try:
        with contextlib.ExitStack() as links:
            yield Operator(broker, exits, links)
    finally:
        broker.stop()
