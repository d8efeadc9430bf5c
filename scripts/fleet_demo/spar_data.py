"""Recordings become a fleet: one person a device, two people whom no device ever sees, each recording split by time.

The first part of every recording belongs to the device, which keeps a holdout of its own inside it. Then comes a gap,
and the end is what the device sees *later*; only this program has it. A window never crosses these borders.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError
from scripts.fleet_demo.spar_recordings import Recording

SAMPLE_RATE_HZ: Final = 50
WINDOW_SAMPLES: Final = 192
HOP_SAMPLES: Final = 50
LATER_HOP_SAMPLES: Final = 10
"""Finer, so that the one point of accuracy that counts as worse off is more than one window of a short recording."""
OWN_RATIO: Final = 0.72
LATER_START_RATIO: Final = 0.75

HELD_OUT_PAIRS: Final = ((1, 2), (3, 4), (5, 6), (7, 10), (8, 9))
"""Disjoint. The lengths of their recordings match one by one: these people exercised together, at one pace; a person
whose companion trained the model would not be quite unseen."""
DEVICE_COUNT_MIN: Final = 8
DEVICE_COUNT_MAX: Final = 16
SIDE_NAMES: Final = ("left", "right")


class Examples(NamedTuple):
    """Windows of recordings with what was done in them."""

    x: NDArray[np.float32]
    """Shape (count, 6, 192)."""
    y: NDArray[np.int64]
    time_s: NDArray[np.float64]
    """When each window starts, on the clock of its device."""


class Wearer(NamedTuple):
    """What one watch records: a person's, or one arm's where there are more devices than people."""

    name: str
    person: int
    own: Examples
    later: Examples


class FleetData(NamedTuple):
    """Who trains, and who is only asked afterwards."""

    devices: tuple[Wearer, ...]
    unseen: tuple[Wearer, ...]


def build_fleet(recordings: Sequence[Recording], *, device_count: int = DEVICE_COUNT_MIN, seed: int = 0) -> FleetData:
    """Hold out the pair that ``seed`` chooses; everyone else is a device, the first of them two if need be."""
    if not DEVICE_COUNT_MIN <= device_count <= DEVICE_COUNT_MAX:
        raise LocalMisuseError(f"devices: expected {DEVICE_COUNT_MIN} to {DEVICE_COUNT_MAX}, got {device_count}")
    held_out = HELD_OUT_PAIRS[seed % len(HELD_OUT_PAIRS)]
    people = sorted({recording.person for recording in recordings})
    training = [person for person in people if person not in held_out]
    split_people = training[: device_count - len(training)]
    devices: list[Wearer] = []
    for person in training:
        of_person = [recording for recording in recordings if recording.person == person]
        if person in split_people:
            devices += [
                _wearer(f"person-{person:02d}-{name}", [item for item in of_person if item.side == side])
                for side, name in enumerate(SIDE_NAMES)
            ]
        else:
            devices.append(_wearer(f"person-{person:02d}", of_person))
    unseen = [
        _wearer(f"person-{person:02d}", [item for item in recordings if item.person == person]) for person in held_out
    ]
    return FleetData(tuple(devices), tuple(unseen))


def together(parts: Sequence[Examples]) -> Examples:
    """Return the examples of all ``parts``, one part after another."""
    return Examples(
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.y for part in parts]),
        np.concatenate([part.time_s for part in parts]),
    )


def _wearer(name: str, recordings: Sequence[Recording]) -> Wearer:
    own: list[Examples] = []
    later: list[Examples] = []
    start_s = 0.0
    for recording in recordings:
        count = len(recording.samples)
        own.append(_examples(recording, range(int(OWN_RATIO * count)), HOP_SAMPLES, start_s))
        later.append(_examples(recording, range(int(LATER_START_RATIO * count), count), LATER_HOP_SAMPLES, start_s))
        start_s += count / SAMPLE_RATE_HZ
    return Wearer(name, recordings[0].person, together(own), together(later))


def _examples(recording: Recording, part: range, hop_samples: int, start_s: float) -> Examples:
    """Cut the windows that lie wholly in ``part`` of a recording."""
    begins = range(part.start, part.stop - WINDOW_SAMPLES + 1, hop_samples)
    x = np.zeros((len(begins), recording.samples.shape[1], WINDOW_SAMPLES), np.float32)
    for row, begin in zip(x, begins, strict=True):
        row[:] = recording.samples[begin : begin + WINDOW_SAMPLES].T
    y = np.full(len(begins), recording.exercise, np.int64)
    return Examples(x, y, start_s + np.array(begins, np.float64) / SAMPLE_RATE_HZ)
