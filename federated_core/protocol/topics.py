"""The only place that spells a topic.

``fallow/v1/<fleet>/d/<device>/{up,down}`` is a device's own pair, ``fallow/v1/<fleet>/t/<task>`` is what a whole cohort
hears, ``fallow/v1/<fleet>/enroll/<token>/{up,down}`` is used once, before a device has an identity.
"""

import re

import msgspec

from federated_core.errors import LocalMisuseError, RemoteProtocolError

PREFIX = "fallow/v1"
IDENTIFIER = re.compile(r"[a-z0-9_-]{1,48}")


class DeviceUp(msgspec.Struct, frozen=True):
    """A message from a device."""

    fleet: str
    device: str


class DeviceDown(msgspec.Struct, frozen=True):
    """A message to one device."""

    fleet: str
    device: str


class TaskMulticast(msgspec.Struct, frozen=True):
    """A message to every device that listens to a task."""

    fleet: str
    task: str


class EnrollUp(msgspec.Struct, frozen=True):
    """A request for an identity, made with a token."""

    fleet: str
    token: str


class EnrollDown(msgspec.Struct, frozen=True):
    """The answer to such a request."""

    fleet: str
    token: str


Address = DeviceUp | DeviceDown | TaskMulticast | EnrollUp | EnrollDown


def check_identifier(value: str, what: str) -> str:
    """Return ``value`` if it may stand in a topic (1 to 48 of a-z, 0-9, ``_``, ``-``), else raise LocalMisuseError."""
    if IDENTIFIER.fullmatch(value) is None:
        raise LocalMisuseError(f"{what}: expected 1 to 48 characters of a-z, 0-9, '_' and '-', got {value!r}")
    return value


def spell(address: Address) -> str:
    """Return the topic of ``address``."""
    match address:
        case DeviceUp(fleet, device):
            return device_up(fleet, device)
        case DeviceDown(fleet, device):
            return device_down(fleet, device)
        case TaskMulticast(fleet, task):
            return f"{PREFIX}/{fleet}/t/{task}"
        case EnrollUp(fleet, token):
            return f"{PREFIX}/{fleet}/enroll/{token}/up"
        case EnrollDown(fleet, token):
            return f"{PREFIX}/{fleet}/enroll/{token}/down"


def parse(topic: str) -> Address:
    """Return the address that ``topic`` spells, or raise RemoteProtocolError."""
    levels = topic.split("/")
    if levels[:2] == PREFIX.split("/") and all(IDENTIFIER.fullmatch(level) for level in levels[2:]):
        match levels[2:]:
            case [fleet, "d", device, "up"]:
                return DeviceUp(fleet, device)
            case [fleet, "d", device, "down"]:
                return DeviceDown(fleet, device)
            case [fleet, "t", task]:
                return TaskMulticast(fleet, task)
            case [fleet, "enroll", token, "up"]:
                return EnrollUp(fleet, token)
            case [fleet, "enroll", token, "down"]:
                return EnrollDown(fleet, token)
    raise RemoteProtocolError(f"topic: expected one of {PREFIX}/..., got {topic[:200]!r}")


def device_up(fleet: str, device: str) -> str:
    """Topic on which ``device`` speaks."""
    return f"{PREFIX}/{fleet}/d/{device}/up"


def device_down(fleet: str, device: str) -> str:
    """Topic on which ``device`` is spoken to."""
    return f"{PREFIX}/{fleet}/d/{device}/down"


def task_multicast(fleet: str, task: str) -> str:
    """Topic that the cohort of ``task`` hears."""
    return f"{PREFIX}/{fleet}/t/{task}"


def enroll_up(fleet: str, token: str) -> str:
    """Topic on which the holder of ``token`` asks for an identity."""
    return f"{PREFIX}/{fleet}/enroll/{token}/up"


def enroll_down(fleet: str, token: str) -> str:
    """Topic on which the holder of ``token`` is answered."""
    return f"{PREFIX}/{fleet}/enroll/{token}/down"


def device_subscriptions(fleet: str, device: str) -> tuple[str, ...]:
    """Filters that a device subscribes to, and the only ones it may."""
    return (device_down(fleet, device), f"{PREFIX}/{fleet}/t/#")


def aggregator_subscriptions(fleet: str) -> tuple[str, ...]:
    """Filters that the aggregator subscribes to."""
    return (f"{PREFIX}/{fleet}/d/+/up", f"{PREFIX}/{fleet}/enroll/+/up")


def everything(fleet: str) -> str:
    """Filter over all topics of a fleet: what the aggregator may publish."""
    return f"{PREFIX}/{fleet}/#"
