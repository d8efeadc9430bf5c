"""A disk that fails on demand: it kills the process at its n-th operation, loses what was not synced, or is full.

What survives a power cut here is the least that a file system may keep: of a file the bytes of its last fsync, of a
folder the names that it had at its own last fsync. A process that is killed loses nothing that it wrote.
"""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.adapters.journal import Journal
from federated_core.errors import AdapterError


class Killed(BaseException):
    """The process is no more; nothing may catch this."""


class FaultyDisk:
    """Patches the calls that make things durable, below one folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self.operation_count = 0
        self.kill_at: int | None = None
        self.is_full = False
        self.note: Callable[[], None] = lambda: None  # Hears of each operation, before it happens.
        self._data: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._kept: list[int] = []  # Descriptors, so that no inode number is used twice.
        self._fsync = os.fsync
        for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir"):
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))
        self._remember(folder)

    def operate(self) -> None:
        """Count one operation; this may be the one at which the process dies."""
        self.note()
        self.operation_count += 1
        if self.kill_at is not None and self.operation_count >= self.kill_at:
            raise Killed

    def cut_power(self, rebuilt: Path) -> None:
        """Write to ``rebuilt`` what is left; databases look after themselves and are copied as they are."""
        self.kill_at = None
        self._rebuild(self._folder.stat().st_ino, rebuilt)
        for database in self._folder.glob("*.db*"):
            (rebuilt / database.name).write_bytes(database.read_bytes())

    def close(self) -> None:
        """Let go of the descriptors."""
        for descriptor in self._kept:
            os.close(descriptor)

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            if name == "fsync":
                return self._sync(arguments[0])
            self.operate()
            if self.is_full and name == "mkdir":
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(*arguments, **options)

        return watched

    def _sync(self, descriptor: int) -> None:
        self.operate()
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if self.is_full and not is_folder:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._keep(os.fstat(descriptor).st_ino, Path(f"/proc/self/fd/{descriptor}").resolve())
        self.operate()  # And after it.

    def _remember(self, path: Path) -> None:
        """Take what is there now as durable."""
        self._keep(path.stat().st_ino, path)
        if path.is_dir():
            for entry in path.iterdir():
                self._remember(entry)

    def _keep(self, inode: int, path: Path) -> None:
        if path.is_dir():
            self._names[inode] = {entry.name: entry.lstat().st_ino for entry in path.iterdir()}
            self._kept.append(os.open(path, os.O_RDONLY))
            for entry in path.iterdir():
                if entry.is_file():
                    self._kept.append(os.open(entry, os.O_RDONLY))
        elif path.is_file():
            self._data[inode] = path.read_bytes()
            self._kept.append(os.open(path, os.O_RDONLY))

    def _rebuild(self, inode: int, path: Path) -> None:
        if inode in self._names:
            path.mkdir(exist_ok=True)
            for name, child in self._names[inode].items():
                self._rebuild(child, path / name)
        elif inode in self._data:
            path.write_bytes(self._data[inode])
        else:
            path.touch()  # A name whose content never reached the disk; a folder may come back as nothing at all.


class FaultyJournal(Journal):
    """The real journal on such a disk."""

    def __init__(self, path: Path, disk: FaultyDisk) -> None:
        super().__init__(path)
        self._disk = disk

    def save(self, key: str, value: object) -> None:
        """Save, or find the disk full, or die before or after it."""
        self._disk.operate()
        if self._disk.is_full:
            raise AdapterError(f"journal: cannot save {key!r}: database or disk is full")
        super().save(key, value)
        self._disk.operate()
