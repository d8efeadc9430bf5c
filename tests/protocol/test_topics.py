"""Topics: what is spelled is parsed back, what is not ours is refused, and nobody may listen where others speak."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from federated_core.errors import LocalMisuseError, RemoteProtocolError
from federated_core.protocol import topics

IDENTIFIERS = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=48)
KINDS = (topics.DeviceUp, topics.DeviceDown, topics.TaskMulticast, topics.EnrollUp, topics.EnrollDown)
ADDRESSES = st.builds(lambda kind, fleet, name: kind(fleet, name), st.sampled_from(KINDS), IDENTIFIERS, IDENTIFIERS)
FORBIDDEN = ("", "a" * 49, "A", "ä", "a.b", "a/b", "a b", "+", "#", "$sys", "a\n", "\0")


@given(ADDRESSES)
def test_every_address_is_parsed_back_from_its_topic(address: topics.Address) -> None:
    assert topics.parse(topics.spell(address)) == address


@given(ADDRESSES, ADDRESSES)
def test_two_addresses_never_share_a_topic(one: topics.Address, other: topics.Address) -> None:
    assert (topics.spell(one) == topics.spell(other)) == (one == other)


@given(ADDRESSES)
def test_a_topic_fits_every_broker(address: topics.Address) -> None:
    topic = topics.spell(address)
    assert topic.count("/") <= 7  # AWS IoT Core's limit.
    assert len(topic.encode()) <= 256
    assert "." not in topic  # NATS rewrites dots.


def test_the_functions_that_spell_one_topic_agree_with_its_address() -> None:
    assert topics.device_up("f", "d1") == topics.spell(topics.DeviceUp("f", "d1")) == "fallow/v1/f/d/d1/up"
    assert topics.device_down("f", "d1") == topics.spell(topics.DeviceDown("f", "d1")) == "fallow/v1/f/d/d1/down"
    assert topics.task_multicast("f", "t1") == topics.spell(topics.TaskMulticast("f", "t1")) == "fallow/v1/f/t/t1"
    assert topics.enroll_up("f", "k") == topics.spell(topics.EnrollUp("f", "k")) == "fallow/v1/f/enroll/k/up"
    assert topics.enroll_down("f", "k") == topics.spell(topics.EnrollDown("f", "k")) == "fallow/v1/f/enroll/k/down"


@pytest.mark.parametrize("name", FORBIDDEN)
def test_an_identifier_that_could_break_out_of_its_level_is_refused(name: str) -> None:
    with pytest.raises(LocalMisuseError, match="token name: expected 1 to 48 characters"):
        topics.check_identifier(name, "token name")
    for topic in (f"fallow/v1/f/d/{name}/up", f"fallow/v1/{name}/d/d1/up", f"fallow/v1/f/t/{name}"):
        with pytest.raises(RemoteProtocolError, match="topic: expected"):
            topics.parse(topic)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        "fallow/v1",
        "fallow/v2/f/d/d1/up",
        "Fallow/v1/f/d/d1/up",
        "/fallow/v1/f/d/d1/up",
        "fallow/v1/f/d/d1",
        "fallow/v1/f/d/d1/sideways",
        "fallow/v1/f/d/d1/up/",
        "fallow/v1/f/d/d1/up/more",
        "fallow/v1/f/t/t1/up",
        "fallow/v1/f/enroll/k",
        "fallow/v1/f/x/d1/up",
    ],
)
def test_a_topic_that_is_not_ours_is_refused(topic: str) -> None:
    with pytest.raises(RemoteProtocolError, match="topic: expected"):
        topics.parse(topic)


@given(st.text(max_size=300))
def test_parsing_any_text_gives_an_address_or_a_protocol_error(text: str) -> None:
    with contextlib.suppress(RemoteProtocolError):
        assert topics.spell(topics.parse(text)) == text


def test_a_hostile_topic_does_not_fill_the_log() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        topics.parse("a" * 65_000)
    assert len(str(caught.value)) < 300


@given(IDENTIFIERS, IDENTIFIERS, ADDRESSES)
def test_a_device_hears_its_own_topic_and_multicasts_of_its_fleet_and_nothing_else(
    fleet: str, device: str, address: topics.Address
) -> None:
    filters = topics.device_subscriptions(fleet, device)
    own = (topics.DeviceDown(fleet, device), topics.TaskMulticast(fleet, device), topics.DeviceUp(fleet, device))
    for one in (address, *own):
        is_heard = any(topic_matches_sub(pattern, topics.spell(one)) for pattern in filters)
        is_meant = one == topics.DeviceDown(fleet, device) or (
            isinstance(one, topics.TaskMulticast) and one.fleet == fleet
        )
        assert is_heard == is_meant


@given(IDENTIFIERS, ADDRESSES)
def test_the_aggregator_hears_what_is_said_upwards_in_its_fleet(fleet: str, address: topics.Address) -> None:
    for one in (address, topics.DeviceUp(fleet, "d1"), topics.EnrollUp(fleet, "k"), topics.DeviceDown(fleet, "d1")):
        topic = topics.spell(one)
        is_heard = any(topic_matches_sub(pattern, topic) for pattern in topics.aggregator_subscriptions(fleet))
        assert is_heard == (isinstance(one, topics.DeviceUp | topics.EnrollUp) and one.fleet == fleet)
        assert topic_matches_sub(topics.everything(fleet), topic) == (one.fleet == fleet)
