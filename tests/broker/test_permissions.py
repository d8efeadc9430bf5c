"""Who may say and hear what, on both brokers, told by what is delivered: return codes say nothing (NATS acknowledges a
forbidden publish, mosquitto grants a forbidden subscription).
"""

import dataclasses
import json
import re
import socket

import pytest

from cloud_aggregator.adapters.brokers.directory import BrokerUser
from cloud_aggregator.adapters.brokers.embedded_nats import EmbeddedNats
from federated_core.adapters.link import LinkUp
from federated_core.protocol import topics
from tests.adapters.listener import Listener
from tests.broker.conftest import FLEET, Operator

pytestmark = pytest.mark.broker

A_UP, A_DOWN = topics.device_up(FLEET, "a"), topics.device_down(FLEET, "a")
B_UP, B_DOWN = topics.device_up(FLEET, "b"), topics.device_down(FLEET, "b")
ENROLL_UP, ENROLL_DOWN = topics.enroll_up(FLEET, "token"), topics.enroll_down(FLEET, "token")
OTHER_ENROLL_UP, OTHER_ENROLL_DOWN = topics.enroll_up(FLEET, "other"), topics.enroll_down(FLEET, "other")
TASK = topics.task_multicast(FLEET, "watch")
FOREIGN = "fallow/v1/g/d/a/up"
NEAR = (f"fallow/v1/{FLEET}/d/a", f"{A_UP}/more", f"{A_DOWN}/more", f"fallow/v1/{FLEET}/d/b/d/a/up")
FLEET_TOPICS = {A_UP, A_DOWN, B_UP, B_DOWN, ENROLL_UP, ENROLL_DOWN, OTHER_ENROLL_UP, OTHER_ENROLL_DOWN, TASK, *NEAR}
EVERY_TOPIC = sorted({*FLEET_TOPICS, FOREIGN})
LAST = b"the last one"


def test_what_each_may_say_is_all_that_is_heard(operator: Operator) -> None:
    observer = operator.add("observer", (), ("fallow/#",))
    may_say = {
        operator.add_device("a"): {A_UP},
        operator.add_enrollment("token"): {ENROLL_UP},
        operator.add_aggregator(): FLEET_TOPICS,
    }
    operator.broker.apply()
    for user, expected in may_say.items():
        with operator.open(operator.settings(observer)).wait_up() as ear:
            mouth = operator.connect(user)
            for topic in EVERY_TOPIC:
                mouth.link.send(topic, b"?")
            mouth.link.send(min(expected), LAST)
            assert ear.topics_before(LAST) == expected, user.name


def test_what_each_may_hear_is_all_that_it_hears(operator: Operator) -> None:
    device, enrollee, aggregator = operator.add_device("a"), operator.add_enrollment("token"), operator.add_aggregator()
    speaker = operator.add("speaker", ("fallow/#",), ())
    operator.broker.apply()
    mouth = operator.connect(speaker)
    everything = ("#", "fallow/v1/f/#", "fallow/v1/f/d/+/up", "fallow/v1/f/d/+/down", "fallow/v1/f/enroll/#", B_DOWN)
    for user, expected in (
        (device, {A_DOWN, TASK}),
        (enrollee, {ENROLL_DOWN}),
        (aggregator, {A_UP, B_UP, ENROLL_UP, OTHER_ENROLL_UP}),
    ):
        with operator.open(operator.settings(user)).wait_up() as ear:
            assert heard_of_every_topic(mouth, ear, expected) == expected, user.name
        for topic_filter in (each for each in everything if each not in user.subscribe):
            with operator.open(operator.settings(user, (topic_filter, *user.subscribe))) as ear:
                if isinstance(ear.next(), LinkUp):  # mosquitto grants it, and delivers only what is allowed.
                    assert heard_of_every_topic(mouth, ear, expected) == expected, f"{user.name} on {topic_filter}"
                else:
                    assert ear.down[0].reason.startswith("the broker refused the subscription: ")
                    assert ear.heard == []


def heard_of_every_topic(mouth: Listener, ear: Listener, expected: set[str]) -> set[str]:
    """Say something on every topic, then the last on each that should be heard: NATS keeps order per subscription."""
    for topic in EVERY_TOPIC:
        mouth.link.send(topic, b"?")
    for topic in sorted(expected):
        mouth.link.send(topic, LAST)
    ear.wait_until(lambda: {message.topic for message in ear.heard if message.payload == LAST} >= expected)
    return {message.topic for message in ear.heard if message.payload == b"?"}


def test_a_device_hears_the_level_above_a_multicast_too(operator: Operator) -> None:
    device, aggregator = operator.add_device("a"), operator.add_aggregator()
    operator.broker.apply()
    ear, mouth = operator.connect(device), operator.connect(aggregator)
    expected = {f"fallow/v1/{FLEET}/t", TASK, f"{TASK}/part"}
    for topic in expected:
        mouth.link.send(topic, LAST)
    ear.wait_until(lambda: {message.topic for message in ear.heard} >= expected)


def test_a_user_without_rights_says_and_hears_nothing(operator: Operator) -> None:
    mute, observer = operator.add("mute", (), ()), operator.add("observer", ("fallow/x",), ("fallow/#",))
    operator.broker.apply()
    ear, mouth = operator.connect(observer), operator.connect(mute)
    mouth.link.send(TASK, b"?")
    mouth.wait_sent(1)
    ear.link.send("fallow/x", LAST)
    assert ear.topics_before(LAST) == set()
    with operator.open(operator.settings(mute, ("fallow/#",))) as deaf:
        if isinstance(deaf.next(), LinkUp):
            ear.link.send("fallow/x", LAST + b"!")
            ear.wait_for_payload(LAST + b"!")
        assert deaf.heard == []


def test_a_device_cannot_reach_the_broker_s_own_topics(operator: Operator) -> None:
    device, aggregator = operator.add_device("a"), operator.add_aggregator()
    operator.broker.apply()
    ear, mouth = operator.connect(aggregator), operator.connect(device)
    for topic in ("$JS/API/STREAM/DELETE/$MQTT_msgs", "$JS/API/STREAM/PURGE/$MQTT_msgs", "$SYS/broker/x", "$MQTT/x"):
        mouth.link.send(topic, b"")
    mouth.link.send(A_UP, LAST)
    ear.wait_for_payload(LAST)
    with operator.open(operator.settings(device, ("$SYS/#", *device.subscribe))) as listener:
        if isinstance(listener.next(), LinkUp):
            ear.link.send(A_DOWN, LAST)
            assert listener.topics_before(LAST) == set()


def test_another_s_client_id_gives_none_of_its_messages(operator: Operator) -> None:
    thief, device, aggregator = operator.add_device("b"), operator.add_device("a"), operator.add_aggregator()
    operator.broker.apply()
    secret_id = "an-id-that-was-not-kept-secret"
    owner = dataclasses.replace(operator.settings(aggregator), client_id=secret_id, clean_session=False)
    with operator.open(owner) as ear:
        ear.wait_up()
    mouth = operator.connect(device)
    mouth.link.send(A_UP, b"while the owner is away")
    mouth.wait_sent(1)
    theft = dataclasses.replace(operator.settings(thief), client_id=secret_id, clean_session=False)
    with operator.open(theft) as stolen:
        stolen.wait_up()
        with operator.open(operator.settings(aggregator)).wait_up() as sender:
            sender.link.send(B_DOWN, LAST)
            assert stolen.topics_before(LAST) == set()


def test_without_users_nobody_gets_in(operator: Operator) -> None:
    stranger = BrokerUser("stranger", "a-password-of-16", (), ())
    reason = operator.open(operator.settings(stranger)).wait_down()
    assert reason == "the broker refused the connection: not authorized"
    operator.broker.apply()
    assert operator.open(operator.settings(stranger)).wait_down() == reason


def test_a_wrong_password_is_told_in_words(operator: Operator) -> None:
    device = operator.add_device("a")
    operator.broker.apply()
    wrong = BrokerUser("a", device.password + "x", device.publish, device.subscribe)
    listener = operator.open(operator.settings(wrong))
    assert listener.wait_down() == "the broker refused the connection: not authorized"
    assert listener.wait_down() == "the broker refused the connection: not authorized"


@pytest.mark.parametrize("broker_kind", [pytest.param(EmbeddedNats, id="nats")], indirect=True)
def test_the_server_s_own_port_is_on_loopback_and_lets_no_user_in(operator: Operator) -> None:
    assert isinstance(operator.broker, EmbeddedNats)
    aggregator = operator.add_aggregator()
    operator.broker.apply()
    log = operator.broker._running_child().last_lines()
    address = re.search(r"Listening for client connections on (127\.0\.0\.1):(\d+)", log)
    assert address is not None
    with socket.create_connection((address[1], int(address[2])), timeout=10) as sock, sock.makefile("rwb") as stream:
        assert stream.readline().startswith(b"INFO ")
        login = {"user": aggregator.name, "pass": aggregator.password, "verbose": True, "protocol": 1}
        stream.write(f"CONNECT {json.dumps(login)}\r\nPING\r\n".encode())
        stream.flush()
        assert b"-ERR 'Authorization Violation'" in stream.read()
