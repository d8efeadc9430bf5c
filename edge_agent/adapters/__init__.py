"""The agent's thin edges: they read and write the world and decide nothing."""
