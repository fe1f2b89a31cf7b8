"""Benchmarks of the router, started by `scripts/bench`. Standard library only."""
