"""The aggregator's thin edges: they read and write the world and decide nothing."""
