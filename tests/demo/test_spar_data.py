import numpy as np
import pytest

from federated_core.errors import LocalMisuseError
from scripts.fleet_demo.spar_data import (
    HELD_OUT_PAIRS,
    HOP_SAMPLES,
    LATER_HOP_SAMPLES,
    LATER_START_RATIO,
    OWN_RATIO,
    SAMPLE_RATE_HZ,
    WINDOW_SAMPLES,
    Examples,
    FleetData,
    build_fleet,
)
from scripts.fleet_demo.spar_recordings import Recording

LENGTH = 1000


def counting_recordings() -> list[Recording]:
    """Ten people, two arms, two exercises; the first channel counts samples, the others say whose they are."""
    recordings = []
    for person in range(1, 11):
        for side in (0, 1):
            for exercise in (2, 5):
                samples = np.zeros((LENGTH, 6), np.float32)
                samples[:, 0] = np.arange(LENGTH)
                samples[:, 1:4] = person, side, exercise
                recordings.append(Recording(person, side, exercise, samples))
    return recordings


@pytest.fixture(scope="module")
def fleet() -> FleetData:
    return build_fleet(counting_recordings(), seed=0)


def first_and_last(examples: Examples) -> tuple[float, float]:
    return float(examples.x[:, 0].min()), float(examples.x[:, 0].max())


def test_no_window_crosses_the_split_between_own_and_later(fleet: FleetData) -> None:
    for wearer in (*fleet.devices, *fleet.unseen):
        assert first_and_last(wearer.own)[1] < OWN_RATIO * LENGTH
        assert first_and_last(wearer.later)[0] >= LATER_START_RATIO * LENGTH


def test_no_window_crosses_from_one_recording_into_the_next(fleet: FleetData) -> None:
    for wearer in (*fleet.devices, *fleet.unseen):
        for part in (wearer.own, wearer.later):
            assert (np.diff(part.x[:, 0], axis=1) == 1).all(), "samples follow each other"
            assert (part.x[:, 3] == part.y[:, np.newaxis]).all(), "a label belongs to its recording"
            assert (part.x[:, 1] == wearer.person).all()


def test_a_recording_gives_every_window_that_fits(fleet: FleetData) -> None:
    recording_count = 4
    own_windows = (int(OWN_RATIO * LENGTH) - WINDOW_SAMPLES) // HOP_SAMPLES + 1
    later_windows = (LENGTH - int(LATER_START_RATIO * LENGTH) - WINDOW_SAMPLES) // LATER_HOP_SAMPLES + 1
    for wearer in fleet.devices:
        assert len(wearer.own.y) == recording_count * own_windows
        assert len(wearer.later.y) == recording_count * later_windows
        assert wearer.own.x.shape[1:] == (6, WINDOW_SAMPLES)


def test_time_runs_on_from_recording_to_recording(fleet: FleetData) -> None:
    own = fleet.devices[0].own
    assert (np.diff(own.time_s) > 0).all()
    per_recording = len(own.y) // 4
    assert own.time_s[::per_recording].tolist() == [index * LENGTH / SAMPLE_RATE_HZ for index in range(4)]


def test_a_recording_too_short_for_a_window_gives_none() -> None:
    short = [recording._replace(samples=recording.samples[:300]) for recording in counting_recordings()]
    device = build_fleet(short).devices[0]
    assert len(device.own.y) > 0
    assert device.later.x.shape == (0, 6, WINDOW_SAMPLES)


def test_five_seeds_hold_out_each_person_once() -> None:
    recordings = counting_recordings()
    held_out = [wearer.person for seed in range(5) for wearer in build_fleet(recordings, seed=seed).unseen]
    assert sorted(held_out) == list(range(1, 11))
    assert len(HELD_OUT_PAIRS) == 5


@pytest.mark.parametrize("device_count", [8, 9, 11, 16])
def test_devices_beyond_the_people_are_arms(device_count: int) -> None:
    fleet = build_fleet(counting_recordings(), device_count=device_count, seed=1)
    assert len(fleet.devices) == device_count
    names = [wearer.name for wearer in fleet.devices]
    assert len(set(names)) == device_count
    assert {wearer.person for wearer in fleet.devices} == {1, 2, 5, 6, 7, 8, 9, 10}
    for wearer in fleet.devices:
        sides = set(np.unique(wearer.own.x[:, 2]))
        assert sides == ({0.0} if wearer.name.endswith("left") else {1.0} if wearer.name.endswith("right") else {0, 1})
    assert sum(name.endswith("left") for name in names) == device_count - 8


@pytest.mark.parametrize("device_count", [7, 17])
def test_a_fleet_of_another_size_is_refused(device_count: int) -> None:
    with pytest.raises(LocalMisuseError, match=f"devices: expected 8 to 16, got {device_count}"):
        build_fleet(counting_recordings(), device_count=device_count)
