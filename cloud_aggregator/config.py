"""The aggregator's settings: `aggregator.toml`, every field with its unit, default and bound."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cloud_aggregator.rollout import RolloutPolicy
from federated_core.adapters.settings_file import read_settings_file
from federated_core.protocol.messages import Identifier

CONFIG_NAME = "aggregator.toml"


class BrokerSettings(msgspec.Struct, frozen=True):
    """Which broker carries the messages."""

    kind: Literal["embedded", "mosquitto-child", "mosquitto-site"] = "embedded"
    host: Annotated[str, Meta(min_length=1, max_length=255)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 0  # 0: a free one, drawn once.
    advertised_host: str = ""  # What tokens tell devices; empty means `host`.
    pid_file: str = ""  # Of a site's mosquitto, which re-reads its files on SIGHUP.


class PacingSettings(msgspec.Struct, frozen=True):
    """When devices come back."""

    accepted_min_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 0.0  # After a report that counts.
    accepted_max_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 5.0
    rejected_min_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 5.0  # After a rejection or a cancellation.
    rejected_max_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 30.0
    resting_min_s: Annotated[float, Meta(ge=0.0, le=2_678_400.0)] = 300.0  # While there is nothing to do.
    resting_max_s: Annotated[float, Meta(ge=0.0, le=2_678_400.0)] = 900.0


class ConsoleSettings(msgspec.Struct, frozen=True):
    """The web console; `serve --console-port` switches it on too."""

    enabled: bool = False
    host: Annotated[str, Meta(min_length=1, max_length=255)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8321  # 0: a free one, another one at each start.
    proxy_count: Annotated[int, Meta(ge=0, le=4)] = 0  # Reverse proxies whose X-Forwarded headers are believed.
    metrics_token_file: str = ""  # Holds the token with which a program may read /metrics.


class ReleaseSettings(msgspec.Struct, frozen=True):
    """What holds for a release unless its promotion says otherwise."""

    rollout: RolloutPolicy = RolloutPolicy()
    lifetime_s: Annotated[float, Meta(ge=60.0, le=315_360_000.0)] = 2_592_000.0  # From signing to expiry.
    accuracy_drop_max: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.05  # How much worse than what runs a trial may be.
    announcement_spread_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 5.0  # Over which devices answer one.


class AggregatorSettings(msgspec.Struct, frozen=True):
    """All settings of one aggregator."""

    fleet: Identifier = "fleet"
    database_url: str = ""  # Empty: SQLite beside the settings.
    broker: BrokerSettings = BrokerSettings()
    pacing: PacingSettings = PacingSettings()
    console: ConsoleSettings = ConsoleSettings()
    release: ReleaseSettings = ReleaseSettings()
    command_interval_s: Annotated[float, Meta(ge=0.05, le=60.0)] = 0.25  # Between looks for the operator's commands.
    update_quiet_s: Annotated[float, Meta(ge=0.1, le=600.0)] = 2.0  # Silence after which missing chunks are asked for.


def load_settings(folder: Path) -> AggregatorSettings:
    """Return the settings of the aggregator whose state lies in ``folder``; defaults where the file says nothing."""
    return read_settings_file(folder / CONFIG_NAME, AggregatorSettings)


def database_url(folder: Path, settings: AggregatorSettings) -> str:
    """Return where the state is kept in SQL."""
    return settings.database_url or f"sqlite:///{folder / 'aggregator.db'}"
