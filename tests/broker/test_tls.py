"""TLS with the one authority that the link was given, on both brokers: another authority or name is refused."""

import datetime as dt
import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloud_aggregator.adapters.brokers.directory import BrokerTls, BrokerUser, new_password
from cloud_aggregator.adapters.brokers.embedded_nats import EmbeddedNats
from cloud_aggregator.adapters.brokers.mosquitto_site import MosquittoChild
from federated_core.adapters.link import LinkSettings
from tests.adapters.listener import Listener

pytestmark = pytest.mark.broker

VALID_FROM = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
VALID_UNTIL = dt.datetime(2100, 1, 1, tzinfo=dt.UTC)
USER = BrokerUser("a", new_password(), ("fallow/v1/f/d/a/up",), ("fallow/v1/f/d/a/up",))


def self_signed(folder: Path, address: str) -> BrokerTls:
    """Make a certificate for one address that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), VALID_FROM, VALID_UNTIL)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    tls = BrokerTls(folder / "certificate.pem", folder / "key.pem")
    tls.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    tls.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return tls


@pytest.fixture
def tls(tmp_path: Path) -> BrokerTls:
    return self_signed(tmp_path / "tls", "127.0.0.1")


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
        while len(listener.heard) < 50:
            listener.next()
        assert {message.payload for message in listener.heard} == {bytes([index]) * 65536 for index in range(50)}
        assert listener.down == []


def test_another_authority_is_not_trusted(
    broker: EmbeddedNats | MosquittoChild, tls: BrokerTls, tmp_path: Path
) -> None:
    other = self_signed(tmp_path / "other", "127.0.0.1")
    with Listener(settings(broker, other.certificate)) as listener:
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
