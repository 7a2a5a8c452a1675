"""`python -m benchmarks paper`: every procedure under one budget."""
