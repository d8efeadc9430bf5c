"""The trial: a child process that installs a candidate release beside what runs, and judges it before anything uses it.

A model that crashes its runtime takes down this process and nothing else. What it may not do is change what runs.
"""

import errno
import shutil
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent import trial_work, update, work
from edge_agent.adapters.engine import open_engine
from edge_agent.adapters.example_store import ExampleStore
from edge_agent.adapters.installer import Installer, describe
from edge_agent.child import run_child
from edge_agent.held_model import HeldModel
from edge_agent.installed_model import InstalledModel, encode_personal, load_installed
from edge_agent.model_inputs import as_inputs, zero_inputs
from federated_core.engines.engine import Engine, Evaluation
from federated_core.errors import FallowError, RemoteProtocolError
from federated_core.learning.bundle import Bundle, decode_bundle
from federated_core.learning.parameters import Layout, Vector, encode_checkpoint
from federated_core.learning.standardization import fit_personal
from federated_core.protocol.messages import CheckpointReference, ReleaseReason
from federated_core.release.acceptance import Refusal, judge_bytes

EXAMPLES_MAX = 2_000
CANARY_BATCH = 64
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
JUDGED_COUNT_MIN = 20  # Fewer held-out examples say too little to refuse a release by.


class Trial:
    """Does one piece of work at a time, and says on ``out`` how it ended."""

    def __init__(self, out: IO[bytes], thread_count: int) -> None:
        self._out = out
        self._engine = open_engine(thread_count)

    def do(self, piece: trial_work.Work) -> None:
        """Do ``piece`` and say what became of it."""
        work.write_message(self._out, trial_work.TrialOutcome(piece.work_id, answer(piece, self._engine)))


def answer(piece: trial_work.Work, engine: Engine) -> trial_work.Answer:
    """Do ``piece``; what is wrong with the candidate is an answer, never an error."""
    try:
        if isinstance(piece, trial_work.InstallWork):
            return _install(piece)
        return _try(piece, engine)
    except (FallowError, OSError) as error:
        world = error if isinstance(error, OSError) else error.__cause__
        is_full = isinstance(world, OSError) and world.errno in _NO_ROOM
        return _unfit("no-room" if is_full else "does-not-load", f"{type(error).__name__}: {error}")


# --- Installation


def _install(piece: trial_work.InstallWork) -> trial_work.Answer:
    manifest = piece.manifest
    bundle_bytes = Path(piece.bundle_path).read_bytes()
    refusal = judge_bytes("bundle", manifest.bundle, bundle_bytes)
    if refusal is not None:
        return _refused(refusal)
    bundle = decode_bundle(bundle_bytes)
    description = bundle.description
    if description.name != manifest.family:
        return _unfit("wrong-family", f"the bundle is of {description.name}, the release says {manifest.family}")
    installer = Installer(Path(piece.releases_folder))
    try:
        vector = _assemble(piece, installer.scratch_path(manifest.family), description.layout)
    except (RemoteProtocolError, FileNotFoundError) as error:
        if any(kind == "keyframe" for kind, _ in piece.fetched):
            return _unfit("digest-mismatch", str(error))
        return update.BaseMoved()
    checkpoint = encode_checkpoint(description.layout, manifest.task, manifest.version, vector)
    refusal = judge_bytes("checkpoint", manifest.checkpoint, checkpoint)
    if refusal is not None:
        return _refused(refusal)
    files = {"bundle": bundle_bytes, "checkpoint": checkpoint, "personal": _personal(bundle, Path(piece.store_path))}
    installer.put(manifest.family, describe(manifest).content, files)
    return update.Installed()


def _assemble(piece: trial_work.InstallWork, scratch: Path, layout: Layout) -> Vector:
    """Return the parameters of the release; what training holds is copied and never moved."""
    shutil.rmtree(scratch)
    scratch.mkdir()
    if not any(kind == "keyframe" for kind, _ in piece.fetched):
        for name in ("keyframe", "position"):
            shutil.copyfile(Path(piece.held_folder) / name, scratch / name)
    manifest = piece.manifest
    base = CheckpointReference(manifest.version, manifest.checkpoint.digest)
    fetched = [(kind, path) for kind, path in piece.fetched if kind != "bundle"]
    return HeldModel(scratch, layout).move_to(manifest.task, base, fetched)


def _personal(bundle: Bundle, store_path: Path) -> bytes:
    """Return the parameters that this device computes itself; without examples the checkpoint's own stand."""
    x, _ = ExampleStore(store_path).load("train", EXAMPLES_MAX)
    return encode_personal(fit_personal(bundle, as_inputs(bundle, x)) if len(x) else {})


# --- Trial


def _try(piece: trial_work.TrialWork, engine: Engine) -> trial_work.Answer:
    installer = Installer(Path(piece.releases_folder))
    candidate = load_installed(installer, describe(piece.manifest), engine)
    running = _load_running(piece, installer, engine)
    if running is not None and _interface(running.bundle) != _interface(candidate.bundle):
        return _unfit("interface-changed", "inputs, outputs or classes are not those of what runs")
    x, label = ExampleStore(Path(piece.store_path)).load("holdout", EXAMPLES_MAX)
    outputs = candidate.predict(
        as_inputs(candidate.bundle, x[:CANARY_BATCH]) if len(x) else zero_inputs(candidate.bundle)
    )
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            return _unfit("not-finite", f"output {name!r} has NaN or infinity")
    if len(label) == 0:
        return update.Passed()
    score = _evaluate(candidate, x, label, engine)
    if not np.isfinite(score.loss_sum):
        return _unfit("not-finite", "the loss over the held-out examples is not finite")
    if running is not None and score.example_count >= JUDGED_COUNT_MIN:
        accuracy, before = _accuracy(score), _accuracy(_evaluate(running, x, label, engine))
        if accuracy < before - piece.manifest.accuracy_drop_max:
            bound = piece.manifest.accuracy_drop_max
            return _unfit("less-accurate", f"accuracy {accuracy:.3f}, what runs {before:.3f}, may lose {bound:.3f}")
    return update.Passed()


def _load_running(piece: trial_work.TrialWork, installer: Installer, engine: Engine) -> InstalledModel | None:
    if piece.running is None:
        return None
    try:
        return load_installed(installer, piece.running, engine)
    except FallowError:
        return None  # It rotted: that must not keep a good release out.


def _evaluate(model: InstalledModel, x: NDArray[np.float32], label: NDArray[np.int64], engine: Engine) -> Evaluation:
    return engine.open_evaluation(model.bundle).evaluate(model.tensors, as_inputs(model.bundle, x), label)


def _accuracy(score: Evaluation) -> float:
    return score.correct_count / score.example_count


def _interface(bundle: Bundle) -> tuple[Any, ...]:
    description = bundle.description
    return description.inputs, description.outputs, description.classes


def _refused(refusal: Refusal) -> update.Unfit:
    return _unfit(refusal.reason, refusal.detail)


def _unfit(reason: ReleaseReason, detail: str) -> update.Unfit:
    return update.Unfit(reason, detail[:120])


if __name__ == "__main__":
    run_child(Trial, msgspec.msgpack.Decoder(trial_work.Work))
