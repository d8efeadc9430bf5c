"""What `edge-agent status` shows: read from the journal, while the agent runs or not."""

from pathlib import Path
from typing import Any

import msgspec

from edge_agent import session, update
from edge_agent.adapters.identity import load_identity
from edge_agent.adapters.installer import Installer, Pointer
from edge_agent.adapters.journal import HELD, REASONS, Journal
from edge_agent.config import load_settings
from edge_agent.eligibility import waivers
from federated_core.errors import LocalMisuseError


def read_status(folder: Path) -> dict[str, Any]:
    """Return everything as plain values, ready for JSON."""
    identity = load_identity(folder)
    if identity is None:
        raise LocalMisuseError(f"{folder}: no agent lives here; run: edge-agent enroll --state {folder} --token TOKEN")
    settings = load_settings(folder)
    journal = Journal(folder / "journal.db")
    state = journal.load("session", session.STATES) or session.Resting()
    reasons = journal.load("reasons", REASONS)
    held = [journal.load(key, HELD) for key in journal.keys("held/")]
    status = {
        "device": identity.grant.device if identity.grant else None,
        "fleet": identity.token.fleet,
        "broker": f"{identity.token.host}:{identity.token.port}",
        "session": type(state).__name__,
        "ineligible_because": list(reasons[1]) if reasons else None,
        "judged_at": reasons[0] if reasons else None,
        "waivers": list(waivers(settings.eligibility)),
        "held": [{"task": one.task, "version": one.checkpoint.version} for one in held if one is not None],
        "releases": _read_releases(folder, journal),
        "counters": journal.counters(),
    }
    journal.close()
    return status


def _read_releases(folder: Path, journal: Journal) -> list[dict[str, Any]]:
    installer = Installer(folder / "releases")
    states = {key.partition("/")[2]: journal.load(key, update.STATES) for key in journal.keys("update/")}
    releases = []
    for family in sorted({*installer.families(), *states}):
        pointer = installer.read_pointer(family)
        state = states.get(family) or update.Idle()
        concluded = None if isinstance(state, update.RollingBack) else state.concluded
        releases.append(
            {
                "family": family,
                "running": _describe_pointer(pointer),
                "update": type(state).__name__,
                "concluded": None if concluded is None else msgspec.to_builtins(concluded),
            }
        )
    return releases


def _describe_pointer(pointer: Pointer | None) -> dict[str, Any] | None:
    if pointer is None:
        return None
    previous = None if pointer.previous is None else pointer.previous.number
    release = pointer.release
    return {"number": release.number, "task": release.task, "version": release.version, "previous": previous}


def describe(status: dict[str, Any], now_s: float) -> str:
    """Return the same for a person."""
    lines = [
        f"device    {status['device'] or 'not enrolled'} in fleet {status['fleet']}, broker {status['broker']}",
        f"session   {status['session']}",
    ]
    if status["judged_at"] is not None:
        age_s = max(0.0, now_s - status["judged_at"])
        reasons = "; ".join(status["ineligible_because"]) or "eligible"
        lines.append(f"eligible  {reasons} (since {age_s:.0f} s)")
    lines += [f"waived    {waiver}" for waiver in status["waivers"]]
    lines += [f"holds     {one['task']} version {one['version']}" for one in status["held"]]
    for one in status["releases"]:
        running, concluded = one["running"], one["concluded"]
        what = "nothing yet" if running is None else f"release {running['number']} (version {running['version']})"
        if concluded is not None and concluded["outcome"] != "committed":
            what += f"; release {concluded['number']} {concluded['outcome']}: {concluded['reason']}"
        lines.append(f"runs      {one['family']} {what}")
    return "\n".join(lines)
