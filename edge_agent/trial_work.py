"""What the daemon and its trial process say to each other about a candidate release: files down, an event back up."""

import msgspec

from edge_agent import update
from edge_agent.adapters.installer import InstalledRelease
from federated_core.release.manifest import ReleaseManifest


class InstallWork(msgspec.Struct, frozen=True, tag="install"):
    """Assemble a candidate from what was fetched and held, prove it, and lay it beside what runs."""

    work_id: int
    manifest: ReleaseManifest
    bundle_path: str
    held_folder: str  # Of the task: what training holds of its model; only read.
    fetched: tuple[tuple[str, str], ...]  # (kind, path), in the order in which they apply.
    releases_folder: str
    store_path: str


class TrialWork(msgspec.Struct, frozen=True, tag="trial"):
    """Load an installed candidate and judge it against what runs."""

    work_id: int
    manifest: ReleaseManifest
    running: InstalledRelease | None
    releases_folder: str
    store_path: str


Work = InstallWork | TrialWork
Answer = update.Installed | update.BaseMoved | update.Passed | update.Unfit


class TrialOutcome(msgspec.Struct, frozen=True):
    """The event that a piece of work ended in."""

    work_id: int
    event: Answer
