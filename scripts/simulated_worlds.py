"""``scripts/simulate``: worlds by seed, the kill table of the planted bugs, and what was covered."""

import argparse
import collections
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec

from tests.simulation import coverage
from tests.simulation.faults import FAULTS
from tests.simulation.planted import PLANTED, planted
from tests.simulation.world import Outcome, Scenario, World

KILL_SEEDS_MAX = 50
COMPLETED_RATIO_MIN = 0.7


def main(arguments: list[str] | None = None) -> int:
    """Play worlds and say what came of them; 1 if a check failed."""
    options = _make_parser().parse_args(arguments)
    if options.kill_table:
        return _print_kill_table(options.planted or list(PLANTED), options.jobs)
    seeds = _seeds(options)
    faults = FAULTS if options.faults == "all" else tuple(name for name in options.faults.split(",") if name != "none")
    unknown = set(faults) - set(FAULTS)
    if unknown:
        print(f"unknown faults: {', '.join(sorted(unknown))}; known are {', '.join(FAULTS)}", file=sys.stderr)
        return 2
    scenarios = [Scenario(seed, options.devices, options.rounds, faults, options.database) for seed in seeds]
    if options.transcript:
        return _print_transcript(scenarios[0])
    began_s = time.monotonic()
    outcomes = []
    for outcome in _play_all(scenarios, options.jobs, options.log):
        outcomes.append(outcome)
        if outcome.violations:
            _report_failure(outcome, shrinks=not options.no_shrink)
    _print_summary(outcomes, time.monotonic() - began_s, lists_gaps=options.gaps)
    return 1 if any(outcome.violations for outcome in outcomes) else 0


def command_of(scenario: Scenario) -> str:
    """Return the command that plays a world again."""
    faults = "all" if scenario.faults == FAULTS else ",".join(scenario.faults) or "none"
    return (
        f"scripts/simulate --seed {scenario.seed} --devices {scenario.device_count} --rounds {scenario.round_count} "
        f"--faults {faults}" + ("" if scenario.database == "memory" else f" --database {scenario.database}")
    )


def shrink(scenario: Scenario, check: str) -> Scenario:
    """Take away faults, rounds and devices as long as the same check fails."""

    def fails(candidate: Scenario) -> bool:
        return any(violation.check == check for violation in World(candidate).run().violations)

    for fault in scenario.faults:
        smaller = msgspec.structs.replace(scenario, faults=tuple(one for one in scenario.faults if one != fault))
        if fails(smaller):
            scenario = smaller
    for field, floor in (("round_count", 1), ("device_count", 6)):
        while getattr(scenario, field) // 2 >= floor:
            smaller = msgspec.structs.replace(scenario, **{field: getattr(scenario, field) // 2})
            if not fails(smaller):
                break
            scenario = smaller
    return scenario


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description="Fleets in one thread, faults included.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", help="a range such as 0-999, instead of --seed")
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--faults", nargs="?", const="all", default="all", help="all (default), none, or names with commas"
    )
    parser.add_argument("--database", choices=("memory", "sqlite"), default="memory")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--log", type=Path, help="keep one line per seed here; seeds that are in it are not played again"
    )
    parser.add_argument("--gaps", action="store_true", help="list the (state, event) pairs that were not met")
    parser.add_argument("--transcript", action="store_true", help="print every step of every machine")
    parser.add_argument("--no-shrink", action="store_true", help="do not look for the smallest world that fails")
    parser.add_argument(
        "--kill-table", action="store_true", help="plant every bug and count the seeds until it is caught"
    )
    parser.add_argument("--planted", nargs="*", choices=sorted(PLANTED), help="of the kill table: only these")
    return parser


def _seeds(options: argparse.Namespace) -> range:
    if options.seeds is None:
        return range(options.seed, options.seed + 1)
    first, _, last = options.seeds.partition("-")
    return range(int(first), int(last or first) + 1)


def _play(scenario: Scenario) -> Outcome:
    return World(scenario).run()


def _play_all(scenarios: list[Scenario], jobs: int, log: Path | None) -> Iterator[Outcome]:
    played = _read_log(log)
    left = [scenario for scenario in scenarios if scenario not in played]
    yield from (played[scenario] for scenario in scenarios if scenario in played)
    if jobs == 1:
        yield from _keep(map(_play, left), log)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from _keep(pool.map(_play, left, chunksize=4), log)


def _keep(outcomes: Iterable[Outcome], log: Path | None) -> Iterator[Outcome]:
    for outcome in outcomes:
        if log is not None:
            with log.open("ab") as file:
                file.write(msgspec.json.encode(_as_kept(outcome)) + b"\n")
        yield outcome


def _as_kept(outcome: Outcome) -> dict[str, object]:
    pairs = {" ".join(pair): count for pair, count in outcome.pairs.items()}
    return {**msgspec.structs.asdict(outcome), "pairs": pairs}


def _read_log(log: Path | None) -> dict[Scenario, Outcome]:
    if log is None or not log.exists():
        return {}
    played = {}
    for line in log.read_text().splitlines():
        kept = json.loads(line)
        kept["pairs"] = {}
        outcome = msgspec.convert(kept, Outcome)
        played[outcome.scenario] = outcome
    return played


def _report_failure(outcome: Outcome, *, shrinks: bool) -> None:
    first = outcome.violations[0]
    print(f"FAILED seed {outcome.scenario.seed} at {first.at_s} s: {first.check}: {first.why}")
    print(f"  again:    {command_of(outcome.scenario)}")
    if shrinks:
        print(f"  smallest: {command_of(shrink(outcome.scenario, first.check))}", flush=True)


def _print_summary(outcomes: list[Outcome], wall_s: float, *, lists_gaps: bool) -> None:
    completed_count = sum(outcome.completed_count for outcome in outcomes)
    round_count = completed_count + sum(outcome.abandoned_count for outcome in outcomes)
    failed_count = sum(bool(outcome.violations) for outcome in outcomes)
    cpu_s = sum(outcome.cpu_s for outcome in outcomes)
    print(
        f"{len(outcomes)} worlds, {failed_count} failed; {completed_count} of {round_count} rounds completed "
        f"({100 * completed_count / max(1, round_count):.1f} %); {sum(one.event_count for one in outcomes)} events, "
        f"{sum(one.virtual_s for one in outcomes) / 3600:.1f} h of virtual time in {cpu_s:.1f} s of CPU, "
        f"{wall_s:.1f} s of wall clock"
    )
    hits: collections.Counter[str] = collections.Counter()
    crashes: collections.Counter[str] = collections.Counter()
    pairs: collections.Counter[coverage.Pair] = collections.Counter()
    for outcome in outcomes:
        hits.update(outcome.hits)
        crashes.update(outcome.crashes)
        pairs.update(outcome.pairs)
        hits.update(
            fault for fault in ("liar", "torn-write", "trainer-death", "stubborn-trainer") if fault in outcome.faults
        )
    print("faults: " + ", ".join(f"{name} {count}" for name, count in sorted(hits.items())))
    print("crashes: " + ", ".join(f"{name} {count}" for name, count in sorted(crashes.items())))
    existing = coverage.all_pairs()
    if pairs:
        met = [pair for pair in existing if pair in pairs]
        print(f"(state, event) pairs met: {len(met)} of {len(existing)}")
    if lists_gaps:
        for machine, state, event in (pair for pair in existing if pair not in pairs):
            print(f"  not met: {machine} {state} --{event}")


def _print_transcript(scenario: Scenario) -> int:
    lines: list[str] = []
    outcome = World(scenario, lines).run()
    print("\n".join(lines))
    for violation in outcome.violations:
        print(f"FAILED at {violation.at_s} s: {violation.check}: {violation.why}")
    return 1 if outcome.violations else 0


def _kill(name: str) -> tuple[str, int | None, str]:
    """Count the seeds until a bug is caught, by a world that is well without it."""
    for seed in range(KILL_SEEDS_MAX):
        scenario = Scenario(seed, device_count=14, round_count=6)
        with planted(name):
            violations = World(scenario).run().violations
        if violations and not World(scenario).run().violations:
            return name, seed + 1, violations[0].check
    return name, None, ""


def _print_kill_table(names: list[str], jobs: int) -> int:
    print("| Planted bug | Caught within seeds | By |\n|---|---|---|")
    survivor_count = 0
    with ProcessPoolExecutor(jobs) as pool:
        for name, seed_count, check in pool.map(_kill, names):
            survivor_count += seed_count is None
            print(f"| {name} | {seed_count or f'not within {KILL_SEEDS_MAX}'} | {check} |", flush=True)
    return 1 if survivor_count else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
