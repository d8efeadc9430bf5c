"""The link against a broker that a script plays: what a real one does rarely, or never on purpose."""

import socket
import ssl
from pathlib import Path

import pytest

from federated_core.adapters.link import LinkDown, LinkSettings, LinkUp, MessageArrived
from federated_core.errors import AdapterError, LocalMisuseError
from tests.adapters import mqtt_packets as mqtt
from tests.adapters.certificates import self_signed
from tests.adapters.listener import Listener
from tests.adapters.scripted_broker import ScriptedBroker

UP = "fallow/v1/f/d/a/up"
DOWN = "fallow/v1/f/d/a/down"


def settings(port: int, **changes: object) -> LinkSettings:
    fields: dict[str, object] = {
        "host": "127.0.0.1",
        "port": port,
        "username": "a",
        "password": "a-password-of-16",
        "client_id": "client-a",
        "subscriptions": (DOWN,),
    }
    return LinkSettings(**(fields | changes))  # type: ignore[arg-type]


def test_it_is_up_only_after_the_suback() -> None:
    with ScriptedBroker() as broker, Listener(settings(broker.port)) as listener:
        peer = broker.accept()
        peer.receive(mqtt.CONNECT)
        peer.send(mqtt.connack())
        subscribe = peer.receive(mqtt.SUBSCRIBE)
        peer.send(mqtt.publish(DOWN.encode(), b"kept by a session"))
        assert listener.next() == MessageArrived(DOWN, b"kept by a session")
        assert listener.news.empty()
        peer.send(mqtt.suback(subscribe.packet_id, b"\1"))
        assert listener.next() == LinkUp()


def test_four_publishes_are_unacknowledged_at_most_also_after_a_reconnect() -> None:
    with ScriptedBroker() as broker, Listener(settings(broker.port)) as listener:
        for index in range(9):
            listener.link.send(UP, b"%d" % index)
        first = broker.accept()
        first.welcome()
        ids = [first.receive(mqtt.PUBLISH).packet_id for _ in range(4)]
        first.send(mqtt.puback(ids[0]))
        assert first.receive(mqtt.PUBLISH).payload == b"4"
        listener.wait_sent(1)
        assert not first.has_more()
        first.socket.close()
        second = broker.accept()
        second.welcome()
        again = [second.receive(mqtt.PUBLISH) for _ in range(4)]
        assert [packet.payload for packet in again] == [b"1", b"2", b"3", b"4"]
        listener.wait_down()
        listener.wait_up()
        assert not second.has_more()
        for packet in again:
            second.send(mqtt.puback(packet.packet_id))
        rest = [second.receive(mqtt.PUBLISH) for _ in range(4)]
        assert [packet.payload for packet in rest] == [b"5", b"6", b"7", b"8"]
        for packet in rest:
            second.send(mqtt.puback(packet.packet_id))
        listener.wait_sent(9)
        assert listener.sent_tickets == list(range(1, 10))
        assert listener.link.queued_count == 0
        assert listener.link.sent_bytes == 5 + 8  # One byte each: 0-4 on the first connection, 1-8 on the second.


def test_nothing_is_published_before_the_subscriptions_hold() -> None:
    with ScriptedBroker() as broker, Listener(settings(broker.port)) as listener:
        listener.link.send(UP, b"early")
        peer = broker.accept()
        peer.receive(mqtt.CONNECT)
        peer.send(mqtt.connack())
        subscribe = peer.receive(mqtt.SUBSCRIBE)
        assert not peer.has_more()
        peer.send(mqtt.suback(subscribe.packet_id, b"\1"))
        assert peer.receive(mqtt.PUBLISH).payload == b"early"


@pytest.mark.parametrize(
    ("code", "words"), [(4, "bad user name or password"), (5, "not authorized"), (3, "server unavailable")]
)
def test_a_refused_login_is_told_in_words_and_tried_again(code: int, words: str) -> None:
    with ScriptedBroker() as broker, Listener(settings(broker.port)) as listener:
        for _ in range(2):
            peer = broker.accept()
            peer.receive(mqtt.CONNECT)
            peer.send(mqtt.connack(code))
            assert listener.next() == LinkDown(f"the broker refused the connection: {words}")


def test_a_refused_subscription_is_told_by_name() -> None:
    with ScriptedBroker() as broker, Listener(settings(broker.port)) as listener:
        peer = broker.accept()
        peer.receive(mqtt.CONNECT)
        peer.send(mqtt.connack())
        peer.send(mqtt.suback(peer.receive(mqtt.SUBSCRIBE).packet_id, b"\x80"))
        assert listener.next() == LinkDown(f"the broker refused the subscription: {DOWN}")


def test_a_packet_that_is_larger_than_agreed_is_not_read() -> None:
    with ScriptedBroker() as broker, Listener(settings(broker.port, payload_max_bytes=1000)) as listener:
        peer = broker.accept()
        peer.welcome()
        listener.wait_up()
        peer.send(bytes([mqtt.PUBLISH << 4]) + mqtt.encode_length(200_000_000))
        assert listener.wait_down() == "the broker sent a packet of 200000000 bytes, at most 2024 are read"


def test_a_missing_suback_ends_the_attempt() -> None:
    with ScriptedBroker() as broker, Listener(settings(broker.port, connect_timeout_s=0.2)) as listener:
        peer = broker.accept()
        peer.receive(mqtt.CONNECT)
        peer.send(mqtt.connack())
        assert listener.next() == LinkDown("no CONNACK and SUBACK within 0.2 s")


def test_a_missing_puback_ends_the_connection() -> None:
    with ScriptedBroker() as broker, Listener(settings(broker.port, keepalive_s=1)) as listener:
        broker.accept().welcome()
        listener.wait_up()
        listener.link.send(UP, b"never acknowledged")
        assert listener.wait_down() in {"no PUBACK within 1 s", "the broker did not answer for 1 s"}
        peer = broker.accept()
        peer.welcome()
        assert peer.receive(mqtt.PUBLISH).payload == b"never acknowledged"


def test_a_broker_that_falls_silent_is_left() -> None:
    with ScriptedBroker() as broker, Listener(settings(broker.port, keepalive_s=1)) as listener:
        peer = broker.accept()
        peer.welcome()
        listener.wait_up()
        peer.receive(mqtt.PINGREQ)
        assert listener.wait_down() == "the broker did not answer for 1 s"


def test_a_topic_that_is_no_text_is_dropped() -> None:
    with ScriptedBroker() as broker, Listener(settings(broker.port)) as listener:
        peer = broker.accept()
        peer.welcome()
        listener.wait_up()
        peer.send(mqtt.publish(b"\xff\xfe", b"?") + mqtt.publish(DOWN.encode(), b"!"))
        assert listener.next() == MessageArrived(DOWN, b"!")
        assert listener.link.received_bytes == 1


def test_a_receiver_that_fails_does_not_end_the_link(caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedBroker() as broker, Listener(settings(broker.port)) as listener:
        listener.link._news = lambda news: 1 / 0 if isinstance(news, LinkUp) else listener.news.put(news)  # type: ignore[assignment]
        peer = broker.accept()
        peer.welcome()
        peer.send(mqtt.publish(DOWN.encode(), b"still here"))
        assert listener.next() == MessageArrived(DOWN, b"still here")
    assert "the receiver of LinkUp failed" in caplog.text


def test_a_closed_port_is_told_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with Listener(settings(port)) as listener:
        assert listener.wait_down().startswith(f"no connection to 127.0.0.1:{port}: ")
        assert listener.wait_down().startswith(f"no connection to 127.0.0.1:{port}: ")


def test_packets_that_came_in_one_tls_record_are_all_read_at_once(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path / "tls", "127.0.0.1")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with (
        ScriptedBroker() as broker,
        Listener(settings(broker.port, ca_pem=certificate.read_text(), keepalive_s=600)) as listener,
    ):
        peer = broker.accept()
        peer.socket = tls.wrap_socket(peer.socket, server_side=True)
        peer.welcome()
        listener.wait_up()
        peer.send(b"".join(mqtt.publish(DOWN.encode(), b"%d" % index) for index in range(5)))
        listener.wait_until(lambda: len(listener.heard) == 5)


def test_closing_says_goodbye_and_ends_the_news() -> None:
    with ScriptedBroker() as broker, Listener(settings(broker.port)) as listener:
        peer = broker.accept()
        peer.welcome()
        listener.wait_up()
        listener.link.close()
        peer.receive(mqtt.DISCONNECT)
        peer.wait_for_end()
        assert listener.news.empty()
        with pytest.raises(LocalMisuseError, match="after close"):
            listener.link.send(UP, b"")


def test_the_queue_is_bounded_and_so_is_a_message() -> None:
    with ScriptedBroker() as broker, Listener(settings(broker.port, queue_max=2)) as listener:
        listener.link.send(UP, bytes(65536))
        with pytest.raises(LocalMisuseError, match="at most 65536 bytes, got 65537"):
            listener.link.send(UP, bytes(65537))
        with pytest.raises(LocalMisuseError, match="wildcards"):
            listener.link.send("fallow/v1/f/#", b"")
        listener.link.send(UP, b"")
        with pytest.raises(AdapterError, match="the send queue is full: 2 messages"):
            listener.link.send(UP, b"")


def test_settings_refuse_what_cannot_work() -> None:
    with pytest.raises(LocalMisuseError, match="at most 8, got 9"):
        settings(1, subscriptions=("x",) * 9)
    with pytest.raises(LocalMisuseError, match="client_id"):
        settings(1, client_id="")
    with pytest.raises(LocalMisuseError, match="reconnect_min_s"):
        settings(1, reconnect_min_s=0.0)
    with pytest.raises(AdapterError, match="PEM"):
        Listener(settings(1, ca_pem="no certificate"))


def test_a_password_is_not_printed() -> None:
    assert "a-password-of-16" not in repr(settings(1))
