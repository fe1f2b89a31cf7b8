"""Helpers that several files of tests share; the benchmarks use some of them too."""
