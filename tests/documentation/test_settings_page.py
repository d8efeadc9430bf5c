"""docs/settings.md shows every setting of both sides with its default."""

import re

import msgspec
import pytest

from cloud_aggregator.config import AggregatorSettings
from edge_agent.config import AgentSettings
from federated_core.configuration import parse_toml
from tests.documentation.sources import ROOT

PAGE = ROOT / "docs" / "settings.md"


@pytest.mark.parametrize(
    ("file", "settings"), [("agent.toml", AgentSettings()), ("aggregator.toml", AggregatorSettings())]
)
def test_the_page_shows_every_setting_with_its_default(file: str, settings: msgspec.Struct) -> None:
    shown = re.search(rf"```toml\n(# {re.escape(file)}\b.*?)```", PAGE.read_text(), re.DOTALL)
    assert shown is not None, f"docs/settings.md: expected a toml block that begins with '# {file}'"
    assert parse_toml(shown[1], file) == msgspec.json.decode(msgspec.json.encode(settings))
