"""The command ``edge-agent``. Heavy imports stay inside the commands that need them: `run` must stay light."""

import argparse
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

from federated_core.errors import AdapterError, FallowError, LocalMisuseError

EXIT_OK, EXIT_MISUSE, EXIT_WORLD = 0, 2, 3


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 asked wrongly, 3 the world is in the way."""
    options = _make_parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    os.umask(0o077)  # Keys, credentials and the owner's examples: nobody else on this machine may read them.
    try:
        return int(options.command(options))
    except AdapterError as error:
        print(f"edge-agent: {error}", file=sys.stderr)
        return EXIT_WORLD
    except FallowError as error:
        print(f"edge-agent: {error}", file=sys.stderr)
        return EXIT_MISUSE


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge-agent", description="Learns on this device while it rests.")
    parser.add_argument("--verbose", action="store_true", help="log details")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument(
            "--state",
            type=Path,
            default=Path("/var/lib/fallow"),
            help="folder of this agent's state (default: %(default)s)",
        )
        sub.set_defaults(command=command)
        return sub

    enroll = add("enroll", _enroll, "join a fleet with a token from its operator")
    enroll.add_argument("--token", required=True, help="the token, or @FILE that holds it")
    enroll.add_argument(
        "--timeout", type=float, default=60.0, help="seconds to wait for an answer (default: %(default)s)"
    )
    run = add("run", _run, "take part: check in while eligible, train, report; until it is stopped")
    run.add_argument("--token", help="enroll first, if that was not done yet: the token, or @FILE that holds it")
    run.add_argument(
        "--timeout", type=float, default=60.0, help="seconds to wait for enrollment (default: %(default)s)"
    )
    status = add("status", _status, "show what this agent is, holds and does")
    status.add_argument("--json", action="store_true", help="as JSON")
    predict = add("predict", _predict, "ask the installed model about the examples of an .npz file with an array x")
    predict.add_argument("file", type=Path)
    predict.add_argument("--family", help="which model, if several are installed")
    predict.add_argument("--json", action="store_true", help="as JSON, with all scores")
    data = add("import", _import, "add labelled examples from an .npz file with arrays x, y and time_s")
    data.add_argument("files", type=Path, nargs="+")
    data.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _enroll(options: argparse.Namespace) -> int:
    from edge_agent.enroll import enroll

    try:
        text = Path(options.token[1:]).read_text() if options.token.startswith("@") else options.token
    except OSError as error:
        raise LocalMisuseError(f"{options.token[1:]}: cannot be read ({error.strerror})") from error
    identity = enroll(options.state, text, options.timeout, lambda trouble: print(trouble, file=sys.stderr))
    assert identity.grant is not None
    print(f"enrolled as {identity.grant.device} in fleet {identity.grant.fleet}")
    return EXIT_OK


def _run(options: argparse.Namespace) -> int:
    from edge_agent.adapters.chance import SystemChance
    from edge_agent.adapters.engine_name import engine_name
    from edge_agent.adapters.identity import load_identity
    from edge_agent.adapters.journal import Journal
    from edge_agent.adapters.sensors import Sensors
    from edge_agent.adapters.trainer_process import DEFAULT_COMMAND, open_trainer
    from edge_agent.adapters.trial_process import open_trial
    from edge_agent.config import load_settings
    from edge_agent.runtime import News, Runtime, StopAsked
    from federated_core.adapters.blob_store import BlobStore
    from federated_core.adapters.inbox import Inbox
    from federated_core.adapters.link import LinkSettings
    from federated_core.adapters.mqtt_link import MqttLink
    from federated_core.protocol import topics

    folder: Path = options.state
    if options.token is not None:
        _enroll(options)
    settings = load_settings(folder)
    identity = load_identity(folder)
    if identity is None or identity.grant is None:
        raise LocalMisuseError(
            f"{folder}: this device is not enrolled; run: edge-agent enroll --state {folder} --token TOKEN"
        )
    inbox: Inbox[News] = Inbox()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: inbox.put(StopAsked()))
    link = MqttLink(
        LinkSettings(
            host=identity.token.host,
            port=identity.token.port,
            username=identity.grant.username,
            password=identity.grant.password,
            client_id=identity.client_id,
            subscriptions=topics.device_subscriptions(identity.grant.fleet, identity.grant.device),
            ca_pem=identity.token.ca_pem,
            reconnect_min_s=settings.reconnect_min_s,
            reconnect_max_s=settings.reconnect_max_s,
        ),
        inbox.put,
    )
    journal = Journal(folder / "journal.db")
    runtime = Runtime(
        folder=folder,
        settings=settings,
        identity=identity,
        inbox=inbox,
        link=link,
        journal=journal,
        blobs=BlobStore(folder, open_max=32),
        trainer=open_trainer(inbox.put, settings.trainer.command or DEFAULT_COMMAND, settings.trainer.thread_count),
        trial=open_trial(inbox.put),
        sensors=Sensors(folder, settings.eligibility),
        chance=SystemChance(),
        now_s=time.time,
        engine=engine_name(),
    )
    try:
        runtime.run()
    finally:
        link.close()
        journal.close()
    return EXIT_OK


def _status(options: argparse.Namespace) -> int:
    from edge_agent.status import describe, read_status

    status = read_status(options.state)
    print(json.dumps(status, indent=2) if options.json else describe(status, time.time()))
    return EXIT_OK


def _predict(options: argparse.Namespace) -> int:
    from edge_agent.adapters.example_store import read_inputs_file
    from edge_agent.local_model import LocalModel

    model = LocalModel(options.state, options.family)
    scores = model.predict(read_inputs_file(options.file))
    release, classes = model.release, model.classes
    if options.json:
        print(json.dumps({"release": release.number, "version": release.version, "scores": scores.tolist()}))
    else:
        for row in scores:
            best = int(row.argmax())
            print(classes[best] if classes else best)
    return EXIT_OK


def _import(options: argparse.Namespace) -> int:
    from edge_agent.adapters.example_store import ExampleStore, read_examples_file
    from edge_agent.config import load_settings

    options.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings = load_settings(options.state)
    store = ExampleStore(options.state / "examples.db")
    new_count = sum(store.add(*read_examples_file(path), settings.store) for path in options.files)
    counts = store.counts()
    if options.json:
        print(json.dumps({"new": new_count, **counts}))
    else:
        kinds = ", ".join(f"{count} {partition}" for partition, count in sorted(counts.items()))
        print(f"{new_count} new examples; the store holds {kinds or 'none'}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
