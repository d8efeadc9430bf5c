"""The trial as a child process: it lives for one candidate."""

import sys
from collections.abc import Callable, Sequence

import msgspec

from edge_agent.adapters.child_process import ChildProcess
from edge_agent.trial_work import TrialOutcome

DEFAULT_COMMAND = (sys.executable, "-m", "edge_agent.trial")


class TrialSaid(msgspec.Struct, frozen=True):
    """An answer of the trial process."""

    outcome: TrialOutcome


class TrialExited(msgspec.Struct, frozen=True):
    """The trial process ended."""

    pid: int


TrialNews = TrialSaid | TrialExited


def open_trial(
    news: Callable[[TrialNews], None], command: Sequence[str] = DEFAULT_COMMAND
) -> ChildProcess[TrialOutcome]:
    """Return the trial process, which is started when there is a candidate."""
    return ChildProcess(
        "trial",
        command,
        thread_count=1,
        outcomes=msgspec.msgpack.Decoder(TrialOutcome),
        said=lambda outcome: news(TrialSaid(outcome)),
        exited=lambda pid, _code: news(TrialExited(pid)),
    )
