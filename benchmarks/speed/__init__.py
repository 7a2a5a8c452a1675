"""`python -m benchmarks speed`: every way to a diagonal beside one gradient."""
