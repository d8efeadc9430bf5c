import hashlib
import io
import pickle  # noqa: TID251 - evil pickles are what these tests are about.
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federated_core.errors import AdapterError, UntrustedReleaseError
from scripts.fleet_demo.spar_recordings import (
    CACHE_NAME,
    CHANNELS,
    EXERCISES,
    MEMBER,
    Recording,
    download_wheel,
    load_recordings,
    read_pickled_array,
    read_wheel,
)


class Evil:
    """What its pickle asks for is called as soon as it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


def array_file(content: Any) -> bytes:
    """Return what ``numpy.save`` wrote in the days of the data set: a pickle of protocol 2 after a header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    pickle.dump(content, file, protocol=2)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def two_recordings() -> dict[str, Any]:
    samples = [np.full((3, 6), value, np.float64) for value in (0.5, -2.0)]
    return {
        "X": samples,
        "y": np.array([4, 6]),
        "subject": np.array([1, 10]),
        "side": np.array([0.0, 1.0]),
        "X_labels": list(CHANNELS),
        "y_labels": list(EXERCISES),
    }


def wheel_of(folder: Path, content: Any) -> Path:
    wheel = folder / "seglearn-1.2.5-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, array_file(content))
    return wheel


def digest_of(wheel: Path) -> str:
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_a_wheel_with_the_right_digest_gives_its_recordings(tmp_path: Path) -> None:
    wheel = wheel_of(tmp_path, np.array(two_recordings(), dtype=object))
    first, second = read_wheel(wheel, digest_of(wheel))
    assert (first.person, first.side, first.exercise, first.samples.tolist()) == (1, 0, 4, [[0.5] * 6] * 3)
    assert (second.person, second.side, second.exercise) == (10, 1, 6)
    assert second.samples.dtype == np.float32


def test_a_wheel_with_another_digest_is_not_even_opened(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    wheel = wheel_of(tmp_path, Evil(Path.touch, touched))
    with pytest.raises(UntrustedReleaseError, match=r"expected SHA-256 ec6b952c.*nothing was read"):
        read_wheel(wheel)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("evil", "name"),
    [
        (Evil(eval, "1 + 1"), "builtins.eval"),
        (Evil(__import__, "os"), "builtins.__import__"),
        (Evil(getattr, np.ndarray, "tofile"), "builtins.getattr"),
        (Evil(np.load, "x"), "numpy.load"),
    ],
)
def test_an_evil_pickle_is_refused_by_the_name_that_it_asks_for(evil: Evil, name: str) -> None:
    module, attribute = name.split(".")
    with pytest.raises(UntrustedReleaseError, match=rf"the pickle asks for (__builtin__|{module}).*\.{attribute};"):
        read_pickled_array(array_file(evil))


def test_an_evil_pickle_has_done_nothing_when_it_is_refused(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    with pytest.raises(UntrustedReleaseError):
        read_pickled_array(array_file([Evil(Path, "x"), Evil(Path.touch, touched)]))
    assert not touched.exists()


@pytest.mark.parametrize("size_bytes", [120, 200, 400])
def test_a_pickle_that_breaks_off_is_refused(size_bytes: int) -> None:
    data = array_file(np.array(two_recordings(), dtype=object))
    with pytest.raises(UntrustedReleaseError):
        read_pickled_array(data[:size_bytes])


def test_an_array_that_is_no_pickle_is_refused() -> None:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    with pytest.raises(UntrustedReleaseError, match=r"expected one pickled object, got float64 of shape \(3,\)"):
        read_pickled_array(file.getvalue())


def test_recordings_of_other_exercises_are_refused(tmp_path: Path) -> None:
    wheel = wheel_of(tmp_path, np.array({**two_recordings(), "y_labels": ["RUN"]}, dtype=object))
    with pytest.raises(UntrustedReleaseError, match=r"expected .*'PEN'.* got .*'RUN'"):
        read_wheel(wheel, digest_of(wheel))


def test_recordings_are_fetched_once_and_kept_without_a_pickle(tmp_path: Path) -> None:
    said: list[str] = []
    recordings = (Recording(1, 0, 4, np.ones((3, 6), np.float32)), Recording(10, 1, 6, np.zeros((2, 6), np.float32)))
    first = load_recordings(tmp_path / "cache", said.append, lambda _: recordings)
    again = load_recordings(tmp_path / "cache", said.append, lambda _: ())
    assert len(said) == 1
    for kept in (first, again):
        assert [recording[:3] for recording in kept] == [(1, 0, 4), (10, 1, 6)]
        assert [len(recording.samples) for recording in kept] == [3, 2]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [CACHE_NAME]


@pytest.mark.process
def test_a_requirement_that_pip_cannot_find_says_what_pip_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(AdapterError, match=r"pip cannot download no-such-thing==0: .*no-such-thing"):
        download_wheel(tmp_path, "no-such-thing==0")
