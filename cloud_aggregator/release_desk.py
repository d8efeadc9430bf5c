"""Releases at work: what the rollout machine's actions mean in messages and rows, and what each device is offered.

Whoever says what it runs is answered with the newest release that is meant for it; announcements only make devices say
so. What a device did with a release counts once: its row and the machine's state are written in one transaction.
"""

import logging
from collections.abc import Callable
from typing import TypeVar, assert_never

import msgspec

from cloud_aggregator import commands, rollout
from cloud_aggregator.adapters.database import Transaction
from cloud_aggregator.adapters.release_records import OPEN_STATES, ReleaseRecords
from cloud_aggregator.adapters.release_schema import ReleaseRow
from cloud_aggregator.release_artifacts import ReleasedCheckpoint
from cloud_aggregator.round_desk import Office
from cloud_aggregator.selection import draw_devices, release_seed
from federated_core.errors import LocalMisuseError, UntrustedReleaseError
from federated_core.protocol import messages
from federated_core.protocol.keys import is_signed_by
from federated_core.release.manifest import ReleaseManifest, decode_manifest, statement

TIMERS = "release/"
_SIGNED = msgspec.msgpack.Decoder(messages.SignedManifest)
_POLICIES = msgspec.msgpack.Decoder(rollout.RolloutPolicy)
_OPEN_PHASES = ("canary", "soaking", "everyone")
_OFFERED_PHASES = (*_OPEN_PHASES, "completed")
_EVERYONE_AT_ONCE = rollout.RolloutPolicy(canary_ratio=1.0)
_ANSWER_COST_S = 0.03  # Of the coordinator's time for a device's status and its offer; a crowd is spread by it.
_log = logging.getLogger(__name__)

T = TypeVar("T")
Todo = list[tuple[int, rollout.RolloutAction]]  # What to do when a transaction is on disk, by release.


class ReleaseDesk:
    """All releases of the fleet; sets timers of the inbox whose names begin with `TIMERS`."""

    def __init__(
        self, office: Office, model_public: bytes, announce: Callable[[str, messages.AggregatorMessage], None]
    ) -> None:
        """Trust what ``model_public`` signed; ``announce`` speaks to all devices that listen to a task."""
        self._office = office
        self._model_public = model_public
        self._announce = announce
        self._released: dict[int, ReleasedCheckpoint] = {}

    # --- What happens

    def restore(self) -> None:
        """Go on with every release that is under way."""
        with self._office.database.transaction() as tx:
            numbers = [row.number for row in ReleaseRecords(tx).in_phases(_OPEN_PHASES)]
        for number in reversed(numbers):
            self._advance(number, rollout.Restarted())

    def promote(self, command: commands.PromoteRelease, actor: str) -> None:
        """Begin a release; UntrustedReleaseError without the model key, LocalMisuseError if it does not fit."""
        manifest = self._open(command.manifest)
        way_back = None if command.way_back is None else self._open(command.way_back)

        def write(tx: Transaction) -> Todo:
            records = ReleaseRecords(tx)
            if manifest.number <= records.highest_number():
                raise LocalMisuseError(f"release {manifest.number}: the number is taken; another was promoted just now")
            self._check_way_back(records, manifest, way_back, command.replaces)
            self._checkpoint(tx, manifest)
            todo: Todo = []
            for row in records.in_phases(("canary", "soaking"), manifest.family):
                todo += self._step(tx, row, rollout.NewerPromoted())
            row = _new_row(tx, command.kind, manifest, command.manifest, command.policy, actor)
            row.replaces = command.replaces
            if command.way_back is not None and way_back is not None:
                row.way_back, row.way_back_number = msgspec.msgpack.encode(command.way_back), way_back.number
            return todo + self._begin(tx, row)

        self._do(self._transact(write))

    def halt(self, number: int) -> None:
        """Offer a release to nobody any more."""
        self._advance(number, rollout.HaltAsked())

    def advance(self, number: int) -> None:
        """Offer a release to everyone now."""
        self._advance(number, rollout.AdvanceAsked())

    def ring(self, timer: str) -> None:
        """A timer is due; ``timer`` is its name without `TIMERS`."""
        name, _, number = timer.partition("/")
        self._advance(int(number), rollout.CanaryOverdue() if name == "canary" else rollout.SoakElapsed())

    def hear(self, device: str, status: messages.ReleaseStatus) -> None:
        """A device says what it runs: write it down, acknowledge it, and offer what is meant for it."""

        def write(tx: Transaction) -> tuple[Todo, messages.ReleaseOffer | None]:
            records = ReleaseRecords(tx)
            records.see(device)
            known, todo = records.families(), Todo()
            for one in status.families:
                if one.family not in known:
                    continue
                if one.running and one.checkpoint is not None:
                    records.note_running(device, one.family, one.running, one.checkpoint)
                if one.concluded is not None:
                    todo += self._conclude(tx, device, one.concluded)
            if status.refused is not None:
                todo += self._conclude(tx, device, status.refused)
            row = self._find_offer(tx, device, status, todo)
            return todo, None if row is None else self._make_offer(tx, row, status)

        todo, offer = self._transact(write)
        self._office.send(device, messages.ReleaseAcknowledgement(status.status_id))
        if offer is not None:
            self._office.send(device, offer)
        self._do(todo)

    # --- Offers

    def _find_offer(
        self, tx: Transaction, device: str, status: messages.ReleaseStatus, todo: Todo
    ) -> ReleaseRow | None:
        """Return the newest release that is meant for ``device`` and that it has not concluded."""
        records = ReleaseRecords(tx)
        said = {one.family: one for one in status.families}
        for family in sorted(records.families()):
            one = said.get(family, messages.FamilyStatus(family))
            floor = 0 if one.concluded is None else one.concluded.number
            for row in records.in_phases(_OFFERED_PHASES, family):
                if row.number <= floor:
                    break
                is_meant = row.restricted_to is None or row.restricted_to == one.running
                if is_meant and row.expires_at > tx.now_s and self._is_member(tx, row, device, todo):
                    return row
        return None

    def _is_member(self, tx: Transaction, row: ReleaseRow, device: str, todo: Todo) -> bool:
        """Say whether ``row`` is for ``device``; whoever joins belongs to the last stage."""
        records = ReleaseRecords(tx)
        member = records.member(row.number, device)
        if member is None and row.phase in {"canary", "soaking"}:
            return False
        if member is None:
            records.add_members(row.number, "everyone", [device])
            member = records.member(row.number, device)
            todo += self._step(tx, row, rollout.DeviceJoined())
        assert member is not None
        if member.state in {"failed", "refused"}:
            return False  # A device never takes the same release twice.
        if member.state == "waiting":
            member.state = "offered"
        member.offered_at = tx.now_s
        return True

    def _make_offer(self, tx: Transaction, row: ReleaseRow, status: messages.ReleaseStatus) -> messages.ReleaseOffer:
        signed = _SIGNED.decode(row.manifest)
        held = next((one for one in status.held if one.task == row.task), None)
        fetch = self._checkpoint(tx, decode_manifest(signed.body)).artifacts_for(held)
        return messages.ReleaseOffer(row.number, signed, fetch)

    def _checkpoint(self, tx: Transaction, manifest: ReleaseManifest) -> ReleasedCheckpoint:
        if manifest.number not in self._released:
            rows = tx.checkpoints(manifest.task)
            self._released[manifest.number] = ReleasedCheckpoint(self._office.registry, manifest, rows)
        return self._released[manifest.number]

    # --- The machine

    def _advance(self, number: int, event: rollout.RolloutEvent) -> None:
        def write(tx: Transaction) -> Todo:
            row = ReleaseRecords(tx).release(number)
            if row is None:
                raise LocalMisuseError(f"no release {number}")
            return self._step(tx, row, event)

        self._do(self._transact(write))

    def _begin(self, tx: Transaction, row: ReleaseRow) -> Todo:
        state, actions = rollout.begin(_POLICIES.decode(row.policy))
        row.state, row.phase = msgspec.msgpack.encode(state), _phase(state)
        ReleaseRecords(tx).add(row)
        tx.record(
            "release-promoted",
            task=row.task,
            number=row.number,
            family=row.family,
            version=row.version,
            release_kind=row.kind,
            replaces=row.replaces,
            restricted_to=row.restricted_to,
        )
        return [(row.number, action) for action in actions]

    def _step(self, tx: Transaction, row: ReleaseRow, event: rollout.RolloutEvent) -> Todo:
        before = rollout.STATES.decode(row.state)
        after, actions = rollout.step(before, event, _POLICIES.decode(row.policy))
        row.state, row.phase = msgspec.msgpack.encode(after), _phase(after)
        tally = after.tally
        row.member_count, row.committed_count, row.failed_count = (
            tally.member_count,
            tally.committed_count,
            tally.failed_count,
        )
        if type(after) is not type(before):
            if isinstance(after, rollout.Halted):
                row.why = after.why
                tx.record("release-halted", task=row.task, number=row.number, why=after.why)
            if isinstance(after, rollout.Completed | rollout.Superseded):
                tx.record(f"release-{row.phase}", task=row.task, number=row.number)
            if row.phase not in _OPEN_PHASES:
                row.closed_at = tx.now_s
        if after != before or actions:
            names = " ".join(type(action).__name__ for action in actions)
            _log.info(
                "release %d %s --%s--> %s [%s]",
                row.number,
                type(before).__name__,
                type(event).__name__,
                type(after).__name__,
                names,
            )
        return [(row.number, action) for action in actions]

    def _conclude(self, tx: Transaction, device: str, conclusion: messages.ReleaseConclusion) -> Todo:
        """Count what a device did with a release, once."""
        records = ReleaseRecords(tx)
        member = records.member(conclusion.number, device)
        if member is None or member.state not in (*OPEN_STATES, "timed-out"):
            return []
        was_open = member.state in OPEN_STATES
        member.state, member.concluded_at = conclusion.outcome, tx.now_s
        member.reason, member.detail = conclusion.reason, conclusion.detail or None
        row = records.get(conclusion.number)
        if conclusion.outcome == "committed":
            tx.record("release-committed", task=row.task, device=device, number=row.number)
            return self._step(tx, row, rollout.DeviceCommitted()) if was_open else []
        tx.record(
            "release-failed",
            task=row.task,
            device=device,
            number=row.number,
            outcome=conclusion.outcome,
            reason=conclusion.reason,
            detail=conclusion.detail,
        )
        return self._step(tx, row, rollout.DeviceFailed()) if was_open else []

    def _do(self, todo: Todo) -> None:
        for number, action in todo:
            self._perform(number, action)

    def _perform(self, number: int, action: rollout.RolloutAction) -> None:
        inbox = self._office.inbox
        match action:
            case rollout.OpenStage(stage):
                self._do(self._transact(lambda tx: self._open_stage(tx, number, stage)))
                self._tell(number, stage)
            case rollout.AwaitCanary(after_s):
                inbox.set_timer(f"{TIMERS}canary/{number}", self._remaining_s(number, after_s))
            case rollout.AwaitSoak(after_s):
                inbox.set_timer(f"{TIMERS}soak/{number}", after_s)
            case rollout.TimeOutSilent():
                self._office.commit(lambda tx: ReleaseRecords(tx).time_out(number))
            case rollout.TakeBack():
                self._do(self._transact(lambda tx: self._take_back(tx, number)))
            case rollout.Rest():
                inbox.cancel_timer(f"{TIMERS}canary/{number}")
                inbox.cancel_timer(f"{TIMERS}soak/{number}")
            case _:
                assert_never(action)

    def _open_stage(self, tx: Transaction, number: int, stage: rollout.Stage) -> Todo:
        records = ReleaseRecords(tx)
        row = records.get(number)
        todo: Todo = []
        if row.restricted_to is not None:
            devices = records.running(row.restricted_to)
        elif stage == "canary":
            everyone = records.devices()
            size = rollout.canary_size(_POLICIES.decode(row.policy), len(everyone))
            members = records.members(number)
            seed = release_seed(self._office.selection_secret, number)
            devices = [member.device for member in members] or list(draw_devices(everyone, size, seed))
        else:
            devices = records.devices()
            for older in records.in_phases(_OPEN_PHASES, row.family):
                if older.number < number:
                    todo += self._step(tx, older, rollout.NewerPromoted())
        records.add_members(number, stage, devices)
        tally = records.tally(number, stage)
        tx.record("release-stage", task=row.task, number=number, stage=stage, devices=tally.member_count)
        return todo + self._step(tx, row, rollout.StageOpened(tally))

    def _tell(self, number: int, stage: rollout.Stage) -> None:
        """Make those whom a stage concerns say what they run."""
        with self._office.database.transaction() as tx:
            records = ReleaseRecords(tx)
            row = records.get(number)
            members = [one.device for one in records.members(number, stage) if one.state in OPEN_STATES]
        if stage == "everyone" and row.restricted_to is None:
            spread_s = max(self._office.settings.release.announcement_spread_s, _ANSWER_COST_S * len(members))
            self._announce(row.task, messages.ReleaseAnnouncement(number, spread_s))
            return
        for device in members:
            self._office.send(device, messages.ReleaseAnnouncement(number, 0.0))

    def _take_back(self, tx: Transaction, number: int) -> Todo:
        """Make the way back a release of its own, for those that run the halted one."""
        halted = ReleaseRecords(tx).get(number)
        if halted.way_back is None:
            return []  # The first of its family: there is nothing to go back to.
        signed = _SIGNED.decode(halted.way_back)
        manifest = decode_manifest(signed.body)
        row = _new_row(tx, "rollback", manifest, signed, _EVERYONE_AT_ONCE, "aggregator")
        row.replaces, row.restricted_to = number, number
        tx.record("release-way-back", task=row.task, number=row.number, of=number)
        return self._begin(tx, row)

    def _remaining_s(self, number: int, after_s: float) -> float:
        with self._office.database.transaction() as tx:
            return max(0.0, ReleaseRecords(tx).get(number).created_at + after_s - tx.now_s)

    # --- Checks

    def _open(self, signed: messages.SignedManifest) -> ReleaseManifest:
        if not is_signed_by(self._model_public, signed.signature, statement(signed.body)):
            raise UntrustedReleaseError("release: its manifest is not signed by this fleet's model key")
        manifest = decode_manifest(signed.body)
        if manifest.fleet != self._office.settings.fleet:
            raise LocalMisuseError(f"release: made for fleet {manifest.fleet!r}, not for this one")
        return manifest

    def _check_way_back(
        self, records: ReleaseRecords, manifest: ReleaseManifest, way_back: ReleaseManifest | None, replaces: int | None
    ) -> None:
        if way_back is None:
            return
        old = None if replaces is None else records.release(replaces)
        leads = old is not None and (old.bundle, old.checkpoint) == (way_back.bundle.digest, way_back.checkpoint.digest)
        if not leads or (way_back.number, way_back.family) != (manifest.number + 1, manifest.family):
            raise LocalMisuseError(f"release {manifest.number}: its way back does not lead to release {replaces}")

    def _transact(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in one transaction, announce what it recorded, and return what it returned."""
        results: list[T] = []
        self._office.commit(lambda tx: results.append(work(tx)))
        return results[0]


def _new_row(
    tx: Transaction,
    kind: commands.ReleaseKind,
    manifest: ReleaseManifest,
    signed: messages.SignedManifest,
    policy: rollout.RolloutPolicy,
    actor: str,
) -> ReleaseRow:
    return ReleaseRow(
        number=manifest.number,
        family=manifest.family,
        task=manifest.task,
        version=manifest.version,
        kind=kind,
        policy=msgspec.msgpack.encode(policy),
        manifest=msgspec.msgpack.encode(signed),
        bundle=manifest.bundle.digest,
        checkpoint=manifest.checkpoint.digest,
        issued_at=float(manifest.issued_at),
        expires_at=float(manifest.expires_at),
        actor=actor,
        created_at=tx.now_s,
        member_count=0,
        committed_count=0,
        failed_count=0,
    )


def _phase(state: rollout.RolloutState) -> str:
    return str(type(state).__struct_config__.tag)
