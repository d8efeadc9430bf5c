"""The cloud aggregator: runs the rounds, averages the deltas, keeps the checkpoints."""
