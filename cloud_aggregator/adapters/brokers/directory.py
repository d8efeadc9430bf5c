"""The users of a broker, whichever broker it is: what one may do is written in MQTT topic filters."""

import dataclasses
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from federated_core.adapters.atomic_file import write_atomically
from federated_core.errors import AdapterError, LocalMisuseError

_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_LEVEL = re.compile(r"[a-z0-9_-]{1,48}|\+|#")
_PASSWORD = re.compile(r"[A-Za-z0-9_-]{16,128}")
_LEVELS_MAX = 8  # Seven slashes: AWS IoT Core's limit.


class BrokerUser(msgspec.Struct, frozen=True):
    """A login and the topic filters that it may publish to and subscribe to; what is not listed is forbidden."""

    name: str
    password: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]

    def __repr__(self) -> str:
        return f"BrokerUser({self.name!r}, publish={self.publish!r}, subscribe={self.subscribe!r})"  # No password.


@dataclasses.dataclass(frozen=True, slots=True)
class BrokerTls:
    """The certificate that a broker of ours shows, with the chain to its authority, and its key, in PEM files."""

    certificate: Path
    key: Path


class BrokerDirectory(Protocol):
    """Who may log in to a broker. Changes are collected and become live with `apply`, which drops no other's link."""

    def users(self) -> tuple[BrokerUser, ...]:
        """List the users, sorted by name, changes not yet applied included."""

    def add_user(self, user: BrokerUser) -> None:
        """Add a user, or replace the one of the same name."""

    def remove_user(self, name: str) -> None:
        """Remove a user, if there is one; `apply` also ends its connections."""

    def apply(self) -> None:
        """Write the users and wait until the broker obeys them; `AdapterError` when it does not."""


class LocalBroker(BrokerDirectory, Protocol):
    """A broker that runs as our child process, and its directory."""

    @property
    def host(self) -> str:
        """Where it listens for MQTT."""

    @property
    def port(self) -> int:
        """Its MQTT port, the same for as long as its folder exists."""

    @property
    def pid(self) -> int:
        """Its process."""

    def start(self) -> None:
        """Start it and wait until it takes connections."""

    def stop(self) -> None:
        """End it and wait until it has; no exit is reported."""


BrokerExit = Callable[[str], None]
"""Called with the reason in words, from the broker's own thread, when the broker ends without being told to."""


def new_password() -> str:
    """Draw 128 random bits: strong enough that no broker needs to spend 100 ms per login on a slow hash."""
    return secrets.token_urlsafe(16)


class UserStore:
    """The users in a file that survives restarts; a broker's own form of it is derived."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._users: dict[str, BrokerUser] = {}
        if path.exists():
            try:
                stored = msgspec.json.decode(path.read_bytes(), type=list[BrokerUser])
            except (OSError, msgspec.DecodeError) as error:
                raise AdapterError(f"cannot read the broker's users from {path}: {error}") from error
            self._users = {user.name: user for user in stored}

    def all(self) -> tuple[BrokerUser, ...]:
        """List the users, sorted by name."""
        return tuple(self._users[name] for name in sorted(self._users))

    def add(self, user: BrokerUser) -> None:
        """Check and keep ``user``."""
        _check_user(user)
        self._users[user.name] = user

    def remove(self, name: str) -> None:
        """Forget the user of that name, if there is one."""
        self._users.pop(name, None)

    def save(self) -> None:
        """Write the file."""
        write_atomically(self._path, msgspec.json.encode(self.all()))


def _check_user(user: BrokerUser) -> None:
    """Refuse what a broker would read otherwise than we mean it: both write their rules in a language of their own."""
    if not _NAME.fullmatch(user.name):
        raise LocalMisuseError(f"broker user: expected a name of [a-z0-9_-]{{1,64}}, got {user.name!r}")
    if not _PASSWORD.fullmatch(user.password):
        raise LocalMisuseError(f"password of {user.name}: expected 16 to 128 characters of [A-Za-z0-9_-]")
    for topic_filter in user.publish + user.subscribe:
        levels = topic_filter.split("/")
        if (
            len(levels) > _LEVELS_MAX
            or not all(_LEVEL.fullmatch(level) for level in levels)
            or "#" in levels[:-1]
            or levels == ["#"]
        ):
            raise LocalMisuseError(
                f"topic filter of {user.name}: expected at most {_LEVELS_MAX} levels of [a-z0-9_-]{{1,48}}, "
                f"'+' or a last '#', got {topic_filter!r}"
            )
