"""TLS with the one authority that the link was given, on both brokers: another authority or name is refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_aggregator.adapters.brokers.directory import BrokerTls, BrokerUser, new_password
from cloud_aggregator.adapters.brokers.embedded_nats import EmbeddedNats
from cloud_aggregator.adapters.brokers.mosquitto_site import MosquittoChild
from federated_core.adapters.link import LinkSettings
from tests.adapters.certificates import self_signed
from tests.adapters.listener import Listener

pytestmark = pytest.mark.broker

USER = BrokerUser("a", new_password(), ("fallow/v1/f/d/a/up",), ("fallow/v1/f/d/a/up",))


@pytest.fixture
def tls(tmp_path: Path) -> BrokerTls:
    return BrokerTls(*self_signed(tmp_path / "tls", "127.0.0.1"))


@pytest.fixture
def broker(
    broker_kind: type[EmbeddedNats | MosquittoChild], tls: BrokerTls, tmp_path: Path
) -> Iterator[EmbeddedNats | MosquittoChild]:
    broker = broker_kind(tmp_path / "broker", tls=tls)
    broker.add_user(USER)
    broker.start()
    yield broker
    broker.stop()


def settings(broker: EmbeddedNats | MosquittoChild, ca: Path, host: str = "127.0.0.1") -> LinkSettings:
    return LinkSettings(
        host=host,
        port=broker.port,
        username=USER.name,
        password=USER.password,
        client_id="a",
        subscriptions=USER.subscribe,
        ca_pem=ca.read_text(),
        queue_max=100,
    )


def test_large_messages_pass_through_tls_both_ways(broker: EmbeddedNats | MosquittoChild, tls: BrokerTls) -> None:
    with Listener(settings(broker, tls.certificate)) as listener:
        listener.wait_up()
        for index in range(50):
            listener.link.send(USER.publish[0], bytes([index]) * 65536)
        listener.wait_until(lambda: len(listener.heard) >= 50)
        assert {message.payload for message in listener.heard} == {bytes([index]) * 65536 for index in range(50)}
        assert listener.down == []


def test_another_authority_is_not_trusted(
    broker: EmbeddedNats | MosquittoChild, tls: BrokerTls, tmp_path: Path
) -> None:
    other, _ = self_signed(tmp_path / "other", "127.0.0.1")
    with Listener(settings(broker, other)) as listener:
        assert "certificate verify failed" in listener.wait_down()


def test_another_name_is_not_trusted(broker: EmbeddedNats | MosquittoChild, tls: BrokerTls) -> None:
    with Listener(settings(broker, tls.certificate, host="localhost")) as listener:
        assert "Hostname mismatch" in listener.wait_down()


def test_a_plain_connection_is_not_let_in(
    broker: EmbeddedNats | MosquittoChild, tls: BrokerTls, tmp_path: Path
) -> None:
    nothing = tmp_path / "nothing"
    nothing.write_text("")
    with Listener(settings(broker, nothing)) as listener:
        assert listener.wait_down()
