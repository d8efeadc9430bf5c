"""The trainer as a child: started when there is work, kept while rounds follow each other, ended to free memory."""

import sys
from collections.abc import Callable, Sequence

import msgspec

from edge_agent import work
from edge_agent.adapters.child_process import ChildProcess

DEFAULT_COMMAND = (sys.executable, "-m", "edge_agent.trainer")


class TrainerSaid(msgspec.Struct, frozen=True):
    """A message from the trainer."""

    outcome: work.Outcome


class TrainerExited(msgspec.Struct, frozen=True):
    """The trainer's process ended; ``code`` is negative for a signal."""

    pid: int
    code: int


TrainerNews = TrainerSaid | TrainerExited


def open_trainer(
    news: Callable[[TrainerNews], None], command: Sequence[str] = DEFAULT_COMMAND, thread_count: int = 1
) -> ChildProcess[work.Outcome]:
    """Return the trainer's process, which is started when it is needed."""
    return ChildProcess(
        "trainer",
        command,
        thread_count=thread_count,
        outcomes=msgspec.msgpack.Decoder(work.Outcome),
        said=lambda outcome: news(TrainerSaid(outcome)),
        exited=lambda pid, code: news(TrainerExited(pid, code)),
    )
