"""``scripts/bench NAME``: run one benchmark, print its figures, write them as JSON."""

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.benchmarks import demo, train
from scripts.benchmarks.console import measure_console
from scripts.benchmarks.flower_peer import measure_flower

Figures = dict[str, Any]


def flower(arguments: argparse.Namespace) -> Figures:
    """Flower 1.41.0 on the digits task."""
    return measure_flower(arguments.rounds, arguments.clients)._asdict()


def add_flower(parser: argparse.ArgumentParser) -> None:
    """Add the options of the Flower run."""
    parser.add_argument("--rounds", type=int, default=4, help="rounds; the median leaves the first out (default: 4)")
    parser.add_argument("--clients", type=int, default=10, help="devices, at most 10 (default: 10)")


def console(arguments: argparse.Namespace) -> Figures:
    """Every page of the console of a large fleet: milliseconds to the whole answer."""
    figures = measure_console(arguments.devices, arguments.rounds, arguments.reports, arguments.repeat)
    return figures._asdict() | {"pages": [page._asdict() for page in figures.pages]}


def add_console(parser: argparse.ArgumentParser) -> None:
    """Add the options of the console's run."""
    parser.add_argument("--devices", type=int, default=10_000, help="size of the fleet (default: 10000)")
    parser.add_argument("--rounds", type=int, default=1_000, help="closed rounds (default: 1000)")
    parser.add_argument("--reports", type=int, default=100, help="reports of each round (default: 100)")
    parser.add_argument("--repeat", type=int, default=50, help="requests of which the median is taken (default: 50)")


BENCHMARKS: dict[str, tuple[Callable[[argparse.Namespace], Figures], Callable[[argparse.ArgumentParser], None]]] = {
    "console": (console, add_console),
    "demo": (demo.demo, demo.add_options),
    "flower": (flower, add_flower),
    "train": (train.train, train.add_options),
}


def main() -> int:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    benchmarks = parser.add_subparsers(dest="name", required=True)
    for name, (run, add_options) in BENCHMARKS.items():
        part = benchmarks.add_parser(name, help=run.__doc__, description=run.__doc__)
        part.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
        add_options(part)
    arguments = parser.parse_args()
    # Both ways to end leave through the same `finally`s, also where a shell started us with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        figures = BENCHMARKS[arguments.name][0](arguments)
    except KeyboardInterrupt:
        print("Stopped, and with it every process that was started.", file=sys.stderr)
        return 130
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
