"""Benchmarks of sapsel_jax: `python -m benchmarks --help`."""
