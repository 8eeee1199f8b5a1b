"""Suites of benchmarks on any checkpoint, outside a run: the card suite, its data, its results."""
