"""Rows of releases, within one transaction."""

from collections.abc import Iterable

from sqlalchemy import func, select, update

from cloud_aggregator.adapters.database import Transaction
from cloud_aggregator.adapters.release_schema import DeviceReleaseRow, ReleaseRow, RunningReleaseRow
from cloud_aggregator.adapters.schema import DeviceRow
from cloud_aggregator.rollout import Stage, Tally

FAILED_STATES = ("failed", "refused", "timed-out")
OPEN_STATES = ("waiting", "offered")


class ReleaseRecords:
    """What is written down of releases, and of what devices do with them."""

    def __init__(self, tx: Transaction) -> None:
        self._session = tx.session
        self._now_s = tx.now_s

    # --- Releases

    def release(self, number: int) -> ReleaseRow | None:
        """Return a release by number."""
        return self._session.get(ReleaseRow, number)

    def get(self, number: int) -> ReleaseRow:
        """Return a release that exists."""
        return self._session.get_one(ReleaseRow, number)

    def releases(self, family: str | None = None) -> list[ReleaseRow]:
        """Return all releases, or those of a family, newest first."""
        wanted = select(ReleaseRow).order_by(ReleaseRow.number.desc())
        return list(self._session.scalars(wanted if family is None else wanted.where(ReleaseRow.family == family)))

    def in_phases(self, phases: Iterable[str], family: str | None = None) -> list[ReleaseRow]:
        """Return the releases in one of ``phases``, newest first."""
        wanted = select(ReleaseRow).where(ReleaseRow.phase.in_(tuple(phases))).order_by(ReleaseRow.number.desc())
        return list(self._session.scalars(wanted if family is None else wanted.where(ReleaseRow.family == family)))

    def families(self) -> set[str]:
        """Return the families of which something was released."""
        return set(self._session.scalars(select(ReleaseRow.family).distinct()))

    def highest_number(self) -> int:
        """Return the highest number that is taken, ways back included; 0 before the first."""
        highest = self._session.execute(select(func.max(ReleaseRow.number), func.max(ReleaseRow.way_back_number))).one()
        return max(highest[0] or 0, highest[1] or 0)

    def current(self, family: str) -> ReleaseRow | None:
        """Return the release that everyone is offered, None before the first."""
        rows = self.in_phases(("everyone", "completed"), family)
        return next((row for row in rows if row.restricted_to is None), None)

    def add(self, row: ReleaseRow) -> None:
        """Insert a release, so that what refers to it can follow."""
        self._session.add(row)
        self._session.flush()

    # --- Members

    def member(self, release: int, device: str) -> DeviceReleaseRow | None:
        """Return what a device did with a release, None if it is no member."""
        return self._session.get(DeviceReleaseRow, (release, device))

    def members(self, release: int, stage: Stage | None = None) -> list[DeviceReleaseRow]:
        """Return the members of a release, or of one stage, by name."""
        wanted = select(DeviceReleaseRow).where(DeviceReleaseRow.release == release).order_by(DeviceReleaseRow.device)
        return list(self._session.scalars(wanted if stage is None else wanted.where(DeviceReleaseRow.stage == stage)))

    def add_members(self, release: int, stage: Stage, devices: Iterable[str]) -> None:
        """Freeze devices as members of a stage; who is a member already keeps its place."""
        known = set(self._session.scalars(select(DeviceReleaseRow.device).where(DeviceReleaseRow.release == release)))
        self._session.add_all(
            DeviceReleaseRow(release=release, device=device, stage=stage, state="waiting")
            for device in devices
            if device not in known
        )
        self._session.flush()

    def tally(self, release: int, stage: Stage) -> Tally:
        """Count how far a stage is."""
        wanted = (
            select(DeviceReleaseRow.state, func.count())
            .where(DeviceReleaseRow.release == release, DeviceReleaseRow.stage == stage)
            .group_by(DeviceReleaseRow.state)
        )
        counts: dict[str, int] = {row[0]: row[1] for row in self._session.execute(wanted)}
        failed_count = sum(counts.get(state, 0) for state in FAILED_STATES)
        return Tally(sum(counts.values()), counts.get("committed", 0), failed_count)

    def time_out(self, release: int) -> None:
        """Note that the members that did not conclude have failed."""
        self._session.execute(
            update(DeviceReleaseRow)
            .where(DeviceReleaseRow.release == release, DeviceReleaseRow.state.in_(OPEN_STATES))
            .values(state="timed-out", concluded_at=self._now_s)
        )

    # --- Devices

    def devices(self) -> list[str]:
        """Return all enrolled devices by name."""
        return list(self._session.scalars(select(DeviceRow.name).order_by(DeviceRow.name)))

    def see(self, device: str) -> None:
        """Note that a device was heard of now."""
        self._session.get_one(DeviceRow, device).last_seen_at = self._now_s

    def running(self, release: int) -> list[str]:
        """Return the devices that say that they run a release."""
        wanted = select(RunningReleaseRow.device).where(RunningReleaseRow.number == release)
        return list(self._session.scalars(wanted.order_by(RunningReleaseRow.device)))

    def all_running(self) -> list[RunningReleaseRow]:
        """Return what every device says that it runs."""
        return list(self._session.scalars(select(RunningReleaseRow).order_by(RunningReleaseRow.device)))

    def note_running(self, device: str, family: str, number: int, checkpoint: bytes) -> None:
        """Keep what a device says that it runs."""
        self._session.merge(
            RunningReleaseRow(
                device=device, family=family, number=number, checkpoint=checkpoint, reported_at=self._now_s
            )
        )
