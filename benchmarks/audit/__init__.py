"""`python -m benchmarks audit`: ensembles of unlearned models beside retrained ones."""
