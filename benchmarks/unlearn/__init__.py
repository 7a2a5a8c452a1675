"""`python -m benchmarks unlearn`: the main comparison."""
