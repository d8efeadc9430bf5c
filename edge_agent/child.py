"""The other end of `adapters.child_process`: a process that does one piece of work after another, and then ends.

It reads files and writes files; it has no key, no credential and no network. It ends with its parent: when the pipe
closes, or when it is asked to.
"""

import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import IO, Protocol, TypeVar

import msgspec
import psutil

from edge_agent import work
from edge_agent.adapters.child_process import THREADS_VARIABLE

W_contra = TypeVar("W_contra", contravariant=True)


class Worker(Protocol[W_contra]):
    """What does the work."""

    def do(self, piece: W_contra) -> None:
        """Do ``piece`` and say what became of it; an error is said too, never raised."""


def run_child(make: Callable[[IO[bytes], int], Worker[W_contra]], decoder: msgspec.msgpack.Decoder[W_contra]) -> None:
    """Take work from standard input until it closes; ``make`` gets where to answer, and the number of threads."""
    _be_polite()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # What a library prints must not end up among our messages.
    worker = make(out, int(os.environ.get(THREADS_VARIABLE, "1")))
    pieces: queue.SimpleQueue[W_contra] = queue.SimpleQueue()

    def listen() -> None:
        while (body := work.read_message(sys.stdin.buffer)) is not None:
            pieces.put(decoder.decode(body))
        os._exit(0)  # The daemon is gone or done with us: not even a step in progress matters any more.

    threading.Thread(target=listen, name="listen", daemon=True).start()
    while True:
        worker.do(pieces.get())


def _be_polite() -> None:
    """Yield to everybody: nice 19, the idle scheduling class, idle input and output."""
    os.nice(19)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
