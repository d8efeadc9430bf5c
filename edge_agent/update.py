"""MACHINE: one model family on one device, from an offered release to a conclusion about it.

::

    Idle --Offered--> Downloading --Fetched--> Installing --Installed--> Trying --Passed--> Committing
     ^                     |                     | |  ^ Restarted,       |  |  ^ Restarted,    |  | CommitFailed
     |                     |                     | '--'  ChildDied       |  '--'  ChildDied    |  |
     |--FetchFailed--------'--BaseMoved----------'                       |                     |  |
     |                                           '--Unfit, Overdue,------|                     |  |
     |--Discarded-- RollingBack <-------------------too many attempts----'---------------------|--'
     '--Committed------------------------------------------------------------------------------'

What runs is touched in `Committing` alone, by one rename. An attempt is in the journal before its process starts, and a
restart uses one up, so that a release that takes the whole device down is given up too. What was concluded is the
floor: neither its number nor a lower one is ever tried again.
"""

import msgspec

from federated_core.protocol.messages import (
    Artifact,
    ReleaseConclusion,
    ReleaseOutcome,
    ReleaseReason,
    SignedManifest,
)
from federated_core.release.manifest import ReleaseManifest

ATTEMPTS_MAX = 3  # Of the installation, and again of the trial.


class Candidate(msgspec.Struct, frozen=True):
    """An accepted release that nothing runs yet, and what to fetch for it."""

    manifest: ReleaseManifest
    signed: SignedManifest
    fetch: tuple[Artifact, ...]


# --- States


class Idle(msgspec.Struct, frozen=True, tag=True):
    """Nothing under way."""

    concluded: ReleaseConclusion | None = None


class Downloading(msgspec.Struct, frozen=True, tag=True):
    """Fetching what the candidate is made of."""

    candidate: Candidate
    concluded: ReleaseConclusion | None


class Installing(msgspec.Struct, frozen=True, tag=True):
    """The trial process proves the candidate's bytes and puts them beside what runs."""

    candidate: Candidate
    concluded: ReleaseConclusion | None
    attempt: int


class Trying(msgspec.Struct, frozen=True, tag=True):
    """The trial process loads the candidate and judges it on the device's own examples."""

    candidate: Candidate
    concluded: ReleaseConclusion | None
    attempt: int


class Committing(msgspec.Struct, frozen=True, tag=True):
    """The candidate passed; it becomes what runs."""

    candidate: Candidate
    concluded: ReleaseConclusion | None


class RollingBack(msgspec.Struct, frozen=True, tag=True):
    """The candidate is not used; what is left of it is removed."""

    candidate: Candidate
    reason: ReleaseReason
    detail: str


UpdateState = Idle | Downloading | Installing | Trying | Committing | RollingBack
STATES: msgspec.msgpack.Decoder[UpdateState] = msgspec.msgpack.Decoder(UpdateState)


# --- Events


class Restarted(msgspec.Struct, frozen=True):
    """The process began; the state is the journaled one."""


class LinkRestored(msgspec.Struct, frozen=True):
    """The broker is reachable again."""


class Offered(msgspec.Struct, frozen=True):
    """A release was offered, and the acceptance rules let it pass."""

    candidate: Candidate


class Fetched(msgspec.Struct, frozen=True):
    """Everything is on disk, each blob with the digest of the fetch plan."""


class FetchFailed(msgspec.Struct, frozen=True):
    """Something cannot be had now."""


class Installed(msgspec.Struct, frozen=True, tag=True):
    """The candidate's bytes are those of its manifest and lie durably beside what runs."""


class BaseMoved(msgspec.Struct, frozen=True, tag=True):
    """Training went on meanwhile: what was fetched does not fit what is held any more."""


class Passed(msgspec.Struct, frozen=True, tag=True):
    """The trial found nothing against the candidate."""


class Unfit(msgspec.Struct, frozen=True, tag=True):
    """Installation or trial found the candidate wanting."""

    reason: ReleaseReason
    detail: str


class ChildDied(msgspec.Struct, frozen=True):
    """The trial process ended without an answer."""


class Overdue(msgspec.Struct, frozen=True):
    """The trial process did not answer in time."""


class Committed(msgspec.Struct, frozen=True):
    """The candidate is what runs."""


class CommitFailed(msgspec.Struct, frozen=True):
    """What ran before runs on: the new pointer could not be written."""

    detail: str


class Discarded(msgspec.Struct, frozen=True):
    """What could be removed of the candidate is removed."""


UpdateEvent = (
    Restarted
    | LinkRestored
    | Offered
    | Fetched
    | FetchFailed
    | Installed
    | BaseMoved
    | Passed
    | Unfit
    | ChildDied
    | Overdue
    | Committed
    | CommitFailed
    | Discarded
)


# --- Actions


class Fetch(msgspec.Struct, frozen=True):
    """Fetch what is missing; give `Fetched` or `FetchFailed`."""

    candidate: Candidate


class StopFetching(msgspec.Struct, frozen=True):
    """Expect nothing any more."""


class Install(msgspec.Struct, frozen=True):
    """Have the trial process put its bytes in place; give `Installed`, `BaseMoved` or what `Try` gives."""

    candidate: Candidate


class Try(msgspec.Struct, frozen=True):
    """Have the trial process judge it; give `Passed`, `Unfit`, `ChildDied` or `Overdue`."""

    candidate: Candidate


class StopTrial(msgspec.Struct, frozen=True):
    """End the trial process."""


class Commit(msgspec.Struct, frozen=True):
    """Make the candidate what runs; give `Committed` or `CommitFailed`. Again is no harm."""

    candidate: Candidate


class Discard(msgspec.Struct, frozen=True):
    """Remove all that neither runs nor ran before; give `Discarded`."""


class Report(msgspec.Struct, frozen=True):
    """Say what runs, until it is acknowledged."""


class AskLater(msgspec.Struct, frozen=True):
    """Say what runs after a while that grows: the answer will be a fresh offer."""


UpdateAction = Fetch | StopFetching | Install | Try | StopTrial | Commit | Discard | Report | AskLater
Transition = tuple[UpdateState, tuple[UpdateAction, ...]]


def floor_of(state: UpdateState) -> int:
    """The highest number that this family concluded: an offer must be above it."""
    match state:
        case RollingBack(candidate):
            return candidate.manifest.number
        case _:
            return state.concluded.number if state.concluded is not None else 0


def step(state: UpdateState, event: UpdateEvent) -> Transition:
    """Advance ``state`` by one ``event``; an event out of season changes nothing."""
    match state, event:
        case Idle(concluded), Offered(candidate) if candidate.manifest.number > floor_of(state):
            return Downloading(candidate, concluded), (Fetch(candidate),)
        case Downloading(old, concluded), Offered(candidate) if candidate.manifest.number >= old.manifest.number:
            return Downloading(candidate, concluded), (StopFetching(), Fetch(candidate))
        case Downloading(candidate), Restarted() | LinkRestored():
            return state, (Fetch(candidate),)  # Whatever is on disk already is not fetched again.
        case Downloading(candidate, concluded), Fetched():
            return Installing(candidate, concluded, 1), (Install(candidate),)
        case Downloading(_, concluded), FetchFailed():
            return Idle(concluded), (StopFetching(), AskLater())

        case Installing(candidate, concluded), Installed():
            return Trying(candidate, concluded, 1), (Try(candidate),)
        case Installing(_, concluded), BaseMoved():
            return Idle(concluded), (StopTrial(), AskLater())
        case Installing(candidate, concluded, attempt), Restarted() | ChildDied():
            if attempt >= ATTEMPTS_MAX:
                return _roll_back(candidate, "crashed", f"{attempt} attempts to install it ended without an answer")
            return Installing(candidate, concluded, attempt + 1), (Install(candidate),)

        case Trying(candidate, concluded), Passed():
            return Committing(candidate, concluded), (StopTrial(), Commit(candidate))
        case Trying(candidate, concluded, attempt), Restarted() | ChildDied():
            if attempt >= ATTEMPTS_MAX:
                return _roll_back(candidate, "crashed", f"{attempt} trials ended without an answer")
            return Trying(candidate, concluded, attempt + 1), (Try(candidate),)

        case Installing(candidate) | Trying(candidate), Unfit(reason, detail):
            return _roll_back(candidate, reason, detail)
        case Installing(candidate) | Trying(candidate), Overdue():
            return _roll_back(candidate, "timed-out", f"no answer while {type(state).__name__.lower()}")

        case Committing(candidate), Restarted():
            return state, (Commit(candidate),)
        case Committing(candidate), Committed():
            return _conclude(candidate, "committed"), (Discard(), Report())
        case Committing(candidate), CommitFailed(detail):
            return _roll_back(candidate, "no-room", detail)

        case RollingBack(), Restarted():
            return state, (Discard(),)
        case RollingBack(candidate, reason, detail), Discarded():
            return _conclude(candidate, "failed", reason, detail), (Report(),)
        case _:
            return state, ()


def _roll_back(candidate: Candidate, reason: ReleaseReason, detail: str) -> Transition:
    return RollingBack(candidate, reason, detail), (StopTrial(), Discard())


def _conclude(
    candidate: Candidate, outcome: ReleaseOutcome, reason: ReleaseReason | None = None, detail: str = ""
) -> Idle:
    return Idle(ReleaseConclusion(candidate.manifest.number, outcome, reason, detail[:120]))
