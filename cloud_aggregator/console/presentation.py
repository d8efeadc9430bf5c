"""How values look: times, sizes, shares, happenings as sentences; and what devices supplied is made visible."""

import collections
import re
from datetime import UTC, datetime
from typing import Any

from flask import Flask
from markupsafe import Markup, escape

from cloud_aggregator.console.context import reading
from cloud_aggregator.console.records import Happening

_DIGEST_CHARACTERS = 12
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
_SPANS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"))
_SENTENCES = {
    "assignment-given-back": "assignment given back: {why}",
    "cohort-selected": "{devices} devices invited",
    "command": "{actor} asked for {command}",
    "enrolled": "enrolled with token {token}",
    "enrollment-refused": "enrollment with token {token} refused: {why}",
    "identity-alert": "enrolled with a second key: the same machine is also {machine_also_enrolled_as}",
    "password-changed": "password of {user} changed",
    "release-committed": "runs release {number} now",
    "release-completed": "release {number} is everywhere",
    "release-failed": "release {number} {outcome}: {reason} {detail}",
    "release-halted": "release {number} halted: {why}",
    "release-promoted": "release {number} of {family}: {release_kind} to version {version}",
    "release-stage": "release {number} offered to {devices} devices ({stage})",
    "release-superseded": "release {number} superseded",
    "release-way-back": "release {number} takes devices back from release {of}",
    "report-accepted": "report accepted",
    "report-late": "report came when the round was over",
    "report-refused": "report refused: {verdict}",
    "role-changed": "{user} is now {role}",
    "round-abandoned": "round abandoned: {why}",
    "round-completed": "round completed: {reports} reports in {seconds} s",
    "round-opened": "round opened: {plan}",
    "sign-in-refused": "sign-in of {user} from {address} refused",
    "signed-in": "{user} signed in from {address}",
    "signed-out": "{user} signed out at {address}",
    "task-created": "task created: {parameters} parameters",
    "task-finished": "task finished at version {version}: {why}",
    "user-created": "user {user} created as {role}",
    "user-deleted": "user {user} deleted",
}


def install_presentation(app: Flask) -> None:
    """Give the templates of ``app`` these filters, and let no invisible character pass unseen."""
    app.jinja_env.finalize = make_visible
    app.jinja_env.filters.update(
        bytes=format_bytes,
        count=lambda value: "–" if value is None else f"{value:,}",
        duration=format_duration,
        percent=format_percent,
        sentence=describe,
        short=lambda digest: digest[:_DIGEST_CHARACTERS],
        when=format_time,
    )


def make_visible(value: Any) -> Any:
    """Return ``value`` for a page: control characters, direction marks and the like are shown as what they are."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _INVISIBLE.sub(_show, value)
    return value


def _show(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else f"[U+{code:04X}]"


def format_time(at: float | None) -> Markup:
    """Return how long ago ``at`` is, or in how long it will be, with the exact time behind it."""
    if at is None:
        return Markup("never")
    moment = datetime.fromtimestamp(at, UTC)
    exact = moment.strftime("%Y-%m-%d %H:%M:%S UTC")
    distance_s = reading().now_s - at
    text = f"{format_duration(distance_s)} ago" if distance_s >= 0.0 else f"in {format_duration(-distance_s)}"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(moment.isoformat(), exact, text)


def format_duration(seconds: float | None) -> str:
    """Return ``seconds`` in the unit that suits them."""
    if seconds is None:
        return "–"
    for length_s, unit in _SPANS:
        if seconds >= length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10.0 else f"{seconds:.1f} s"


def format_bytes(count: float | None) -> str:
    """Return ``count`` bytes in decimal units."""
    if count is None:
        return "–"
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def format_percent(share: float | None) -> str:
    """Return ``share`` of one as a percentage."""
    return "–" if share is None else f"{100.0 * share:.1f} %"


def describe(happening: Happening) -> Markup:
    """Return what happened as a sentence; what it holds beyond that follows in brackets."""
    detail = collections.defaultdict(lambda: "?", {name: _text(value) for name, value in happening.detail.items()})
    known = _SENTENCES.get(happening.kind)
    if known is not None:
        return escape(make_visible(known.format_map(detail)))
    text = happening.kind.replace("-", " ")
    if detail:
        text += " (" + ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in detail.items()) + ")"
    return escape(make_visible(text))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
