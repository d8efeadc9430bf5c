"""Releases as an operator makes them: manifests written and signed here, where the model key is, for that moment only.

The coordinator gets signed bytes. It holds no model key; that is why the way back is signed together with a promotion.
"""

from pathlib import Path
from typing import Any

import msgspec

from cloud_aggregator import commands
from cloud_aggregator.adapters.database import Database
from cloud_aggregator.adapters.keyring import read_secret
from cloud_aggregator.adapters.release_records import FAILED_STATES, ReleaseRecords
from cloud_aggregator.adapters.release_schema import ReleaseRow
from cloud_aggregator.config import ReleaseSettings
from cloud_aggregator.rollout import RolloutPolicy
from federated_core.errors import LocalMisuseError
from federated_core.protocol import messages
from federated_core.protocol.keys import SigningKey
from federated_core.protocol.messages import BlobReference
from federated_core.release.manifest import ReleaseManifest, decode_manifest, sign_manifest

_EVERYONE_AT_ONCE = RolloutPolicy(canary_ratio=1.0)
_ANY_ACCURACY = 1.0  # The old model may be less accurate than the one that it takes the place of.
_SIGNED = msgspec.msgpack.Decoder(messages.SignedManifest)


class ReleaseOrder(msgspec.Struct, frozen=True):
    """What an operator wants released: a published version of a task, as the service read it."""

    fleet: str
    family: str
    task: str
    version: int
    bundle: BlobReference
    checkpoint: BlobReference


def make_promotion(
    database: Database,
    order: ReleaseOrder,
    settings: ReleaseSettings,
    policy: RolloutPolicy,
    accuracy_drop_max: float,
    key_path: Path,
) -> tuple[int, commands.PromoteRelease]:
    """Sign a release of new bytes, and the way back to those that it replaces; return its number and the command."""
    key = SigningKey(read_secret(key_path))
    with database.transaction() as tx:
        records = ReleaseRecords(tx)
        number, old, now_s = records.highest_number() + 1, records.current(order.family), int(tx.now_s)
    manifest = ReleaseManifest(
        format=1,
        fleet=order.fleet,
        family=order.family,
        number=number,
        task=order.task,
        version=order.version,
        bundle=order.bundle,
        checkpoint=order.checkpoint,
        issued_at=now_s,
        expires_at=now_s + int(settings.lifetime_s),
        accuracy_drop_max=accuracy_drop_max,
    )
    signed = sign_manifest(key, manifest)
    way_back = None if old is None else sign_manifest(key, _again(old, number + 1, now_s, settings))
    replaces = None if old is None else old.number
    return number, commands.PromoteRelease("promotion", signed, policy, replaces, way_back)


def make_rollback(
    database: Database,
    number: int | None,
    family: str | None,
    to: int | None,
    settings: ReleaseSettings,
    key_path: Path,
) -> tuple[int, commands.PromoteRelease]:
    """Sign a release of old bytes under a new number; return that number and the command."""
    key = SigningKey(read_secret(key_path))
    with database.transaction() as tx:
        records = ReleaseRecords(tx)
        left = _release_to_leave(records, number, family)
        target = left.replaces if to is None and left.kind == "promotion" else to
        if target is None:
            reason = "it is itself a rollback" if left.kind == "rollback" else "there is none before it"
            raise LocalMisuseError(f"release {left.number}: {reason}; say which release's model to go back to")
        old = records.release(target)
        if old is None or old.family != left.family:
            raise LocalMisuseError(f"no release {target} of {left.family!r}")
        fresh, now_s = records.highest_number() + 1, int(tx.now_s)
    signed = sign_manifest(key, _again(old, fresh, now_s, settings))
    return fresh, commands.PromoteRelease("rollback", signed, _EVERYONE_AT_ONCE, left.number)


def describe_releases(database: Database, family: str | None) -> dict[str, Any]:
    """Return all releases, newest first, and what every device runs, as plain values ready for JSON."""
    with database.transaction() as tx:
        records = ReleaseRecords(tx)
        rows = records.releases(family)
        running = {(one.device, one.family): one for one in records.all_running()}
        members = {row.number: records.members(row.number) for row in rows}
        newest = {(one.device, row.family): (row, one) for row in reversed(rows) for one in members[row.number]}
        families = sorted({row.family for row in rows})
        versions = {row.number: row.version for row in rows}
        devices = []
        for device in records.devices():
            for name in families:
                one = running.get((device, name))
                release, member = newest.get((device, name), (None, None))
                devices.append(
                    {
                        "device": device,
                        "family": name,
                        "number": one.number if one else 0,
                        "version": versions.get(one.number) if one else None,
                        "checkpoint": one.checkpoint.hex() if one else None,
                        "reported_at": one.reported_at if one else None,
                        "offered": release.number if release else None,
                        "state": member.state if member else None,
                        "reason": member.reason if member else None,
                        "detail": member.detail if member else None,
                    }
                )
        return {"releases": [_describe(row, members[row.number]) for row in rows], "devices": devices}


def _release_to_leave(records: ReleaseRecords, number: int | None, family: str | None) -> ReleaseRow:
    if number is not None:
        row = records.release(number)
        if row is None:
            raise LocalMisuseError(f"no release {number}")
        return row
    families = sorted(records.families())
    if family is None and len(families) != 1:
        raise LocalMisuseError(f"say which release to leave; families are {', '.join(families) or 'none'}")
    row = records.current(family or families[0])
    if row is None:
        raise LocalMisuseError("no release has reached everyone yet; say which one to leave")
    return row


def _again(old: ReleaseRow, number: int, now_s: int, settings: ReleaseSettings) -> ReleaseManifest:
    """Point at the bytes of ``old`` under a new number."""
    return msgspec.structs.replace(
        decode_manifest(_SIGNED.decode(old.manifest).body),
        number=number,
        issued_at=now_s,
        expires_at=now_s + int(settings.lifetime_s),
        accuracy_drop_max=_ANY_ACCURACY,
    )


def _describe(row: ReleaseRow, members: list[Any]) -> dict[str, Any]:
    names = (
        "number family task version kind phase why actor issued_at expires_at created_at closed_at replaces "
        "restricted_to way_back_number member_count committed_count failed_count"
    )
    described = {name: getattr(row, name) for name in names.split()}
    return {
        **described,
        "checkpoint": row.checkpoint.hex(),
        "bundle": row.bundle.hex(),
        "canary_count": sum(member.stage == "canary" for member in members),
        "all_member_count": len(members),
        "all_committed_count": sum(member.state == "committed" for member in members),
        "all_failed_count": sum(member.state in FAILED_STATES for member in members),
    }
