"""`python -m benchmarks propagation`: what one backward pass costs, and how near it comes."""
