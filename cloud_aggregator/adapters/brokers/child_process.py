"""A broker as our child: started, listened to, ended, and never left behind.

On Linux it dies with us (PR_SET_PDEATHSIG), also when we are killed with -9: an orphan would keep the port and the data
folder from the next aggregator. It is killed, for mosquitto forgets a SIGTERM that comes while it starts: nats-server
loses nothing of what it acknowledged, mosquitto up to 5 s, and nothing of ours relies on either.

The signal is set by a few lines of Python that then become the broker, not by a ``preexec_fn``, which may deadlock in a
process with threads. Linux sends it when the *thread* that started the child ends, so the thread that reads the child's
log starts it, and lives exactly as long as it does.
"""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from federated_core.errors import AdapterError

_LAST_LINES_COUNT = 40
_STOP_TIMEOUT_S = 10.0
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

_log = logging.getLogger(__name__)


class ChildProcess:
    """One run of a program that writes its log to its standard error."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start ``command``."""
        self.name = Path(command[0]).name
        self._on_exit: Callable[[str], None] | None = None
        self._exit_code: int | None = None
        self._lines: deque[str] = deque(maxlen=_LAST_LINES_COUNT)
        self._line_count = 0
        self._is_stopping = False
        self._changed = threading.Condition()
        started: Future[subprocess.Popen[str]] = Future()
        self._thread = threading.Thread(
            target=self._watch, args=(tuple(command), started), name=f"watch-{self.name}", daemon=True
        )
        self._thread.start()
        self._process = started.result()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._exit_code is None

    @property
    def line_count(self) -> int:
        """Lines of log so far: a mark for `wait_for`."""
        return self._line_count

    def wait_for(self, pattern: str, *, since: int, timeout_s: float) -> re.Match[str]:
        """Wait for a line of log after the mark ``since``; `AdapterError` if the program ends first or says nothing."""
        expression = re.compile(pattern)
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while True:
                new_count = min(self._line_count - since, len(self._lines))
                for line in list(self._lines)[len(self._lines) - new_count :]:
                    if match := expression.search(line):
                        return match
                if self._exit_code is not None:
                    raise AdapterError(self._describe_exit())
                if not self._changed.wait(deadline_s - time.monotonic()) and time.monotonic() >= deadline_s:
                    raise AdapterError(
                        f"{self.name} did not log {pattern!r} within {timeout_s:g} s; last:\n{self.last_lines()}"
                    )

    def report_exit_to(self, on_exit: Callable[[str], None]) -> None:
        """Call ``on_exit`` with the reason, once, when it ends before `stop`; at once if it already has."""
        with self._changed:
            self._on_exit = on_exit
            has_ended = self._exit_code is not None
        if has_ended:
            self._report_exit(on_exit)

    def last_lines(self) -> str:
        """Return the end of its log."""
        return "\n".join(self._lines)

    def hang_up(self) -> None:
        """Ask it to read its files again."""
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """End it, with SIGKILL if it does not obey, and wait until it has ended."""
        self._is_stopping = True
        self._process.terminate()
        self._thread.join(_STOP_TIMEOUT_S)
        if self._thread.is_alive():
            self._process.kill()
            self._thread.join()

    def _watch(self, command: tuple[str, ...], started: "Future[subprocess.Popen[str]]") -> None:
        try:
            process = subprocess.Popen(
                _dying_with_us(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C in the terminal is for us: we end it in order.
            )
        except OSError as error:
            started.set_exception(AdapterError(f"cannot start {command[0]}: {error.strerror or error}"))
            return
        started.set_result(process)
        assert process.stderr is not None
        with process.stderr as log:
            for line in log:
                _log.debug("%s: %s", self.name, line.rstrip())
                with self._changed:
                    self._lines.append(line.rstrip())
                    self._line_count += 1
                    self._changed.notify_all()
        exit_code = process.wait()
        with self._changed:
            self._exit_code = exit_code
            self._changed.notify_all()
            on_exit = self._on_exit
        if on_exit is not None:
            self._report_exit(on_exit)

    def _report_exit(self, on_exit: Callable[[str], None]) -> None:
        if not self._is_stopping:
            on_exit(self._describe_exit())

    def _describe_exit(self) -> str:
        code = self._exit_code or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"{self.name} {how}; its last lines:\n{self.last_lines()}"


def _dying_with_us(command: tuple[str, ...]) -> list[str]:
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
