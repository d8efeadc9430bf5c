"""mosquitto 2: its password and ACL files, for a site's own broker or for one that we run as a child.

The site's configuration names the two files (``password_file``, ``acl_file``) and sets ``allow_anonymous false``.
With client certificates and ``pattern`` rules it needs none of this: the certificates are its users.
"""

import base64
import contextlib
import grp
import hashlib
import os
import pwd
import queue
import secrets
import shutil
import signal
import time
from pathlib import Path

from cloud_aggregator.adapters.brokers.child_process import ChildProcess
from cloud_aggregator.adapters.brokers.directory import BrokerExit, BrokerTls, BrokerUser, UserStore, new_password
from cloud_aggregator.adapters.brokers.embedded_nats import lasting_port
from federated_core.adapters.atomic_file import write_atomically
from federated_core.adapters.link import LinkDown, LinkNews, LinkSettings, LinkUp
from federated_core.adapters.mqtt_link import MqttLink
from federated_core.errors import AdapterError, LocalMisuseError

_ITERATION_COUNT = 101  # mosquitto_passwd's own default; a random password of 128 bits needs no slow hash.
_PROBE = "(probe)"  # No name that a directory takes.


class MosquittoSite:
    """A ``BrokerDirectory``: two files in ``folder`` and a signal to the broker that reads them."""

    def __init__(
        self,
        folder: Path,
        *,
        pid_file: Path,
        host: str,
        port: int,
        ca_pem: str = "",
        reader_group: str = "",
        live_timeout_s: float = 15.0,
    ) -> None:
        """Administer the broker of ``pid_file``; ``reader_group`` is its group, if it runs as another user than we."""
        self._pid_file = pid_file
        self._host = host
        self._port = port
        self._ca_pem = ca_pem
        self._timeout_s = live_timeout_s
        self._mode, self._group_id = (0o640, _group_id(reader_group)) if reader_group else (0o600, -1)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.password_file = folder / "passwords"
        self.acl_file = folder / "acl"
        self._users = UserStore(folder / "users.json")

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
        """Write the files, signal the broker, and wait until it lets in a user that only the new files know."""
        password = self.write_files()
        try:
            pid = int(self._pid_file.read_text())
            os.kill(pid, signal.SIGHUP)
        except (OSError, ValueError) as error:
            raise AdapterError(f"cannot signal mosquitto by {self._pid_file}: {error}") from error
        self.wait_for_login(password)

    def write_files(self) -> str:
        """Write the files without telling the broker; return the probe's password."""
        probe = BrokerUser(_PROBE, new_password(), publish=(), subscribe=())
        users = (probe, *self._users.all())
        self._users.save()
        for path, lines in (
            (self.password_file, [f"{user.name}:{_hash(user.password)}" for user in users]),
            (self.acl_file, [line for user in users for line in _rules(user)]),
        ):
            write_atomically(path, ("\n".join(lines) + "\n").encode(), mode=self._mode, group_id=self._group_id)
        return probe.password

    def wait_for_login(self, password: str) -> None:
        """Wait until the broker lets in the probe of `write_files`."""
        news: queue.SimpleQueue[LinkNews] = queue.SimpleQueue()
        settings = LinkSettings(
            host=self._host,
            port=self._port,
            username=_PROBE,
            password=password,
            client_id=f"probe-{secrets.token_hex(8)}",
            ca_pem=self._ca_pem,
            reconnect_min_s=0.02,
            reconnect_max_s=0.2,
        )
        link = MqttLink(settings, news.put)
        deadline_s = time.monotonic() + self._timeout_s
        last = LinkDown("no answer")
        try:
            while (left_s := deadline_s - time.monotonic()) > 0:
                with contextlib.suppress(queue.Empty):
                    match news.get(timeout=left_s):
                        case LinkUp():
                            return
                        case LinkDown() as last:
                            pass
        finally:
            link.close()
        raise AdapterError(f"mosquitto let nobody in for {self._timeout_s:g} s: {last.reason}")


class MosquittoChild:
    """A ``LocalBroker``: mosquitto as a child process, for tests and small sites."""

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
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._host = host
        self._port = port or lasting_port(folder / "port", host)
        self._tls = tls
        self._payload_max_bytes = payload_max_bytes
        self._timeout_s = ready_timeout_s
        self._on_exit = on_exit
        self._child: ChildProcess | None = None
        self._pid_file = folder / "pid"
        self._site = MosquittoSite(
            folder,
            pid_file=self._pid_file,
            host=host,
            port=self._port,
            ca_pem="" if tls is None else tls.certificate.read_text(),
            live_timeout_s=ready_timeout_s,
        )

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
        if self._child is None:
            raise AdapterError("mosquitto is not running")
        return self._child.pid

    def start(self) -> None:
        """Start mosquitto and wait until it takes connections."""
        if self._child is not None and self._child.is_running:
            raise LocalMisuseError("start() of a mosquitto that is running")
        program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise AdapterError("no mosquitto: install the package mosquitto, or use the embedded nats-server")
        configuration = self._folder / "mosquitto.conf"
        write_atomically(configuration, self._configuration().encode())
        password = self._site.write_files()
        child = ChildProcess((program, "-c", str(configuration)))
        try:
            child.wait_for(r"mosquitto version \S+ running", since=0, timeout_s=self._timeout_s)
            # It says so before its loop runs, and forgets a signal that comes between.
            self._site.wait_for_login(password)
        except AdapterError:
            child.stop()
            raise
        self._child = child
        if self._on_exit is not None:
            child.report_exit_to(self._on_exit)

    def stop(self) -> None:
        """End mosquitto and wait until it has."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def users(self) -> tuple[BrokerUser, ...]:
        """List the users."""
        return self._site.users()

    def add_user(self, user: BrokerUser) -> None:
        """Add or replace a user, from the next `apply` on."""
        self._site.add_user(user)

    def remove_user(self, name: str) -> None:
        """Remove a user and end its connections, with the next `apply`."""
        self._site.remove_user(name)

    def apply(self) -> None:
        """Make the users live."""
        if self._child is None:
            self._site.write_files()
        else:
            self._site.apply()

    def _configuration(self) -> str:
        lines = [
            f"listener {self._port} {self._host}",
            "allow_anonymous false",
            f"password_file {self._site.password_file.resolve()}",
            f"acl_file {self._site.acl_file.resolve()}",
            f"pid_file {self._pid_file.resolve()}",
            f"user {pwd.getpwuid(os.geteuid()).pw_name}",  # As root it would become another user, and read no file.
            "use_username_as_clientid true",  # A client id must not be a key to another's session.
            "log_dest stderr",
            "persistence true",
            f"persistence_location {self._folder.resolve()}/",
            "autosave_interval 5",
            # The default of 1,000 drops acknowledged messages, and 0 (no limit) is broken in several 2.0.x.
            "max_queued_messages 65000",
            f"message_size_limit {self._payload_max_bytes}",
        ]
        if self._tls is not None:
            lines += [f"certfile {self._tls.certificate.resolve()}", f"keyfile {self._tls.key.resolve()}"]
        return "\n".join(lines) + "\n"


def _hash(password: str) -> str:
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATION_COUNT)
    return f"$7${_ITERATION_COUNT}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def _rules(user: BrokerUser) -> list[str]:
    return [
        f"user {user.name}",
        *(f"topic write {topic_filter}" for topic_filter in user.publish),
        *(f"topic read {topic_filter}" for topic_filter in user.subscribe),
    ]


def _group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise AdapterError(f"reader_group: expected a group of this machine, got {name!r}") from error
