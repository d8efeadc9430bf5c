"""The console's web server: gunicorn in a child process of the aggregator, ended with it.

A process of its own, so that no page can slow a round down, and one worker of many threads: an open page that watches
live holds a thread for as long as it is open, so there are more threads than there may be streams.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_aggregator.adapters.brokers.child_process import ChildProcess
from cloud_aggregator.config import ConsoleSettings, load_settings
from federated_core.errors import FallowError

if TYPE_CHECKING:
    from flask import Flask
    from gunicorn.app.base import BaseApplication

THREAD_COUNT = 88  # 64 streams, and as many pages at once as two cores can render.
_READY = "the console listens at "
_START_TIMEOUT_S = 30.0

_log = logging.getLogger(__name__)


class ConsoleProcess:
    """The running console; ``address`` is where a browser finds it."""

    def __init__(self, folder: Path, settings: ConsoleSettings) -> None:
        """Start it and wait until it answers; AdapterError with its last lines if it does not."""
        command = [sys.executable, "-m", "cloud_aggregator.console_process", "--state", str(folder.absolute())]
        command += ["--host", settings.host, "--port", str(settings.port)]
        self._child = ChildProcess(command)
        try:
            found = self._child.wait_for(_READY + r"(\S+)", since=0, timeout_s=_START_TIMEOUT_S)
        except FallowError:
            self._child.stop()
            raise
        self.address = found[1]
        self._child.report_exit_to(lambda reason: _log.error("the console is gone: %s", reason))

    def stop(self) -> None:
        """End it."""
        self._child.stop()


def gunicorn_options(host: str, port: int) -> dict[str, Any]:
    """Return gunicorn's settings: one worker, no file of its own outside the state folder, quick to end."""
    return {
        "bind": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "worker_class": "gthread",
        "workers": 1,
        "threads": THREAD_COUNT,
        "worker_connections": 1000,
        "timeout": 120,
        "graceful_timeout": 2,
        "keepalive": 15,
        "errorlog": "-",
        "loglevel": "warning",
        "forwarded_allow_ips": "",  # How many proxies are believed is a setting of the application.
        "control_socket_disable": True,
        "post_worker_init": _announce,
    }


def _announce(worker: Any) -> None:
    """Say where the console is, once the application stands."""
    name, port = worker.sockets[0].getsockname()[:2]
    sys.stderr.write(f"{_READY}http://{f'[{name}]' if ':' in name else name}:{port}\n")
    sys.stderr.flush()


def _application(options: dict[str, Any], make: "Callable[[], Flask]") -> "BaseApplication":
    from gunicorn.app.base import BaseApplication

    class Console(BaseApplication):  # type: ignore[misc]  # Gunicorn publishes no types.
        """Gunicorn with our settings and our application, reading no file or environment of its own."""

        def load_config(self) -> None:
            for name, value in options.items():
                self.cfg.set(name, value)

        def load(self) -> "Flask":
            return make()

    return Console()


def main() -> None:
    """Serve the console of one state folder until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m cloud_aggregator.console_process", description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()

    def make() -> "Flask":
        from cloud_aggregator.console.application import create_app

        return create_app(arguments.state, load_settings(arguments.state))

    logging.getLogger("alembic").setLevel(logging.WARNING)
    _application(gunicorn_options(arguments.host, arguments.port), make).run()


if __name__ == "__main__":
    main()
