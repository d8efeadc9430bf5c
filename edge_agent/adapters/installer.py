"""What is installed: contents beside each other, named by what they hold, and one small pointer a family.

::

    releases/<family>/current                 what runs and what ran before, replaced by rename
    releases/<family>/content/<hash>/         bundle, checkpoint, personal: whole or absent
    releases/<family>/scratch/                of an installation under way

`put` and `commit` are durable when they return. What is read is checked against the digests in the pointer.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from federated_core.adapters.atomic_file import TEMPORARY_SUFFIX, sync_folder, temporary_beside, write_atomically
from federated_core.errors import AdapterError
from federated_core.protocol.messages import Digest, Identifier
from federated_core.release.manifest import ReleaseManifest

POINTER_NAME = "current"
FILES = ("bundle", "checkpoint", "personal")
_FOLDER_MODE = 0o700  # Personal parameters tell of their owner: an application runs as the agent's user.


class InstalledRelease(msgspec.Struct, frozen=True):
    """A release as it is installed: whose bytes, and under which number they run."""

    family: Identifier
    number: int
    task: Identifier
    version: int
    bundle: Digest
    checkpoint: Digest

    @property
    def content(self) -> str:
        """Name of the folder that holds its bytes."""
        return content_name(self.bundle, self.checkpoint)


class Pointer(msgspec.Struct, frozen=True):
    """What runs, and what ran before it."""

    release: InstalledRelease
    previous: InstalledRelease | None = None


POINTERS = msgspec.msgpack.Decoder(Pointer)


def content_name(bundle: bytes, checkpoint: bytes) -> str:
    """Name of the content that a bundle and a checkpoint make together."""
    return hashlib.sha256(b"fallow/v1 content\0" + bundle + checkpoint).hexdigest()


class Installer:
    """The installed releases below one folder; one process writes, any number read."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def families(self) -> tuple[str, ...]:
        """List the families of which something is installed, sorted."""
        return tuple(sorted(path.parent.name for path in self._root.glob(f"*/{POINTER_NAME}")))

    def read_pointer(self, family: str) -> Pointer | None:
        """Return what runs; None if nothing does. AdapterError if it cannot be read."""
        path = self.pointer_path(family)
        try:
            return POINTERS.decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise AdapterError(f"{path}: cannot be read ({error})") from error

    def pointer_path(self, family: str) -> Path:
        """Say where the pointer of ``family`` is or would be."""
        return self._root / family / POINTER_NAME

    def content_path(self, family: str, content: str) -> Path:
        """Say where a content is or would be."""
        return self._root / family / "content" / content

    def scratch_path(self, family: str) -> Path:
        """Return a folder for an installation under way, which a sweep removes."""
        path = self._root / family / "scratch"
        path.mkdir(parents=True, exist_ok=True, mode=_FOLDER_MODE)
        return path

    def put(self, family: str, content: str, files: Mapping[str, bytes]) -> None:
        """Lay a content beside the others, whole or not at all; one of the same name is replaced."""
        path = self.content_path(family, content)
        temporary = temporary_beside(path)
        try:
            temporary.mkdir(parents=True, mode=_FOLDER_MODE)
            for name in FILES:
                data = files[name]
                own_digest = hashlib.sha256(data).digest() if name == "personal" else b""
                write_atomically(temporary / name, own_digest + data)
            if path.exists():
                path.rename(temporary_beside(path))  # Damaged, or it would not be put again; a sweep removes it.
            temporary.rename(path)
            sync_folder(path.parent)
            sync_folder(path.parent.parent)
            sync_folder(self._root)
        except OSError as error:
            raise AdapterError(f"cannot install {path}: {error.strerror or error}") from error

    def read(self, release: InstalledRelease) -> dict[str, bytes]:
        """Return the files of a release; AdapterError if one is missing or not what it was."""
        folder = self.content_path(release.family, release.content)
        files: dict[str, bytes] = {}
        for name in FILES:
            try:
                files[name] = (folder / name).read_bytes()
            except OSError as error:
                raise AdapterError(f"{folder / name}: cannot be read ({error.strerror or error})") from error
        own_digest, files["personal"] = files["personal"][:32], files["personal"][32:]
        expected = {"bundle": release.bundle, "checkpoint": release.checkpoint, "personal": own_digest}
        for name, digest in expected.items():
            if hashlib.sha256(files[name]).digest() != digest:
                raise AdapterError(f"{folder / name}: is not what was installed")
        return files

    def holds(self, release: InstalledRelease) -> bool:
        """Say whether the content of ``release`` lies here whole."""
        try:
            self.read(release)
        except AdapterError:
            return False
        return True

    def commit(self, release: InstalledRelease) -> Pointer:
        """Make ``release`` what runs, and what ran its predecessor. Again changes nothing."""
        with contextlib.suppress(AdapterError):
            pointer = self.read_pointer(release.family)
            if pointer is not None and pointer.release == release:
                return pointer
            return self.write_pointer(Pointer(release, None if pointer is None else pointer.release))
        return self.write_pointer(Pointer(release))  # The old pointer rotted: there is nothing to go back to.

    def write_pointer(self, pointer: Pointer) -> Pointer:
        """Replace the pointer, durably."""
        write_atomically(self.pointer_path(pointer.release.family), msgspec.msgpack.encode(pointer))
        return pointer

    def sweep(self, family: str, keep: Iterable[str] = ()) -> None:
        """Remove temporaries, scratch and every content but ``keep`` and those that the pointer names."""
        needed = set(keep)
        pointer = self.read_pointer(family)  # If it cannot be read, nothing is removed.
        if pointer is not None:
            needed |= {one.content for one in (pointer.release, pointer.previous) if one is not None}
        folder = self._root / family
        for leftover in (*folder.glob(f"*{TEMPORARY_SUFFIX}"), folder / "scratch"):
            _remove(leftover)
        for path in (folder / "content").glob("*"):
            if path.name not in needed:
                _remove(path)


def describe(manifest: ReleaseManifest) -> InstalledRelease:
    """Return how ``manifest`` is remembered once it is installed."""
    return InstalledRelease(
        manifest.family,
        manifest.number,
        manifest.task,
        manifest.version,
        manifest.bundle.digest,
        manifest.checkpoint.digest,
    )


def _remove(path: Path) -> None:
    """Remove a file or a folder; what cannot be removed now is removed by a later sweep."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
