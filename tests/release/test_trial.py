"""The trial process' work, without the process: what it installs, and what it finds against a candidate."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from cloud_aggregator.model_building import build_bundle
from edge_agent import trial_work, update
from edge_agent.adapters.installer import InstalledRelease, Installer, describe
from edge_agent.installed_model import load_installed
from edge_agent.trial import answer
from federated_core.engines.engine import Engine
from federated_core.engines.numpy_engine import NumpyEngine
from federated_core.engines.onnxruntime_engine import OnnxruntimeEngine
from federated_core.learning.bundle import Fit, decode_bundle
from federated_core.learning.lattice import open_lattice, publish, vector_at
from federated_core.learning.lattice_codec import encode_delta, encode_keyframe, encode_position
from tests.learning.small_models import gesture_model
from tests.release.lone_device import add_examples, larger_wins
from tests.release.tiny_releases import FAMILY, OVERFLOWING, RIGHT, SURER, WRONG, TinyRelease, reference, tiny_release
from tests.simulation.tiny_model import tiny_build, tiny_onnx

ENGINES = [NumpyEngine(), OnnxruntimeEngine()]


def install_work(folder: Path, release: TinyRelease, **changes: object) -> trial_work.InstallWork:
    """Return the work of installing ``release``, everything that it was fetched lying in ``folder``."""
    paths = {}
    for artifact in release.fetch:
        paths[artifact.kind] = folder / artifact.blob.digest.hex()
        paths[artifact.kind].write_bytes(release.blobs[artifact.blob.digest])
    work = trial_work.InstallWork(
        work_id=1,
        manifest=release.manifest,
        bundle_path=str(paths["bundle"]),
        held_folder=str(folder / "held"),
        fetched=tuple((kind, str(path)) for kind, path in paths.items() if kind != "bundle"),
        releases_folder=str(folder / "releases"),
        store_path=str(folder / "examples.db"),
    )
    return msgspec.structs.replace(work, **changes)


def install(folder: Path, release: TinyRelease) -> InstalledRelease:
    """Install a release and make it what runs."""
    assert answer(install_work(folder, release), NumpyEngine()) == update.Installed()
    return Installer(folder / "releases").commit(describe(release.manifest)).release


def judge(folder: Path, release: TinyRelease, running: InstalledRelease | None, engine: Engine) -> trial_work.Answer:
    """Install ``release`` and try it against ``running``."""
    assert answer(install_work(folder, release), engine) == update.Installed()
    places = (str(folder / "releases"), str(folder / "examples.db"))
    return answer(trial_work.TrialWork(2, release.manifest, running, *places), engine)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiny_build().data[:-1], "truncated"),
        (b"", "truncated"),
        (tiny_build().data + b"!", "oversized"),
        (tiny_build().data[:-1] + b"!", "digest-mismatch"),
    ],
    ids=["truncated", "empty", "longer", "flipped byte"],
)
def test_a_bundle_that_is_not_what_was_signed_is_refused_before_it_is_read(
    folder: Path, data: bytes, reason: str
) -> None:
    path = folder / "changed"
    path.write_bytes(data)
    found = answer(install_work(folder, tiny_release(1, RIGHT), bundle_path=str(path)), NumpyEngine())
    assert isinstance(found, update.Unfit)
    assert found.reason == reason
    assert not list(folder.glob("releases/*/content/*"))


def test_what_training_holds_is_used_through_a_delta_and_not_moved(folder: Path) -> None:
    publisher = open_lattice(RIGHT, 4)
    held = folder / "held"
    held.mkdir()
    (held / "keyframe").write_bytes(encode_keyframe(publisher.keyframe))
    (held / "position").write_bytes(encode_position(publisher.position))
    before = {path.name: path.read_bytes() for path in held.iterdir()}
    after, delta = publish(publisher, SURER)
    release = tiny_release(1, vector_at(after.keyframe, after.position), version=5)
    delta_path = folder / "delta"
    delta_path.write_bytes(encode_delta(delta))
    work = install_work(folder, release, fetched=(("delta", str(delta_path)),))
    assert answer(work, NumpyEngine()) == update.Installed()
    assert {path.name: path.read_bytes() for path in held.iterdir()} == before


def test_training_that_went_on_meanwhile_asks_for_another_plan(folder: Path) -> None:
    publisher = open_lattice(WRONG, 9)
    held = folder / "held"
    held.mkdir()
    (held / "keyframe").write_bytes(encode_keyframe(publisher.keyframe))
    (held / "position").write_bytes(encode_position(publisher.position))
    work = install_work(folder, tiny_release(1, RIGHT), fetched=())
    assert answer(work, NumpyEngine()) == update.BaseMoved()
    nowhere = msgspec.structs.replace(work, held_folder=str(folder / "nowhere"))
    assert answer(nowhere, NumpyEngine()) == update.BaseMoved()


@pytest.mark.parametrize("engine", ENGINES, ids=["numpy", "onnxruntime"])
@pytest.mark.parametrize(
    ("vector", "reason"), [(SURER, None), (WRONG, "less-accurate"), (OVERFLOWING, "not-finite")], ids=str
)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_both_engines_judge_alike(
    folder: Path, engine: Engine, vector: NDArray[np.float32], reason: str | None
) -> None:
    add_examples(folder, *larger_wins())
    found = judge(folder, tiny_release(2, vector), install(folder, tiny_release(1, RIGHT)), engine)
    assert (found.reason if isinstance(found, update.Unfit) else None) == reason


def test_too_few_examples_say_too_little_to_refuse_a_release(folder: Path) -> None:
    add_examples(folder, *larger_wins(count=38))  # 19 are held out.
    running = install(folder, tiny_release(1, RIGHT))
    assert judge(folder, tiny_release(2, WRONG), running, NumpyEngine()) == update.Passed()


def test_a_release_whose_classes_differ_is_not_for_the_applications_that_are_here(folder: Path) -> None:
    running = install(folder, tiny_release(1, RIGHT))
    other = build_bundle(tiny_onnx(), name=FAMILY, loss="softmax-cross-entropy", classes=("up", "down"))
    found = judge(folder, tiny_release(2, RIGHT, bundle=other.data), running, NumpyEngine())
    assert isinstance(found, update.Unfit)
    assert found.reason == "interface-changed"


def test_what_runs_and_rotted_does_not_keep_a_good_release_out(folder: Path) -> None:
    add_examples(folder, *larger_wins())
    running = install(folder, tiny_release(1, RIGHT))
    (Installer(folder / "releases").content_path(FAMILY, running.content) / "bundle").write_bytes(b"")
    assert judge(folder, tiny_release(2, WRONG), running, NumpyEngine()) == update.Passed()


def test_a_device_installs_its_own_personal_parameters(folder: Path) -> None:
    fits = (
        Fit("standardize.mean", "mean", "x", (0, 2)),
        Fit("standardize.scale", "inverse-standard-deviation", "x", (0, 2)),
    )
    built = build_bundle(gesture_model(), name=FAMILY, loss="softmax-cross-entropy", fits=fits)
    layout = decode_bundle(built.data).description.layout
    shape = next(value.shape for value in decode_bundle(built.data).description.inputs)
    sizes = [dim if isinstance(dim, int) else 40 for dim in shape]
    x = np.random.default_rng(1).normal(3.0, 2.0, sizes).astype(np.float32)
    add_examples(folder, x, np.zeros(len(x), np.int64))
    manifest_of = gesture_release(built.data, built.tensors)
    running = install(folder, manifest_of)
    model = load_installed(Installer(folder / "releases"), running, NumpyEngine())
    own = x[np.arange(len(x)) % 2 == 0]  # What `add_examples` leaves to training.
    assert np.allclose(model.tensors["standardize.mean"].ravel(), own.mean(axis=(0, 2)), atol=1e-5)
    assert layout.size == sum(int(np.prod(spec.shape)) for spec in layout.parameters)


def gesture_release(bundle: bytes, tensors: dict[str, NDArray[np.float32]]) -> TinyRelease:
    """Return a release of another model under the same family."""
    from federated_core.learning.lattice import Keyframe
    from federated_core.learning.parameters import encode_checkpoint, flatten
    from federated_core.protocol.messages import Artifact

    layout = decode_bundle(bundle).description.layout
    vector = flatten(layout, tensors)
    keyframe = encode_keyframe(Keyframe(1, vector))
    base = tiny_release(1, RIGHT, bundle=bundle)
    checkpoint = reference(encode_checkpoint(layout, base.manifest.task, 1, vector))
    manifest = msgspec.structs.replace(base.manifest, checkpoint=checkpoint)
    fetch = (Artifact("bundle", reference(bundle)), Artifact("keyframe", reference(keyframe)))
    return TinyRelease(
        manifest, base.signed, fetch, {reference(bundle).digest: bundle, reference(keyframe).digest: keyframe}
    )
