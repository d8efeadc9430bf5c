"""Crashes at any call of an adapter, and disks that keep what a crash leaves of them."""

from collections.abc import Callable
from pathlib import Path

from edge_agent.adapters.journal import Journal
from federated_core.adapters.blob_store import BlobStore
from federated_core.adapters.partial_blob import CONTENT_SUFFIX
from federated_core.errors import AdapterError
from federated_core.protocol import wire
from tests.simulation.clockwork import Dice


class PowerLost(BaseException):
    """The process ends here and now; no handler of ours may catch it."""


class Peril:
    """Counts the calls of one process's adapters, and ends it at one of them."""

    def __init__(self) -> None:
        self.calls_left: int | None = None
        self.last_call = ""
        self.is_disk_full = False

    def touch(self, call: str) -> None:
        """Pass a point at which the process can die."""
        if self.calls_left is None:
            return
        self.calls_left -= 1
        if self.calls_left <= 0:
            self.calls_left = None
            self.last_call = call
            raise PowerLost(call)

    def need_room(self, call: str) -> None:
        """Refuse what a full disk refuses."""
        if self.is_disk_full:
            raise AdapterError(f"{call}: no space left on device")


class PerilousJournal(Journal):
    """The real journal on a disk that may be full or torn."""

    def __init__(self, path: Path, peril: Peril, saved: Callable[[str, object], None]) -> None:
        super().__init__(path)
        self._peril = peril
        self._saved = saved
        self._path = path

    def save(self, key: str, value: object) -> None:
        self._peril.touch("journal.save")
        self._peril.need_room("journal.save")
        super().save(key, value)
        self._saved(key, value)
        self._peril.touch("journal.saved")

    def count(self, name: str, by: int) -> None:
        self._peril.touch("journal.count")
        self._peril.need_room("journal.count")
        super().count(name, by)

    def forget(self, key: str) -> None:
        self._peril.touch("journal.forget")
        self._peril.need_room("journal.forget")
        super().forget(key)

    def tear(self, dice: Dice, *, is_torn: bool) -> None:
        """Leave on disk what a power cut leaves: all that was saved, and perhaps half of a write after it."""
        wal = self._path.with_name(self._path.name + "-wal")
        kept = {path: path.read_bytes() for path in (self._path, wal) if path.exists()}
        self.close()
        for path, data in kept.items():
            path.write_bytes(data)
        if is_torn and wal in kept:
            with wal.open("ab") as file:
                file.write(dice.token_bytes(1 + dice.below(5000)))  # A frame that was never finished.


class PerilousBlobStore(BlobStore):
    """The real blob store on a disk that may be full or torn."""

    def __init__(self, root: Path, peril: Peril, *, open_max: int) -> None:
        super().__init__(root, open_max=open_max, reserve_bytes=0)
        self._peril = peril

    def put(self, data: bytes) -> str:
        self._peril.touch("blobs.put")
        digest = super().put(data)
        self._peril.touch("blobs.was put")
        return digest

    def delete(self, digest: str) -> None:
        self._peril.touch("blobs.delete")
        super().delete(digest)

    def _refuse_without_room(self, size_bytes: int) -> None:
        self._peril.need_room("blobs")


def tear_partials(root: Path, dice: Dice) -> int:
    """Lose of every download what was not synced: chunks that its bitmap does not claim; return how many were lost."""
    lost_count = 0
    for content in (root / "partials").glob(f"*{CONTENT_SUFFIX}"):
        bitmap = content.with_suffix(".bitmap")
        claimed = bitmap.read_bytes()[16:] if bitmap.exists() else b""
        with content.open("r+b") as file:
            for index in range(wire.chunk_count(content.stat().st_size)):
                is_claimed = index // 8 < len(claimed) and claimed[index // 8] >> index % 8 & 1
                if not is_claimed and dice.happens(0.7):
                    start = index * wire.CHUNK_BYTES
                    file.seek(start)
                    file.write(bytes(min(wire.CHUNK_BYTES, content.stat().st_size - start)))
                    lost_count += 1
    return lost_count
