"""The agent's settings: `agent.toml`, every field with its unit, default and bound."""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from edge_agent.eligibility import Policy
from federated_core.adapters.settings_file import read_settings_file

CONFIG_NAME = "agent.toml"


class TrainerSettings(msgspec.Struct, frozen=True):
    """How the trainer process runs."""

    command: tuple[str, ...] = ()  # Empty: this Python runs `edge_agent.trainer`.
    thread_count: Annotated[int, Meta(ge=1, le=64)] = 1
    linger_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 20.0  # Kept after a round, for the next one.
    grace_s: Annotated[float, Meta(ge=0.0, le=60.0)] = 1.0  # From asking it to end to killing it.


class StoreSettings(msgspec.Struct, frozen=True):
    """How examples are split for life into training and holdout, by blocks of time with a gap."""

    block_s: Annotated[float, Meta(gt=0.0, le=31_536_000.0)] = 600.0
    holdout_every: Annotated[int, Meta(ge=2, le=1000)] = 5  # One block in this many is holdout.
    gap_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 10.0  # Left out on either side of a border.


class ReleaseSettings(msgspec.Struct, frozen=True):
    """Which releases this device takes, and how it tries them."""

    families: tuple[str, ...] = ()  # Names of models; empty: whatever the fleet releases.
    size_max_mib: Annotated[int, Meta(ge=1, le=1024)] = 64  # Of a bundle, and again of a checkpoint.
    trial_timeout_s: Annotated[float, Meta(ge=1.0, le=86_400.0)] = 300.0  # For installing a release, and for its trial.
    status_interval_s: Annotated[float, Meta(ge=1.0, le=2_678_400.0)] = 21_600.0  # Between words about what runs.


class AgentSettings(msgspec.Struct, frozen=True):
    """All settings of one agent."""

    eligibility: Policy = Policy()
    trainer: TrainerSettings = TrainerSettings()
    store: StoreSettings = StoreSettings()
    releases: ReleaseSettings = ReleaseSettings()
    answer_timeout_s: Annotated[float, Meta(ge=0.1, le=3600.0)] = 30.0  # Silence after which something is said again.
    watch_interval_s: Annotated[float, Meta(ge=0.1, le=60.0)] = 1.0  # Between looks at the sensors while training.
    idle_interval_s: Annotated[float, Meta(ge=1.0, le=3600.0)] = 30.0  # Between looks while resting.
    reconnect_min_s: Annotated[float, Meta(ge=0.1, le=600.0)] = 1.0
    reconnect_max_s: Annotated[float, Meta(ge=0.1, le=3600.0)] = 60.0


def load_settings(folder: Path) -> AgentSettings:
    """Return the settings of the agent whose state lies in ``folder``; defaults where the file says nothing."""
    return read_settings_file(folder / CONFIG_NAME, AgentSettings)
