"""Files that are whole or absent: temporary file, fsync, rename, fsync of the folder."""

import contextlib
import os
import secrets
from pathlib import Path

from federated_core.errors import AdapterError

TEMPORARY_SUFFIX = ".tmp"


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600, group_id: int = -1) -> None:
    """Put ``data`` at ``path`` so that a crash at any instant leaves the old content or the new, never a mixture."""
    temporary = temporary_beside(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "wb") as file:  # noqa: PTH123  The descriptor carries the mode from the first instant.
            if group_id >= 0:
                os.fchown(descriptor, -1, group_id)
            os.fchmod(descriptor, mode)  # The umask may have taken bits that the caller asked for.
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise AdapterError(f"cannot write {path}: {error.strerror or error}") from error


def temporary_beside(path: Path) -> Path:
    """Name a file in the folder of ``path`` that nobody else uses and a sweep recognizes."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable: a rename is only on disk once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
