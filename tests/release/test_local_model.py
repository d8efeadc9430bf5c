"""What applications see: one model at a time, whatever is swapped beneath them."""

import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_agent import LocalModel
from edge_agent.adapters.installer import InstalledRelease, Installer, Pointer, describe
from edge_agent.installed_model import encode_personal
from federated_core.errors import LocalMisuseError
from federated_core.learning.parameters import encode_checkpoint
from tests.release.tiny_releases import FAMILY, TASK, tiny_release
from tests.simulation.tiny_model import tiny_build, tiny_bundle

X = np.array([[1, 2], [3, 5], [8, 13]], np.float32)


def scores(number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """What release ``number`` answers: no two releases agree in any element."""
    return np.float32(number) * X + np.float32(number)


def install(folder: Path, number: int) -> InstalledRelease:
    """Install and commit a release whose weight is its number times the identity, and whose bias is its number."""
    vector = np.array([number, 0, 0, number, number, number], np.float32)
    manifest = tiny_release(number, vector).manifest
    installer = Installer(folder / "releases")
    files = {
        "bundle": tiny_build().data,
        "checkpoint": encode_checkpoint(tiny_bundle().description.layout, TASK, number, vector),
        "personal": encode_personal({}),
    }
    installer.put(FAMILY, describe(manifest).content, files)
    return installer.commit(describe(manifest)).release


def test_predictions_during_swaps_never_fail_and_never_mix_versions(folder: Path) -> None:
    install(folder, 1)
    model = LocalModel(folder)
    stop = threading.Event()
    troubles: list[str] = []
    seen: list[set[int]] = []

    def hammer() -> None:
        newest, numbers = 0, set[int]()
        try:
            while not stop.is_set():
                prediction = model.predict_in_full(X)
                number = prediction.release.number
                if not np.array_equal(prediction.outputs["scores"], scores(number)):
                    troubles.append(f"release {number} answered {prediction.outputs['scores'].tolist()}")
                if number < newest:
                    troubles.append(f"release {number} after {newest}")
                newest = number
                numbers.add(number)
        except Exception as error:  # noqa: BLE001 - whatever it is, an application would have seen it.
            troubles.append(repr(error))
        seen.append(numbers)

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    installer = Installer(folder / "releases")
    for number in range(2, 60):
        install(folder, number)
        installer.sweep(FAMILY)
    stop.set()
    for thread in threads:
        thread.join(30.0)
    assert troubles == []
    assert model.predict_in_full(X).release.number == 59
    assert len(set.union(*seen)) > 5, "the threads saw too few swaps to prove anything"


def test_a_call_after_a_swap_is_answered_by_the_new_release(folder: Path) -> None:
    install(folder, 1)
    model = LocalModel(folder)
    assert np.array_equal(model.predict(X), scores(1))
    install(folder, 2)
    assert np.array_equal(model.predict(X), scores(2))
    assert model.release.number == 2
    assert model.classes == ("left", "right")


def test_one_example_is_answered_without_the_batch_dimension(folder: Path) -> None:
    install(folder, 3)
    assert np.array_equal(LocalModel(folder).predict(X[1]), scores(3)[1])
    assert np.array_equal(LocalModel(folder).predict({"x": X}), scores(3))


def test_a_release_that_cannot_be_loaded_leaves_the_one_before_to_answer(folder: Path) -> None:
    install(folder, 1)
    model = LocalModel(folder)
    release = install(folder, 2)
    checkpoint = Installer(folder / "releases").content_path(FAMILY, release.content) / "checkpoint"
    checkpoint.write_bytes(b"rot")
    assert np.array_equal(model.predict(X), scores(1))
    install(folder, 3)
    assert np.array_equal(model.predict(X), scores(3))


def test_a_pointer_that_is_gone_leaves_the_release_to_answer(folder: Path) -> None:
    install(folder, 1)
    model = LocalModel(folder)
    Installer(folder / "releases").pointer_path(FAMILY).unlink()
    assert np.array_equal(model.predict(X), scores(1))


def test_a_family_that_is_not_installed_is_told_apart_from_none_at_all(folder: Path) -> None:
    with pytest.raises(LocalMisuseError, match="installed are none"):
        LocalModel(folder)
    install(folder, 1)
    with pytest.raises(LocalMisuseError, match="no release of 'speech' is installed yet"):
        LocalModel(folder, "speech")


def test_a_pointer_reads_as_it_was_written(folder: Path) -> None:
    first, second = install(folder, 1), install(folder, 2)
    pointer = Installer(folder / "releases").read_pointer(FAMILY)
    assert pointer == Pointer(second, first)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(pointer), type=Pointer) == pointer
