"""`python -m benchmarks selection`: selection against sorting."""
