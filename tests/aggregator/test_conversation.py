"""Whole rounds in one thread: the real coordinator and real runtimes, and what they agree on when things go wrong.

Device 0 has 30 examples and a delta of +1/2 in every parameter, device 1 has 10 and a delta of -1/2. The weighted mean
of a round is (30 * 1/2 - 10 * 1/2) / 40 = 1/4; two rounds move every parameter from 0 to 1/2.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from cloud_aggregator import commands
from cloud_aggregator.adapters.brokers.directory import BrokerUser
from cloud_aggregator.task_progress import TaskSettings
from cloud_aggregator.training_round import RoundSettings
from federated_core.adapters.link import LinkNews
from federated_core.protocol import enrollment, keys, messages, topics, wire
from federated_core.protocol.messages import Metrics, Plan
from tests.aggregator.conversation.fleet import FLEET, PASSWORD, Fleet, SimulatedDevice, constant_delta, memory_disk
from tests.aggregator.conversation.memory_broker import LATENCY_S, Published
from tests.aggregator.conversation.scripted_trainer import Script
from tests.simulation.tiny_model import tiny_build

# On their holdouts the devices have 8 of 10 and 3 of 10 right: 11 of 20 together.
SCRIPTS = (
    Script(constant_delta(0.5), 30, Metrics(10, 8, 4.0)),
    Script(constant_delta(-0.5), 10, Metrics(10, 3, 6.0)),
)
TWO_ROUNDS = TaskSettings(
    Plan("train", step_ratio=1.0, example_count_min=5, example_count_max=100),
    rounds=RoundSettings(goal=2, report_count_min=2, overselection_ratio=1.0, selection_s=5.0, reporting_s=60.0),
    rounds_max=2,
)
ANSWERS = msgspec.msgpack.Decoder(messages.AggregatorMessage)
EXPECTED = [0.5] * 6


@pytest.fixture
def disk() -> Iterator[Path]:
    with memory_disk() as folder:
        yield folder


@pytest.fixture
def fleet(disk: Path) -> Iterator[Fleet]:
    fleet = Fleet(disk, SCRIPTS)
    yield fleet
    fleet.close()


def double(topic: str, payload: bytes) -> Sequence[float]:
    """A weather in which everything comes twice."""
    return (LATENCY_S, 3 * LATENCY_S)


def train(fleet: Fleet, settings: TaskSettings = TWO_ROUNDS) -> None:
    """Run a task from its creation to its end."""
    begin(fleet, settings)
    finish(fleet)


def begin(fleet: Fleet, settings: TaskSettings = TWO_ROUNDS) -> None:
    """Create a task, and start devices that find it."""
    fleet.aggregator.create_task(settings)
    fleet.start()


def finish(fleet: Fleet) -> None:
    fleet.world.run_until(lambda: fleet.aggregator.has_happened("task-finished"))


def rounds(fleet: Fleet, kind: str = "round-completed") -> list[tuple[str, int, int]]:
    """Return plan, reports and examples of every round that ended so."""
    return [
        (event.detail["plan"], event.detail["reports"], event.detail["examples"])
        for event in fleet.aggregator.happened(kind)
    ]


def said_to(fleet: Fleet, device: SimulatedDevice) -> list[messages.AggregatorMessage]:
    """Return every signed message that the aggregator has published to a device."""
    frames = [wire.decode_frame(one.payload) for one in fleet.broker.published if one.topic == device.down]
    return [ANSWERS.decode(frame.body) for frame in frames if isinstance(frame, wire.SignedFrame)]


def is_message(payload: bytes, kind: type[msgspec.Struct]) -> bool:
    """Say whether a payload is a signed message of some kind."""
    frame = wire.decode_frame(payload)
    if not isinstance(frame, wire.SignedFrame):
        return False
    return bool(msgspec.msgpack.decode(frame.body).get("type") == kind.__struct_config__.tag)


def check_ins(fleet: Fleet) -> list[Published]:
    return [one for one in fleet.broker.published if is_message(one.payload, messages.CheckIn)]


# --- Fair weather


def test_two_rounds_end_in_the_weighted_mean_of_what_the_devices_sent(fleet: Fleet) -> None:
    train(fleet)
    assert fleet.aggregator.parameters() == EXPECTED
    assert rounds(fleet) == [("train", 2, 40), ("train", 2, 40), ("evaluate", 2, 40)]
    assert [event.detail["accuracy_of_base"] for event in fleet.aggregator.happened("round-completed")] == [0.55] * 3
    (finished,) = fleet.aggregator.happened("task-finished")
    assert finished.detail["why"] == "round limit of 2 reached"
    assert fleet.aggregator.counter("protocol_errors") == 0
    assert fleet.broker.forbidden == []


def test_everyone_rests_when_the_task_is_over(fleet: Fleet) -> None:
    train(fleet)
    fleet.world.run(30.0)
    assert [device.session for device in fleet.devices] == ["Resting", "Resting"]
    rested_since_s = fleet.world.now_s
    fleet.world.run(200.0)  # The aggregator asked them to come back after 300 s at the earliest.
    assert not [one for one in check_ins(fleet) if one.at_s > rested_since_s]


def test_a_device_downloads_the_bundle_once_and_then_only_what_is_new(fleet: Fleet) -> None:
    train(fleet)
    for device in fleet.devices:
        kinds = [
            [one.kind for one in said.fetch] for said in said_to(fleet, device) if isinstance(said, messages.Assignment)
        ]
        assert kinds == [["bundle", "keyframe"], ["delta"], ["keyframe"]]  # The last is the exact end of training.
        blobs = {path.name for path in (device.folder / "blobs").iterdir()}
        assert blobs == {hashlib.sha256(tiny_build().data).hexdigest()}  # Nothing else stays.


def test_the_bytes_of_a_round_are_all_bytes_that_were_sent(fleet: Fleet) -> None:
    train(fleet)
    fleet.world.run(1.0)
    ups = {device.up for device in fleet.devices}
    sent_up = sum(len(one.payload) for one in fleet.broker.published if one.topic in ups)
    counted = sum(event.detail["bytes_up"] for event in fleet.aggregator.happened("round-completed"))
    after_the_end = 2 * 300  # What is said after the last round belongs to none.
    assert 0 <= sent_up - counted <= after_the_end


# --- What comes twice, late, or from elsewhere


def test_with_every_message_doubled_nothing_is_counted_twice(fleet: Fleet) -> None:
    fleet.broker.weather = double
    train(fleet)
    assert fleet.aggregator.parameters() == EXPECTED
    assert rounds(fleet) == [("train", 2, 40), ("train", 2, 40), ("evaluate", 2, 40)]


def test_a_report_that_is_replayed_for_ever_counts_once(fleet: Fleet) -> None:
    def replay_reports(topic: str, payload: bytes) -> Sequence[float]:
        return [LATENCY_S + 0.5 * copy for copy in range(20)] if is_message(payload, messages.Report) else [LATENCY_S]

    fleet.broker.weather = replay_reports
    train(fleet)
    assert fleet.aggregator.parameters() == EXPECTED
    assert [event.detail["reports"] for event in fleet.aggregator.happened("round-completed")] == [2, 2, 2]
    verdicts = [said.verdict for said in said_to(fleet, fleet.devices[0]) if isinstance(said, messages.Acknowledgement)]
    assert set(verdicts) == {"accepted"}  # Each copy is answered, since any answer may be lost.
    assert len(verdicts) > 3


def test_a_report_after_the_goal_is_late(fleet: Fleet) -> None:
    slow = fleet.devices[1]
    is_delayed = True

    def delay_first_report(topic: str, payload: bytes) -> Sequence[float]:
        nonlocal is_delayed
        if topic == slow.up and is_delayed and is_message(payload, messages.Report):
            is_delayed = False
            return (30.0,)
        return (LATENCY_S,)

    fleet.broker.weather = delay_first_report
    one_is_enough = msgspec.structs.replace(TWO_ROUNDS.rounds, goal=1, report_count_min=1, overselection_ratio=2.0)
    begin(fleet, msgspec.structs.replace(TWO_ROUNDS, rounds=one_is_enough, rounds_max=1))
    fleet.world.run(60.0)
    accepted = [event.device for event in fleet.aggregator.happened("report-accepted") if event.round == 1]
    assert accepted == [fleet.devices[0].name]
    answers = [said for said in said_to(fleet, slow) if isinstance(said, messages.Acknowledgement) and said.round == 1]
    assert [answer.verdict for answer in answers] == ["late"]
    assert slow.session != "Reporting"
    assert fleet.aggregator.parameters() == [0.5] * 6  # Device 0 alone.


def test_an_unknown_device_is_refused(fleet: Fleet) -> None:
    begin(fleet)
    stranger = keys.SigningKey(fleet.world.rng.bytes(32))
    up = topics.device_up(FLEET, "stranger")
    check_in = messages.CheckIn(fleet.world.rng.bytes(8))
    fleet.broker.add_user(BrokerUser("stranger", PASSWORD, (up,), ()))
    heard: list[LinkNews] = []
    link = fleet.broker.connect("stranger", PASSWORD, (), heard.append)
    link.send(up, wire.sign_message(stranger, up, check_in))  # With a name of its own ...
    own = fleet.devices[0].up
    link.send(own, wire.sign_message(stranger, own, check_in))  # ... on another's topic, which the broker forbids ...
    fleet.broker.inject(own, wire.sign_message(stranger, own, check_in))  # ... and by a broker that does not.
    fleet.world.run(1.0)
    assert fleet.aggregator.counter("protocol_errors") == 2
    assert [one.topic for one in fleet.broker.forbidden] == [own]
    assert not any(one.topic == topics.device_down(FLEET, "stranger") for one in fleet.broker.published)
    finish(fleet)
    assert fleet.aggregator.parameters() == EXPECTED


def test_what_a_hostile_broker_makes_of_messages_changes_nothing(fleet: Fleet) -> None:
    first, second = fleet.devices
    moved = {first.up: second.up, second.up: first.up, first.down: second.down, second.down: first.down}

    def exchange(topic: str, payload: bytes) -> Sequence[float]:
        if topic in moved:
            fleet.broker.inject(moved[topic], payload, (LATENCY_S / 2,))
            fleet.broker.inject(topic, payload[:-3] + b"\xff" + payload[-2:], (LATENCY_S / 2,))
        return (LATENCY_S,)

    fleet.broker.weather = exchange
    train(fleet)
    assert fleet.aggregator.parameters() == EXPECTED
    assert fleet.aggregator.counter("protocol_errors") > 10


def test_a_token_that_may_be_used_once_enrolls_one_device(fleet: Fleet, disk: Path) -> None:
    token = fleet.aggregator.create_token("once", uses_max=1)
    SimulatedDevice(fleet.world, fleet.broker, disk / "first", token, SCRIPTS[0])
    with pytest.raises(Exception, match="used as often as it may be"):
        SimulatedDevice(fleet.world, fleet.broker, disk / "second", token, SCRIPTS[0])
    refused = fleet.aggregator.happened("enrollment-refused")
    assert [event.detail["why"] for event in refused] == ["used-up-token"]


# --- Bad weather and restarts


@pytest.mark.parametrize("seed", range(4))
def test_in_bad_weather_the_rounds_take_longer_and_end_in_the_same_bits(disk: Path, seed: int) -> None:
    fleet = Fleet(disk, SCRIPTS, seed)

    def storm(topic: str, payload: bytes) -> Sequence[float]:
        copies = fleet.world.rng.choice([0, 1, 1, 1, 2])
        return [float(delay) for delay in fleet.world.rng.exponential(0.5, copies)]

    fleet.broker.weather = storm
    train(fleet)
    assert fleet.aggregator.parameters() == EXPECTED
    assert rounds(fleet)[:2] == [("train", 2, 40), ("train", 2, 40)]
    fleet.close()


# In the first round check-ins come within a second, the reports 1.2 s after both are there.
MOMENTS_S = (0.1, 0.5, 1.0, 1.5, 1.9, 2.3, 2.6, 3.0)


@pytest.mark.parametrize("moment_s", MOMENTS_S)
def test_the_aggregator_may_be_killed_at_any_moment(fleet: Fleet, moment_s: float) -> None:
    begin(fleet)
    fleet.world.run(moment_s)
    fleet.aggregator.crash()
    fleet.world.run(7.0)
    fleet.aggregator.start()
    finish(fleet)
    assert fleet.aggregator.parameters() == EXPECTED


@pytest.mark.parametrize("moment_s", MOMENTS_S)
def test_a_device_may_be_killed_at_any_moment(fleet: Fleet, moment_s: float) -> None:
    begin(fleet)
    fleet.world.run(moment_s)
    fleet.devices[0].crash()
    fleet.world.run(7.0)
    fleet.devices[0].start()
    finish(fleet)
    assert fleet.aggregator.parameters() == EXPECTED


def test_a_round_whose_device_is_unplugged_is_given_back_and_tried_again(fleet: Fleet) -> None:
    begin(fleet)
    device = fleet.devices[0]
    fleet.world.run_until(lambda: device.session == "Training")
    device.sensors.conditions = msgspec.structs.replace(device.sensors.conditions, has_external_power=False)
    fleet.world.run(2.0)
    assert device.session == "Resting"
    (given_back,) = fleet.aggregator.happened("assignment-given-back")
    assert (given_back.device, given_back.detail["why"]) == (device.name, "became-ineligible")
    device.sensors.conditions = msgspec.structs.replace(device.sensors.conditions, has_external_power=True)
    finish(fleet)
    assert rounds(fleet, "round-abandoned") == [("train", 1, 10)]
    assert fleet.aggregator.parameters() == EXPECTED


def slow_down(fleet: Fleet, delay_s: float) -> None:
    """Let every trainer take so long, so that an operator can do something meanwhile."""
    for device in fleet.devices:
        device.trainer.say_holding_after_s = delay_s


def test_a_paused_task_lets_its_round_end_and_goes_on_when_it_is_resumed(fleet: Fleet) -> None:
    begin(fleet)
    slow_down(fleet, 10.0)
    fleet.world.run_until(lambda: fleet.aggregator.has_happened("cohort-selected"))
    fleet.aggregator.ask(commands.PauseTask("tiny"))
    fleet.world.run(60.0)
    assert rounds(fleet) == [("train", 2, 40)]
    fleet.aggregator.ask(commands.ResumeTask("tiny"))
    finish(fleet)
    assert fleet.aggregator.parameters() == EXPECTED


def test_a_task_that_is_paused_and_resumed_within_a_round_goes_on_with_that_round(fleet: Fleet) -> None:
    begin(fleet)
    slow_down(fleet, 10.0)
    fleet.world.run_until(lambda: fleet.aggregator.has_happened("cohort-selected"))
    fleet.aggregator.ask(commands.PauseTask("tiny"))
    fleet.aggregator.ask(commands.ResumeTask("tiny"))
    finish(fleet)
    assert rounds(fleet) == [("train", 2, 40), ("train", 2, 40), ("evaluate", 2, 40)]
    assert fleet.aggregator.parameters() == EXPECTED


def test_an_aborted_task_ends_with_its_round_and_sends_everyone_to_rest(fleet: Fleet) -> None:
    begin(fleet)
    slow_down(fleet, 10.0)
    fleet.world.run_until(lambda: fleet.aggregator.has_happened("cohort-selected"))
    fleet.aggregator.ask(commands.AbortTask("tiny"))
    fleet.world.run(30.0)
    assert [event.detail["why"] for event in fleet.aggregator.happened("task-finished")] == ["aborted by the operator"]
    assert [device.session for device in fleet.devices] == ["Resting", "Resting"]
    assert fleet.aggregator.parameters() == [0.0] * 6


def test_a_device_that_was_cancelled_while_it_moved_its_model_takes_part_again(fleet: Fleet) -> None:
    slow = fleet.devices[1]
    one_is_enough = msgspec.structs.replace(TWO_ROUNDS.rounds, goal=1, report_count_min=1, overselection_ratio=2.0)
    begin(fleet, msgspec.structs.replace(TWO_ROUNDS, rounds=one_is_enough, rounds_max=5))
    fleet.world.run_until(lambda: fleet.aggregator.has_happened("round-completed"))
    slow.trainer.say_holding_after_s = 2.0  # The model is moved on disk, and nobody knows of it yet.
    fleet.world.run_until(lambda: fleet.aggregator.has_happened("round-completed", 2))
    slow.trainer.say_holding_after_s = 0.0
    finish(fleet)
    assert fleet.aggregator.happened("assignment-given-back") == []


def test_a_device_that_was_offline_for_long_takes_part_again(fleet: Fleet) -> None:
    begin(fleet)
    device = fleet.devices[0]
    device.link.cut()
    fleet.world.run(2 * 3600.0)
    device.link.mend()
    finish(fleet)
    assert fleet.aggregator.parameters() == EXPECTED


def test_a_device_with_a_worthless_key_ends_no_aggregator(fleet: Fleet) -> None:
    token, signing_key = fleet.token, keys.SigningKey(fleet.world.rng.bytes(32))
    request = messages.EnrollmentRequest(
        token.token, signing_key.public, bytes(32), fleet.world.rng.bytes(16), bytes(16), bytes(32)
    )
    request = msgspec.structs.replace(request, proof=enrollment.prove(token.secret, FLEET, request))
    up = topics.enroll_up(FLEET, token.token)
    fleet.broker.inject(up, wire.sign_message(signing_key, up, request))
    fleet.world.run(1.0)
    assert fleet.aggregator.counter("protocol_errors") == 1
    train(fleet)
    assert fleet.aggregator.parameters() == EXPECTED
