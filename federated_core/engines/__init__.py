"""Engines that run a graph: the same graph, the same answer."""
