"""A child process that is handed pieces of work over a pipe and answers over another; kept while work follows."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from edge_agent import work
from federated_core.errors import AdapterError

THREADS_VARIABLE = "FALLOW_TRAINER_THREADS"

Outcome = TypeVar("Outcome")


class ChildProcess(Generic[Outcome]):
    """At most one child. ``said`` and ``exited`` are called by a reader thread and must only enqueue."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        thread_count: int,
        outcomes: msgspec.msgpack.Decoder[Outcome],
        said: Callable[[Outcome], None],
        exited: Callable[[int, int], None],
    ) -> None:
        """Run ``command`` when there is work; ``exited`` hears the process id and the code, negative for a signal."""
        self._name = name
        self._command = tuple(command)
        self._outcomes = outcomes
        self._said = said
        self._exited = exited
        # Numerical libraries reserve memory for as many threads as the board has, unless they are told.
        counts = {name: str(thread_count) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", THREADS_VARIABLE)}
        self._environment = {**os.environ, **counts, "MALLOC_ARENA_MAX": "1"}
        self._child: subprocess.Popen[bytes] | None = None
        self._is_stopping = False

    @property
    def pid(self) -> int | None:
        """The child's process id, None if none runs."""
        return None if self._child is None else self._child.pid

    def prepare(self) -> None:
        """Start a child if none runs, so that its imports are done when work comes."""
        if self._is_stopping:
            self.kill()
        if self._child is None:
            self._spawn()

    def start(self, piece: msgspec.Struct) -> None:
        """Give ``piece`` to the child, and start one if none runs."""
        for _ in range(2):
            self.prepare()
            child = self._child
            assert child is not None
            try:
                assert child.stdin is not None
                work.write_message(child.stdin, piece)
            except OSError:
                self.kill()  # It died while it waited; its exit will be heard, a fresh one gets the work.
                continue
            return
        raise AdapterError(f"{self._name}: its process ends before it takes work")

    def ask_to_stop(self) -> None:
        """Ask the child to end, whatever it is doing; what it has put on disk stays whole."""
        if self._child is not None:
            self._child.terminate()
            self._is_stopping = True

    def kill(self) -> None:
        """End the child now, and wait until it is gone."""
        child, self._child = self._child, None
        self._is_stopping = False
        if child is not None:
            child.kill()
            child.wait()

    def forget(self, pid: int) -> None:
        """Note that the child ``pid`` has ended."""
        if self._child is not None and self._child.pid == pid:
            self._child = None
            self._is_stopping = False

    def _spawn(self) -> None:
        try:
            child = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment
            )
        except OSError as error:
            raise AdapterError(f"{self._name}: cannot start {self._command[0]}: {error.strerror or error}") from error
        with contextlib.suppress(ProcessLookupError):
            # Its imports take seconds on a small board: at our own niceness they look like somebody else at work.
            os.setpriority(os.PRIO_PROCESS, child.pid, 19)
        self._child = child
        threading.Thread(target=self._listen, args=(child,), name=f"{self._name}-{child.pid}", daemon=True).start()

    def _listen(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        with contextlib.suppress(AdapterError, msgspec.DecodeError):
            while (body := work.read_message(child.stdout)) is not None:
                self._said(self._outcomes.decode(body))
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGKILL)  # A pipe that ended or lies is of no more use.
        self._exited(child.pid, child.wait())
