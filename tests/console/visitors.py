"""A console on a sample fleet, and the three who visit it: nobody, a viewer, an operator."""

import atexit
import functools
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import argon2
import msgspec
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from cloud_aggregator.adapters.accounts import Accounts
from cloud_aggregator.adapters.database import Database
from cloud_aggregator.adapters.keyring import make_keys
from cloud_aggregator.config import AggregatorSettings, database_url
from cloud_aggregator.console.application import create_app
from cloud_aggregator.console.context import EXTENSION, Parts
from cloud_aggregator.service import ENDPOINT_NAME, KEYS_NAME, Endpoint
from tests.console.sample_fleet import fill_fleet

NOW_S = 1_795_000_000.0
PASSWORD = "correct horse battery staple"
QUICK_HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)  # Guards nothing but these tests.
USERS = {"viewer": "vera", "operator": "anna"}


class Visitor:
    """One browser, as far as a console needs one: it keeps cookies and sends forms with their token."""

    def __init__(self, app: Flask, address: str = "10.0.0.7") -> None:
        self.client: FlaskClient = app.test_client()
        self.address = address

    def get(self, path: str, **headers: str) -> TestResponse:
        """Load a page."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.get(path, headers=named, environ_base={"REMOTE_ADDR": self.address})

    def post(self, path: str, **fields: Any) -> TestResponse:
        """Send a form with the token of a page of ours, unless one is given."""
        data = {"form_token": fields.get("form_token") or self.form_token(), **fields}
        return self.client.post(path, data=data, environ_base={"REMOTE_ADDR": self.address})

    def form_token(self) -> str:
        """Return the token that our pages give this visitor."""
        page = self.get("/account")
        page = self.get("/login") if page.status_code != 200 else page
        found = re.search(r'name="form_token" value="([0-9a-f]+)"', page.text)
        assert found is not None
        return found[1]

    def sign_in(self, user: str, password: str = PASSWORD) -> TestResponse:
        """Fill in the login form."""
        return self.post("/login", user=user, password=password)

    @property
    def cookie(self) -> str:
        """The session's cookie."""
        cookie = self.client.get_cookie("fallow")
        return "" if cookie is None else cookie.value


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


def make_console(
    folder: Path, clock: Callable[[], float], settings: AggregatorSettings | None = None, **fleet: Any
) -> Flask:
    """Return a console with a sample fleet, a viewer and an operator."""
    settings = settings or AggregatorSettings(fleet="demo")
    folder.mkdir(exist_ok=True)
    make_keys(folder / KEYS_NAME)
    (folder / ENDPOINT_NAME).write_bytes(msgspec.json.encode(Endpoint("127.0.0.1", 1883)))
    shutil.copyfile(_filled_database(tuple(fleet.items())), folder / "aggregator.db")
    return create_app(folder, settings, lambda engine: Accounts(engine, clock, QUICK_HASHER))


@functools.cache
def _filled_database(fleet: tuple[tuple[str, Any], ...]) -> Path:
    """Make a database once for all tests that want the same."""
    path = Path(tempfile.mkdtemp(prefix="fallow-console-")) / "aggregator.db"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    database = Database(f"sqlite:///{path}")
    if dict(fleet).get("device_count", 1):
        fill_fleet(database.engine, now_s=NOW_S, **dict(fleet))
    accounts = Accounts(database.engine, lambda: NOW_S, QUICK_HASHER)
    accounts.create_user("vera", "viewer", PASSWORD)
    accounts.create_user("anna", "operator", PASSWORD)
    database.close()  # The last connection brings all of the write-ahead log into the file.
    return path


def visit_as(app: Flask, role: str) -> Visitor:
    """Return a visitor who is signed in as ``role``; for "nobody" one who is not."""
    visitor = Visitor(app)
    if role in USERS:
        assert visitor.sign_in(USERS[role]).status_code == 303
    return visitor


def parts_of(app: Flask) -> Parts:
    """Return what ``app`` is made of."""
    parts = app.extensions[EXTENSION]
    assert isinstance(parts, Parts)
    return parts


@contextmanager
def commands_taken(folder: Path, settings: AggregatorSettings, refusal: str | None = None) -> Iterator[list[str]]:
    """Stand in for the coordinator: take commands and conclude them; yields who asked."""
    database = Database(database_url(folder, settings))
    actors: list[str] = []
    is_over = threading.Event()

    def take() -> None:
        while not is_over.wait(0.01):
            with database.transaction() as tx:
                for row in tx.open_commands():
                    actors.append(row.actor)
                    tx.conclude_command(row.number, refusal)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        yield actors
    finally:
        is_over.set()
        thread.join()
        database.close()
