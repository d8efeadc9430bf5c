"""The running aggregator: broker, link, blobs, database and the coordinator that ties them together."""

import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from cloud_aggregator.adapters.brokers.directory import BrokerDirectory, BrokerUser, new_password
from cloud_aggregator.adapters.brokers.embedded_nats import EmbeddedNats
from cloud_aggregator.adapters.brokers.mosquitto_site import MosquittoChild, MosquittoSite
from cloud_aggregator.adapters.database import Database, Event
from cloud_aggregator.adapters.keyring import load_keyring, make_keys
from cloud_aggregator.config import AggregatorSettings, database_url
from cloud_aggregator.console_process import ConsoleProcess
from cloud_aggregator.coordinator import BrokerExited, Coordinator, News, StopAsked
from cloud_aggregator.service import BLOBS_NAME, ENDPOINT_NAME, KEYS_NAME, Endpoint
from federated_core.adapters.atomic_file import write_atomically
from federated_core.adapters.blob_store import BlobStore
from federated_core.adapters.inbox import Inbox
from federated_core.adapters.link import LinkSettings
from federated_core.adapters.mqtt_link import MqttLink
from federated_core.errors import LocalMisuseError
from federated_core.protocol import topics

AGGREGATOR_USER = "aggregator"
_QUEUE_MAX = 4096  # Messages that wait for the broker: at most 256 MiB, in practice a few hundred small ones.
_UPDATES_OPEN_MAX = 4096


def serve(
    folder: Path,
    settings: AggregatorSettings,
    announce: Callable[[Event], None],
    ready: Callable[[Endpoint, str | None], None],
) -> None:
    """Run until SIGTERM or SIGINT. ``ready`` hears where devices connect, and where the console is if there is one."""
    inbox: Inbox[News] = Inbox()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: inbox.put(StopAsked()))
    make_keys(folder / KEYS_NAME)
    keyring = load_keyring(folder / KEYS_NAME)
    database = Database(database_url(folder, settings))
    blobs = BlobStore(folder / BLOBS_NAME, size_max_bytes=512 * 1024 * 1024, open_max=_UPDATES_OPEN_MAX)
    broker, child = _make_broker(folder / "broker", settings, lambda reason: inbox.put(BrokerExited(reason)))
    password = new_password()
    broker.add_user(
        BrokerUser(
            AGGREGATOR_USER,
            password,
            publish=(topics.everything(settings.fleet),),
            subscribe=topics.aggregator_subscriptions(settings.fleet),
        )
    )
    link, console = None, None
    try:
        if child is not None:
            child.start()
        else:
            broker.apply()
        host, port = (settings.broker.host, settings.broker.port) if child is None else (child.host, child.port)
        link = MqttLink(
            LinkSettings(
                host=host,
                port=port,
                username=AGGREGATOR_USER,
                password=password,
                client_id=keyring.client_id,
                clean_session=False,
                subscriptions=topics.aggregator_subscriptions(settings.fleet),
                queue_max=_QUEUE_MAX,
                reconnect_min_s=0.2,
                reconnect_max_s=5.0,
            ),
            inbox.put,
        )
        coordinator = Coordinator(
            settings=settings,
            keyring=keyring,
            database=database,
            blobs=blobs,
            inbox=inbox,
            link=link,
            broker=broker,
            restart_broker=child.start if child is not None else lambda: None,
            announce=announce,
        )
        endpoint = Endpoint(settings.broker.advertised_host or host, port)
        write_atomically(folder / ENDPOINT_NAME, msgspec.json.encode(endpoint))
        if settings.console.enabled:
            console = ConsoleProcess(folder, settings.console)
        ready(endpoint, console.address if console is not None else None)
        coordinator.run()
    finally:
        if console is not None:
            console.stop()
        if link is not None:
            link.close()
        if child is not None:
            child.stop()
        database.close()


def _make_broker(
    folder: Path, settings: AggregatorSettings, on_exit: Callable[[str], None]
) -> tuple[BrokerDirectory, EmbeddedNats | MosquittoChild | None]:
    """Return the directory of the broker's users, and the broker itself if it is ours to run."""
    wanted = settings.broker
    match wanted.kind:
        case "embedded":
            nats = EmbeddedNats(folder, host=wanted.host, port=wanted.port, on_exit=on_exit)
            return nats, nats
        case "mosquitto-child":
            mosquitto = MosquittoChild(folder, host=wanted.host, port=wanted.port, on_exit=on_exit)
            return mosquitto, mosquitto
        case "mosquitto-site":
            if not wanted.pid_file or not wanted.port:
                raise LocalMisuseError("broker: a site's mosquitto needs its port and its pid_file in the settings")
            return MosquittoSite(folder, pid_file=Path(wanted.pid_file), host=wanted.host, port=wanted.port), None
