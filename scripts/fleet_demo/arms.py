"""Four ways to train the same model from the same start in equally many optimizer steps, compared on the same people.

* *federated*: what the fleet made of it;
* *personalized*: the fleet's checkpoint of some rounds before the end, then as many rounds' steps on each device alone;
* *local*: each device alone from the start, as if there were no fleet;
* *pooled*: one machine that holds what nobody should have to hand over, the examples of all devices. It takes as many
  steps as a device took on average.

All of them train with the bundle's training graph, on what the devices' stores gave to training, standardized by each
device's own statistics. They are judged on people whom nobody trained on, whose watch fits its own statistics without
labels, and on what each device records later. In a round, all arms learn at the rate that the fleet had in that round.
"""

import hashlib
import math
import multiprocessing
import os
import signal
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import connection
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from federated_core.engines.onnxruntime_engine import OnnxruntimeEngine
from federated_core.errors import LocalMisuseError
from federated_core.learning.bundle import Bundle, decode_bundle
from federated_core.learning.local_training import ORDER_KEY_BYTES, LocalPlan, planned_step_count, train_locally
from federated_core.learning.parameters import Vector, flatten, unflatten
from federated_core.learning.standardization import fit_personal
from scripts.fleet_demo.spar_data import Examples, Wearer, together

WORSE_MARGIN = 0.01
"""A device counts as worse off than alone from here on: one point of accuracy."""
WORKER_COUNT = 2
EVALUATION_BATCH_SIZE = 256

Arm = Literal["federated", "personalized", "local", "pooled"]
Tensors = dict[str, NDArray[np.float32]]


class Comparison(NamedTuple):
    """What to compare: a fleet's run, and what it ran on."""

    bundle: bytes
    training: tuple[Examples, ...]
    """For each device, what its store gave to training."""
    later: tuple[Examples, ...]
    unseen: tuple[Wearer, ...]
    initial: Vector
    earlier: Vector
    """The federated checkpoint ``personal_rounds`` rounds before the last."""
    final: Vector
    plan: LocalPlan
    """Of one round."""
    learning_rates: tuple[float, ...]
    """Of each round that the fleet trained; they replace the plan's."""
    personal_rounds: int
    seed: int


class ArmScore(NamedTuple):
    """Accuracy of one arm: on unseen people (the mean over its models), and on each device's later recordings."""

    unseen: float
    later_by_device: tuple[float, ...]

    @property
    def later(self) -> float:
        """Mean over devices."""
        return statistics.fmean(self.later_by_device)


class Outcome(NamedTuple):
    """All arms, and how many of the personalized devices would have done better alone."""

    arms: dict[Arm, ArmScore]
    devices_worse_than_alone_ratio: float


class _Job(NamedTuple):
    arm: Arm
    devices: tuple[int, ...]
    """Whose later recordings the model is asked about; whose examples it trains on unless it is pooled."""


class _Score(NamedTuple):
    unseen: float
    later: tuple[float, ...]


def personal_rounds(rounds: int) -> int:
    """Choose for how many of ``rounds`` a personalized device leaves the fleet: half of them."""
    return max(1, rounds // 2)


def compare(
    comparison: Comparison,
    progress: Callable[[int, int], None] | None = None,
    *,
    worker_count: int = WORKER_COUNT,
) -> Outcome:
    """Train what is not trained yet, in processes of their own, and judge all arms; same input, same result.

    ``progress`` is told how many of the models are done and how many there are.
    """
    rounds = len(comparison.learning_rates)
    if not 0 < comparison.personal_rounds <= rounds:
        raise LocalMisuseError(f"personal_rounds: expected 1 to {rounds}, got {comparison.personal_rounds}")
    everyone = tuple(range(len(comparison.training)))
    jobs = [_Job("pooled", everyone)]
    jobs += [_Job(arm, (device,)) for arm in ("local", "personalized") for device in everyone]
    jobs += [_Job("federated", everyone)]
    scores: dict[_Job, _Score] = {}
    with ProcessPoolExecutor(
        worker_count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(comparison,),
    ) as pool:
        futures = {pool.submit(_work, job): job for job in jobs}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                scores[futures[future]] = future.result()
                if progress is not None:
                    progress(done, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return _outcome(scores)


def _outcome(scores: Mapping[_Job, _Score]) -> Outcome:
    arms: dict[Arm, ArmScore] = {}
    for arm in ("federated", "personalized", "local", "pooled"):
        mine = sorted((job.devices, score) for job, score in scores.items() if job.arm == arm)
        arms[arm] = ArmScore(
            statistics.fmean(score.unseen for _, score in mine),
            tuple(accuracy for _, score in mine for accuracy in score.later),
        )
    gains = zip(arms["personalized"].later_by_device, arms["local"].later_by_device, strict=True)
    # A tolerance for sums of float: one point less is not more than one point less.
    worse = [own < alone - WORSE_MARGIN - 1e-9 for own, alone in gains]
    return Outcome(arms, sum(worse) / len(worse))


class Judge:
    """Asks models about recordings; each wearer's statistics come from the unlabelled windows it is given for them."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._session = OnnxruntimeEngine().open_evaluation(bundle)

    def fitted(self, examples: Examples) -> Tensors:
        """Return the personal parameters of whoever recorded ``examples``."""
        return fit_personal(self._bundle, {"x": examples.x})

    def accuracy(self, vector: Vector, asked: Sequence[tuple[Tensors, Examples]]) -> float:
        """Return the share of all windows in ``asked`` that the model with these personal parameters gets right."""
        shared = unflatten(self._bundle.description.layout, vector)
        correct_count = example_count = 0
        for personal, examples in asked:
            found = self._session.evaluate(
                {**shared, **personal}, {"x": examples.x}, examples.y, batch_size=EVALUATION_BATCH_SIZE
            )
            correct_count += found.correct_count
            example_count += found.example_count
        return correct_count / example_count


class UnseenPeople:
    """People whom no device ever saw, for one number a round."""

    def __init__(self, judge: Judge, people: Sequence[Wearer]) -> None:
        self._judge = judge
        self._asked = [
            (personal, part)
            for person in people
            for personal in [judge.fitted(person.own)]
            for part in (person.own, person.later)
        ]

    def accuracy(self, vector: Vector) -> float:
        """Return how often a checkpoint is right about them."""
        return self._judge.accuracy(vector, self._asked)


class _Worker:
    """One process's share of the work: an open model and everybody's recordings."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        bundle = decode_bundle(comparison.bundle)
        self._layout = bundle.description.layout
        self._session = OnnxruntimeEngine().open_training(bundle)
        self._judge = Judge(bundle)
        self._fitted = [self._judge.fitted(examples) for examples in comparison.training]
        self._unseen = UnseenPeople(self._judge, comparison.unseen)

    def work(self, job: _Job) -> _Score:
        """Train what the job asks for and judge it."""
        vector = self._vector(job)
        later = tuple(
            self._judge.accuracy(vector, [(self._fitted[device], self._comparison.later[device])])
            for device in job.devices
        )
        return _Score(self._unseen.accuracy(vector), later)

    def _vector(self, job: _Job) -> Vector:
        comparison, device = self._comparison, job.devices[0]
        first_personal_round = len(comparison.learning_rates) - comparison.personal_rounds
        match job.arm:
            case "federated":
                return comparison.final
            case "local":
                return self._trained(job, comparison.initial, self._fitted[device], comparison.training[device])
            case "personalized":
                own, examples = self._fitted[device], comparison.training[device]
                return self._trained(job, comparison.earlier, own, examples, first_round=first_personal_round)
            case "pooled":
                return self._pooled(job)

    def _pooled(self, job: _Job) -> Vector:
        """Train on everybody's examples, each standardized by whose they are; the graph's own standardization rests."""
        standardized = [
            examples._replace(x=(examples.x - own["standardize.mean"]) * own["standardize.scale"])
            for own, examples in zip(self._fitted, self._comparison.training, strict=True)
        ]
        neutral: Tensors = {
            "standardize.mean": np.zeros_like(self._fitted[0]["standardize.mean"]),
            "standardize.scale": np.ones_like(self._fitted[0]["standardize.scale"]),
        }
        plan = self._comparison.plan
        step_counts = [planned_step_count(plan, len(examples.y)) for examples in self._comparison.training]
        step_count = math.ceil(statistics.fmean(step_counts))
        return self._trained(job, self._comparison.initial, neutral, together(standardized), step_count_max=step_count)

    def _trained(
        self,
        job: _Job,
        start: Vector,
        personal: Tensors,
        examples: Examples,
        *,
        first_round: int = 0,
        step_count_max: int | None = None,
    ) -> Vector:
        tensors = {**unflatten(self._layout, start), **personal}
        for number, learning_rate in enumerate(self._comparison.learning_rates[first_round:], first_round):
            result = train_locally(
                self._session,
                tensors,
                {"x": examples.x},
                examples.y,
                plan=self._comparison.plan._replace(learning_rate=learning_rate, step_count_max=step_count_max),
                order_key=_order_key(self._comparison.seed, job, number),
            )
            assert result is not None, "nobody asks it to stop"
            tensors = result.tensors
        return flatten(self._layout, tensors)


def _order_key(seed: int, job: _Job, round_number: int) -> bytes:
    name = f"{seed}/{job.arm}/{job.devices}/{round_number}"
    return hashlib.blake2b(name.encode(), digest_size=ORDER_KEY_BYTES).digest()


_worker: _Worker | None = None


def _start_worker(comparison: Comparison) -> None:
    global _worker  # noqa: PLW0603 - a pool gives its processes no other place for what all of their jobs share.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; who started us decides.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = _Worker(comparison)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _work(job: _Job) -> _Score:
    assert _worker is not None
    return _worker.work(job)
