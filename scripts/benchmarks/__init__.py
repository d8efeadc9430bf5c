"""Benchmarks: every claim of speed, size or memory, and the peers it is compared with in the same run."""
