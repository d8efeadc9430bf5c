"""What `edge-agent status` shows: read from the journal, while the agent runs or not."""

from pathlib import Path
from typing import Any

from edge_agent import session
from edge_agent.adapters.identity import load_identity
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
        "counters": journal.counters(),
    }
    journal.close()
    return status


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
    return "\n".join(lines)
