"""A real console process on a sample fleet."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloud_aggregator.adapters.accounts import Accounts
from cloud_aggregator.adapters.database import Database
from cloud_aggregator.adapters.keyring import make_keys
from cloud_aggregator.config import AggregatorSettings, ConsoleSettings, database_url
from cloud_aggregator.console_process import ConsoleProcess
from cloud_aggregator.service import KEYS_NAME
from tests.console.sample_fleet import fill_fleet

PASSWORD = "correct horse battery staple"
SETTINGS = AggregatorSettings(fleet="demo", console=ConsoleSettings(enabled=True, port=0))


@contextmanager
def served_console(folder: Path, **fleet: Any) -> Iterator[str]:
    """Serve the console of a sample fleet, or of an empty one with ``device_count=0``; yields its address."""
    folder.mkdir(parents=True, exist_ok=True)
    make_keys(folder / KEYS_NAME)
    (folder / "aggregator.toml").write_text('fleet = "demo"\n')
    database = Database(database_url(folder, SETTINGS))
    accounts = Accounts(database.engine)
    accounts.create_user("anna", "operator", PASSWORD)
    if fleet.get("device_count", 1):
        fill_fleet(database.engine, now_s=accounts.now_s(), **fleet)
    console = ConsoleProcess(folder, SETTINGS.console)
    try:
        yield console.address
    finally:
        console.stop()
        database.close()
