"""What a person sees while the fleet learns: a live table, a line a round; without a terminal plain lines."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from scripts.fleet_demo.figures import RoundFigures, sentences


class Watch:
    """Shows rounds as they end, and what the open one is doing."""

    def __init__(self, console: Console, device_count: int, rounds_max: int) -> None:
        self._console = console
        self._device_count = device_count
        self._rounds_max = rounds_max
        self._rounds: list[RoundFigures] = []
        self._now = "starting"
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        else:
            self._console.print("round reports unseen holdout    bytes up  bytes down  seconds")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._live.stop()
            if self._rounds:
                self._now = ""
                self._console.print(self._table())

    def hear(self, event: dict[str, Any], accepted_count: int) -> None:
        """Note what the open round is doing."""
        words = {
            "round-opened": "devices check in",
            "cohort-selected": f"{self._device_count} devices fetch and train",
            "report-accepted": f"{accepted_count} of {self._device_count} reports are in",
        }
        if event["kind"] in words and event["round"] is not None:
            self._now = f"round {event['round']}: {words[event['kind']]}"

    def say(self, text: str) -> None:
        """Note what is going on between the rounds."""
        self._now = text

    def add(self, figures: RoundFigures) -> None:
        """Show a round that ended."""
        self._rounds.append(figures)
        if not self._console.is_terminal:
            holdout = "" if figures.accuracy_holdout is None else f"{figures.accuracy_holdout:.3f}"
            self._console.print(
                f"{figures.round:>5} {figures.reports:>7} {figures.accuracy_unseen:>6.3f} {holdout:>7} "
                f"{figures.bytes_up:>11,} {figures.bytes_down:>11,} {figures.seconds:>8.2f}"
            )

    def _table(self) -> Table:
        table = Table(title="A fleet learns what exercise its people do", caption=self._now or None)
        table.add_column("round", justify="right")
        table.add_column("reports", justify="right")
        table.add_column("accuracy on\nheld-out people", justify="right")
        table.add_column("", min_width=20)
        table.add_column("on devices'\nown holdouts", justify="right")
        table.add_column("bytes up", justify="right")
        table.add_column("bytes down", justify="right")
        table.add_column("seconds", justify="right")
        room = max(5, self._console.height - 10)
        hidden = 0 if not self._now else max(0, len(self._rounds) - room)
        if hidden:
            table.add_row("...", "", "", f"[dim]{hidden} earlier rounds[/dim]", "", "", "", "")
        for figures in self._rounds[hidden:]:
            holdout = "" if figures.accuracy_holdout is None else f"{figures.accuracy_holdout:.3f}"
            table.add_row(
                f"{figures.round}/{self._rounds_max}",
                f"{figures.reports}/{figures.assignments}",
                f"{figures.accuracy_unseen:.3f}",
                f"[green]{'█' * round(20 * figures.accuracy_unseen)}[/green]",
                holdout,
                f"{figures.bytes_up:,}",
                f"{figures.bytes_down:,}",
                f"{figures.seconds:.2f}",
            )
        return table


def show_outcome(console: Console, figures: dict[str, Any]) -> None:
    """Show the comparison of the four arms, and what it cost."""
    table = Table(title="Accuracy, all arms with equally many optimizer steps")
    table.add_column("")
    table.add_column("people held out", justify="right")
    table.add_column("each device's later data", justify="right")
    for arm, text in (
        ("federated", "federated"),
        ("personalized", "federated, then fine-tuned"),
        ("local", "each device alone"),
        ("pooled", "all data pooled"),
    ):
        table.add_row(text, f"{figures['unseen'][arm]:.3f}", f"{figures['later'][arm]:.3f}")
    console.print(table)
    for line in sentences(figures):
        console.print(line, highlight=False, soft_wrap=True)
