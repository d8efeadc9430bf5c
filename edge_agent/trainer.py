"""The trainer: a child process that turns one piece of work after another into an update, and then ends.

It alone imports numpy and onnxruntime. It reads files and writes files; it has no key, no credential and no network. It
ends with its parent: when the pipe closes, or when it is asked to.
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent import work
from edge_agent.adapters.engine import open_engine
from edge_agent.adapters.example_store import ExampleStore
from edge_agent.child import run_child
from edge_agent.held_model import HeldModel
from edge_agent.model_inputs import as_inputs
from federated_core.adapters.atomic_file import write_atomically
from federated_core.engines.engine import EvaluationSession, TrainingSession
from federated_core.errors import FallowError, LocalMisuseError, RemoteProtocolError, UntrustedReleaseError
from federated_core.learning.bundle import Bundle, decode_bundle
from federated_core.learning.clipping import clip_to_norm
from federated_core.learning.local_training import LocalPlan, LocalResult, train_locally
from federated_core.learning.parameters import Vector, flatten, unflatten, update_part
from federated_core.learning.standardization import fit_personal
from federated_core.learning.update_codec import encode_update
from federated_core.protocol.messages import AbandonReason, Metrics

PROGRESS_INTERVAL_S = 1.0
Tensors = Mapping[str, NDArray[np.float32]]


class NotEnoughExamplesError(FallowError):
    """The device holds fewer examples than the plan asks for."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenBundle:
    """A bundle with its sessions: kept while work for the same bundle follows."""

    path: str
    bundle: Bundle
    training: TrainingSession
    evaluation: EvaluationSession


class Trainer:
    """Does one piece of work at a time, and says how it goes on ``out``."""

    def __init__(self, out: IO[bytes], thread_count: int) -> None:
        self._out = out
        self._engine = open_engine(thread_count)
        self._open: OpenBundle | None = None

    def do(self, piece: work.Work) -> None:
        """Do ``piece`` and say what became of it; an error is said too, never raised."""
        try:
            self._say(self._do(piece))
        except NotEnoughExamplesError as error:
            self._fail(piece, "too-few-examples", error)
        except (RemoteProtocolError, UntrustedReleaseError) as error:
            self._fail(piece, "untrusted", error)
        except (FallowError, OSError, MemoryError) as error:
            self._fail(piece, "training-failed", error)

    def _do(self, piece: work.Work) -> work.Done:
        model = self._load_bundle(piece.bundle_path)
        layout = model.bundle.description.layout
        held = HeldModel(Path(piece.model_folder), layout)
        base = held.move_to(piece.task, piece.base, piece.fetched)
        self._say(work.Holding(piece.work_id, piece.base))

        store = ExampleStore(Path(piece.store_path))
        x, label = store.load("train", piece.plan.example_count_max)
        if len(label) < piece.plan.example_count_min:
            raise NotEnoughExamplesError(
                f"{len(label)} training examples, the plan asks for {piece.plan.example_count_min}"
            )
        inputs = as_inputs(model.bundle, x)
        start = {**unflatten(layout, base), **fit_personal(model.bundle, inputs)}
        began_s = time.monotonic()
        metrics = _evaluate(model, start, *store.load("holdout", piece.plan.example_count_max))
        result = None
        if piece.plan.kind == "train":
            result = self._train(piece, model, start, inputs, label)
            delta = update_part(layout, flatten(layout, result.tensors) - base)
            self._write_update(piece, model.bundle, delta)
        return work.Done(
            piece.work_id,
            example_count=len(label),
            metrics=metrics,
            training_loss=None if result is None else result.loss_mean,
            training_s=time.monotonic() - began_s,
        )

    def _load_bundle(self, path: str) -> OpenBundle:
        if self._open is None or self._open.path != path:
            bundle = decode_bundle(Path(path).read_bytes())
            self._open = OpenBundle(
                path, bundle, self._engine.open_training(bundle), self._engine.open_evaluation(bundle)
            )
        return self._open

    def _train(
        self,
        piece: work.Work,
        model: OpenBundle,
        start: Tensors,
        inputs: Mapping[str, NDArray[Any]],
        label: NDArray[np.int64],
    ) -> LocalResult:
        plan = LocalPlan(piece.plan.epochs, piece.plan.batch_size, piece.plan.learning_rate, piece.plan.step_count_max)
        last_said_s = time.monotonic()

        def report_progress(done: int, planned: int) -> None:
            nonlocal last_said_s
            if time.monotonic() - last_said_s >= PROGRESS_INTERVAL_S:
                last_said_s = time.monotonic()
                self._say(work.Progress(piece.work_id, done, planned))

        result = train_locally(
            model.training, start, inputs, label, plan=plan, order_key=piece.order_key, progress=report_progress
        )
        if result is None:
            raise LocalMisuseError("training ended without a result")
        return result

    def _write_update(self, piece: work.Work, bundle: Bundle, delta: Vector) -> None:
        if piece.plan.delta_norm_max is not None:
            delta = clip_to_norm(delta, piece.plan.delta_norm_max)
        blob = encode_update(
            delta,
            layout_digest=bundle.description.layout.digest,
            base_digest=piece.base.digest,
            noise_key=piece.noise_key,
            step_per_rms=piece.plan.step_ratio,
        )
        write_atomically(Path(piece.update_path), blob)

    def _fail(self, piece: work.Work, why: AbandonReason, error: BaseException) -> None:
        self._say(work.Failed(piece.work_id, why, f"{type(error).__name__}: {error}"[:2000]))

    def _say(self, outcome: work.Outcome) -> None:
        work.write_message(self._out, outcome)


def _evaluate(model: OpenBundle, tensors: Tensors, x: NDArray[np.float32], label: NDArray[np.int64]) -> Metrics:
    if len(label) == 0:
        return Metrics(0, 0, 0.0)
    score = model.evaluation.evaluate(tensors, as_inputs(model.bundle, x), label)
    return Metrics(score.example_count, score.correct_count, max(0.0, score.loss_sum))


if __name__ == "__main__":
    run_child(Trainer, msgspec.msgpack.Decoder(work.Work))
