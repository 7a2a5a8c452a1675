"""`python -m benchmarks ablation`: which parameters to change."""
