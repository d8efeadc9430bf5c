"""Content-addressed files: a blob's name is the SHA-256 of its bytes, and what is read is checked against it.

One process owns a store's folder (it sweeps leftovers when it opens it); another may read by `BlobStore.path`.
Downloads that are under way lie beside the blobs as `PartialBlob` and survive a restart.
"""

import contextlib
import hashlib
import os
import re
from pathlib import Path

from federated_core.adapters.atomic_file import TEMPORARY_SUFFIX, sync_folder, write_atomically
from federated_core.adapters.partial_blob import BITMAP_SUFFIX, CONTENT_SUFFIX, PartialBlob, chunk_count_of
from federated_core.errors import AdapterError, LocalMisuseError, RemoteProtocolError

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MEGABYTE = 1_000_000


class BlobStore:
    """A folder of blobs and of downloads under way, each at most ``size_max_bytes``."""

    def __init__(
        self,
        root: Path,
        *,
        size_max_bytes: int = 64 * _MEGABYTE,
        open_max: int = 4,
        reserve_bytes: int = 16 * _MEGABYTE,
    ) -> None:
        """Open the store at ``root``, where ``reserve_bytes`` of the disk always stay free for others."""
        self._blobs = root / "blobs"
        self._partials = root / "partials"
        self._size_max_bytes = size_max_bytes
        self._open_max = open_max
        self._reserve_bytes = reserve_bytes
        try:
            self._blobs.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._partials.mkdir(exist_ok=True, mode=0o700)
            self._sweep()
        except OSError as error:
            raise AdapterError(f"cannot open the blob store at {root}: {error.strerror or error}") from error

    def put(self, data: bytes) -> str:
        """Store ``data`` durably and return its digest; what is there already and whole is left alone."""
        self._refuse_beyond_quota(len(data))
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        if not (path.exists() and path.read_bytes() == data):
            self._refuse_without_room(len(data))
            write_atomically(path, data)
        return digest

    def get(self, digest: str) -> bytes:
        """Read a blob; one that rotted is removed, so that it can be fetched again, and is an `AdapterError`."""
        path = self.path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise AdapterError(f"no blob {digest}") from error
        except OSError as error:
            raise AdapterError(f"cannot read blob {digest}: {error.strerror or error}") from error
        if (found := hashlib.sha256(data).hexdigest()) != digest:
            self.delete(digest)
            raise AdapterError(f"blob {digest} is corrupted: its content has digest {found}; it was removed")
        return data

    def path(self, digest: str) -> Path:
        """Say where a blob is or would be."""
        if not _DIGEST.fullmatch(digest):
            raise LocalMisuseError(f"digest: expected 64 lower-case hexadecimal digits, got {digest!r}")
        return self._blobs / digest

    def has(self, digest: str) -> bool:
        """Say whether there is a file for ``digest``; only `get` proves its content."""
        return self.path(digest).exists()

    def delete(self, digest: str) -> None:
        """Remove a blob, if it is there."""
        self.path(digest).unlink(missing_ok=True)

    def digests(self) -> tuple[str, ...]:
        """List the blobs, sorted."""
        return tuple(sorted(entry.name for entry in self._blobs.iterdir() if _DIGEST.fullmatch(entry.name)))

    def open_partial(self, digest: str, size_bytes: int, chunk_bytes: int) -> PartialBlob:
        """Begin a download, or resume one of the same digest, size and chunk size; another size begins anew."""
        self.path(digest)
        if size_bytes < 0 or chunk_bytes < 1:
            raise RemoteProtocolError(f"blob {digest}: expected a size and chunks, got {size_bytes} and {chunk_bytes}")
        self._refuse_beyond_quota(size_bytes)
        content = self._partials / f"{digest}{CONTENT_SUFFIX}"
        bitmap = self._partials / f"{digest}{BITMAP_SUFFIX}"
        if content.exists() and bitmap.exists():
            with contextlib.suppress(AdapterError):  # Of another size, or torn.
                return PartialBlob.resume(content, bitmap, digest, size_bytes, chunk_bytes, self.path(digest))
            self.drop_partial(digest)
        if len(opened := self.partial_digests()) >= self._open_max:
            raise AdapterError(
                f"no place for blob {digest}: {len(opened)} downloads are open, at most {self._open_max}"
            )
        self._refuse_without_room(size_bytes + chunk_count_of(size_bytes, chunk_bytes) // 8)
        return PartialBlob.begin(content, bitmap, digest, size_bytes, chunk_bytes, self.path(digest))

    def partial_digests(self) -> tuple[str, ...]:
        """List the downloads under way, sorted."""
        return tuple(sorted(entry.stem for entry in self._partials.iterdir() if entry.suffix == CONTENT_SUFFIX))

    def drop_partial(self, digest: str) -> None:
        """Give up a download, if it is there."""
        self.path(digest)
        for suffix in (CONTENT_SUFFIX, BITMAP_SUFFIX):
            (self._partials / f"{digest}{suffix}").unlink(missing_ok=True)

    def _refuse_beyond_quota(self, size_bytes: int) -> None:
        if size_bytes > self._size_max_bytes:
            raise AdapterError(f"a blob may have {self._size_max_bytes} bytes, this one has {size_bytes}")

    def _refuse_without_room(self, size_bytes: int) -> None:
        status = os.statvfs(self._blobs)
        free_bytes = max(0, status.f_bavail * status.f_frsize - self._reserve_bytes)
        if size_bytes > free_bytes:
            raise AdapterError(
                f"no room: needs {size_bytes / _MEGABYTE:.1f} MB, has {free_bytes / _MEGABYTE:.1f} MB "
                f"({self._reserve_bytes / _MEGABYTE:.1f} MB stay free)"
            )

    def _sweep(self) -> None:
        """Remove what a crash left: temporaries, and halves of a download."""
        for folder in (self._blobs, self._partials):
            for entry in folder.iterdir():
                other_suffix = {CONTENT_SUFFIX: BITMAP_SUFFIX, BITMAP_SUFFIX: CONTENT_SUFFIX}.get(entry.suffix)
                is_half = other_suffix is not None and not entry.with_suffix(other_suffix).exists()
                if entry.suffix == TEMPORARY_SUFFIX or is_half:
                    entry.unlink()
        sync_folder(self._blobs)
        sync_folder(self._partials)
