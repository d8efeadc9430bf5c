"""The only SQL that the console knows: it reads, and reads nothing that its page does not show."""

from cloud_aggregator.console.queries import devices, events, overview, releases, rounds, tasks, tokens

__all__ = ["devices", "events", "overview", "releases", "rounds", "tasks", "tokens"]
