"""The life of a real broker: users come and go, it is killed, it is closed to the old and the forged."""

import dataclasses
import os
import queue
import select
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cloud_aggregator.adapters.brokers.directory import BrokerUser, UserStore
from cloud_aggregator.adapters.brokers.embedded_nats import EmbeddedNats
from cloud_aggregator.adapters.brokers.mosquitto_site import MosquittoChild, MosquittoSite
from federated_core.errors import AdapterError, LocalMisuseError
from federated_core.protocol import topics
from tests.adapters.listener import DEADLINE_S
from tests.broker.conftest import FLEET, Operator
from tests.broker.spying_proxy import SpyingProxy

pytestmark = pytest.mark.broker

A_UP = topics.device_up(FLEET, "a")


def test_200_chunks_of_64_kib_arrive(operator: Operator) -> None:
    device, aggregator = operator.add_device("a"), operator.add_aggregator()
    operator.broker.apply()
    ear, mouth = operator.connect(aggregator), operator.connect(device)
    for index in range(200):
        mouth.link.send(A_UP, index.to_bytes(2, "big") + bytes(65534))
    ear.wait_until(lambda: len(ear.heard) >= 200)
    assert [int.from_bytes(message.payload[:2], "big") for message in ear.heard] == list(range(200))
    assert ear.link.received_bytes == mouth.link.sent_bytes == 200 * 65536


def test_users_come_and_go_while_others_stay_connected(operator: Operator) -> None:
    stays, leaves, aggregator = operator.add_device("a"), operator.add_device("b"), operator.add_aggregator()
    operator.broker.apply()
    ear, staying, leaving = operator.connect(aggregator), operator.connect(stays), operator.connect(leaves)
    comes = operator.add_device("c")
    operator.broker.apply()
    coming = operator.connect(comes)
    operator.broker.remove_user("b")
    operator.broker.apply()
    assert leaving.wait_down() == "the connection was lost"
    assert leaving.wait_down() == "the broker refused the connection: not authorized"
    staying.link.send(A_UP, b"from the one who stays")
    coming.link.send(topics.device_up(FLEET, "c"), b"from the one who came")
    ear.wait_for_payload(b"from the one who stays")
    ear.wait_for_payload(b"from the one who came")
    for link in (ear, staying, coming):
        link.drain()
        assert link.down == []
    assert [user.name for user in operator.broker.users()] == ["a", "aggregator", "c"]


def test_a_new_password_replaces_the_old(operator: Operator) -> None:
    former = operator.add_device("a")
    operator.broker.apply()
    operator.connect(former).link.close()
    current = operator.add_device("a")
    operator.broker.apply()
    operator.connect(current)
    assert operator.open(operator.settings(former)).wait_down() == "the broker refused the connection: not authorized"


def test_the_window_holds_across_a_kill_of_the_broker_and_the_link_recovers(operator: Operator) -> None:
    device, aggregator = operator.add_device("a"), operator.add_aggregator()
    operator.broker.apply()
    ear = operator.connect(aggregator)
    with SpyingProxy(operator.broker.port) as proxy:
        mouth = operator.open(dataclasses.replace(operator.settings(device), port=proxy.port)).wait_up()
        for index in range(100):
            mouth.link.send(A_UP, index.to_bytes(2, "big") + bytes(60000))
        mouth.wait_sent(20)
        os.kill(operator.broker.pid, signal.SIGKILL)
        assert "was killed by signal 9" in operator.exits.get(timeout=DEADLINE_S)
        mouth.wait_down()
        operator.broker.start()
        mouth.wait_sent(100)  # Acknowledged by the broker, which is no proof that it was delivered.
        ear.wait_up()
        mouth.link.send(A_UP, b"afterwards")
        ear.wait_for_payload(b"afterwards")
        assert mouth.sent_tickets == list(range(1, 101))
        assert proxy.connection_count >= 2
        assert 2 <= proxy.unacknowledged_max <= 4
        mouth.link.close()


def test_users_and_port_survive_a_restart(operator: Operator, tmp_path: Path) -> None:
    device = operator.add_device("a")
    operator.broker.apply()
    operator.broker.stop()
    again = type(operator.broker)(tmp_path / "broker")
    assert (again.users(), again.port) == ((device,), operator.broker.port)
    again.start()
    try:
        operator.connect(device).link.close()
    finally:
        again.stop()


def test_secrets_are_readable_by_us_alone(operator: Operator, tmp_path: Path) -> None:
    operator.add_device("a")
    operator.broker.apply()
    own = [path for path in (tmp_path / "broker").iterdir() if path.is_file() and path.name != "pid"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in own} == {0o600}
    assert "users.json" in {path.name for path in own}


def test_a_stopped_broker_reports_no_exit_and_a_running_one_starts_once(operator: Operator) -> None:
    with pytest.raises(LocalMisuseError, match="is running"):
        operator.broker.start()
    operator.broker.stop()
    operator.broker.stop()
    assert operator.exits.empty()
    with pytest.raises(AdapterError, match="is not running"):
        _ = operator.broker.pid


def test_a_port_in_use_is_told_with_the_broker_s_own_words(operator: Operator, tmp_path: Path) -> None:
    second = type(operator.broker)(tmp_path / "second", port=operator.broker.port)
    with pytest.raises(AdapterError, match=r"(?i)address already in use"):
        second.start()


def test_a_broker_dies_with_the_aggregator_that_was_killed(operator: Operator, tmp_path: Path) -> None:
    kind = type(operator.broker)
    program = (
        "import sys; from pathlib import Path\n"
        f"from {kind.__module__} import {kind.__name__}\n"
        f"broker = {kind.__name__}(Path(sys.argv[1])); broker.start()\n"
        "print(broker.pid, flush=True); sys.stdin.read()\n"
    )
    folder = tmp_path / "orphan"
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as aggregator:
        assert aggregator.stdout is not None
        broker = os.pidfd_open(int(aggregator.stdout.readline()))
        aggregator.kill()
    try:
        assert select.select([broker], [], [], DEADLINE_S)[0], "the broker outlived its aggregator"
    finally:
        os.close(broker)
    successor = kind(folder)
    successor.start()
    successor.stop()


@pytest.mark.parametrize("broker_kind", [pytest.param(EmbeddedNats, id="nats")], indirect=True)
def test_a_file_that_the_server_refuses_changes_nothing_in_it(operator: Operator, tmp_path: Path) -> None:
    device = operator.add_device("a")
    operator.broker.apply()
    link = operator.connect(device)
    configuration = tmp_path / "broker" / "nats.conf"
    whole = configuration.read_text()
    configuration.write_text(whole + "mqtt {")
    later = operator.add_device("b")
    with pytest.raises(AdapterError, match="keeps its former users: Failed to reload"):
        operator.broker.apply()
    assert operator.open(operator.settings(later)).wait_down() == "the broker refused the connection: not authorized"
    configuration.write_text(whole)
    operator.broker.apply()
    operator.connect(later)
    link.drain()
    assert link.down == []


def test_a_server_that_is_too_old_or_absent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "nats-server"
    old.write_text("#!/bin/sh\necho 'nats-server: v2.12.4'\n")
    old.chmod(0o700)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(AdapterError, match=r"at least version 2\.12\.5, got 'nats-server: v2\.12\.4'"):
        EmbeddedNats(tmp_path / "broker").start()
    old.unlink()
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AdapterError, match=r"no nats-server: install 'fallow\[cloud\]'.*mosquitto 2"):
        EmbeddedNats(tmp_path / "broker").start()


def test_a_site_s_broker_that_is_not_there_is_an_adapter_error(tmp_path: Path) -> None:
    site = MosquittoSite(tmp_path, pid_file=tmp_path / "pid", host="127.0.0.1", port=1, live_timeout_s=0.1)
    with pytest.raises(AdapterError, match="cannot signal mosquitto"):
        site.apply()
    with pytest.raises(AdapterError, match="expected a group of this machine"):
        MosquittoSite(tmp_path, pid_file=tmp_path / "pid", host="", port=1, reader_group="no-such-group")


@pytest.mark.needs_program("mosquitto", "mosquitto")
def test_a_site_s_broker_that_does_not_answer_is_an_adapter_error(tmp_path: Path) -> None:
    broker = MosquittoChild(tmp_path)
    broker.start()
    try:
        site = MosquittoSite(tmp_path, pid_file=tmp_path / "pid", host="127.0.0.1", port=1, live_timeout_s=0.5)
        with pytest.raises(AdapterError, match=r"let nobody in for 0\.5 s: no connection to"):
            site.apply()
    finally:
        broker.stop()


@pytest.mark.parametrize(
    "user",
    [
        BrokerUser("A", "a-password-of-16", (), ()),
        BrokerUser("a b", "a-password-of-16", (), ()),
        BrokerUser("a\nuser b", "a-password-of-16", (), ()),
        BrokerUser("a", "too-short", (), ()),
        BrokerUser("a", 'a-password-of-16"', (), ()),
        BrokerUser("a", "a-password-of-16", ("#",), ()),
        BrokerUser("a", "a-password-of-16", ("a.b/c",), ()),
        BrokerUser("a", "a-password-of-16", ("a/#/c",), ()),
        BrokerUser("a", "a-password-of-16", (), ("a//c",)),
        BrokerUser("a", "a-password-of-16", (), ('a"',)),
        BrokerUser("a", "a-password-of-16", (), ("a/b/c/d/e/f/g/h/i",)),
        BrokerUser("a", "a-password-of-16", (), ("$SYS/#",)),
    ],
)
def test_what_a_broker_might_read_otherwise_is_no_user(tmp_path: Path, user: BrokerUser) -> None:
    with pytest.raises(LocalMisuseError):
        UserStore(tmp_path / "users.json").add(user)


def test_a_password_is_not_printed() -> None:
    assert "a-password-of-16" not in repr(BrokerUser("a", "a-password-of-16", (), ()))


def test_a_users_file_that_is_no_list_of_users_is_an_adapter_error(tmp_path: Path) -> None:
    (tmp_path / "users.json").write_text('[{"name": 1}]')
    with pytest.raises(AdapterError, match=r"expected `str`, got `int`|Expected `str`, got `int`"):
        UserStore(tmp_path / "users.json")


def test_an_exit_before_it_is_asked_for_is_reported_with_the_last_words(operator: Operator) -> None:
    os.kill(operator.broker.pid, signal.SIGTERM)
    reason = operator.exits.get(timeout=DEADLINE_S)
    assert "its last lines:\n" in reason
    with pytest.raises(queue.Empty):
        operator.exits.get_nowait()
