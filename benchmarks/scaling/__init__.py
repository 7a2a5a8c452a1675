"""What time and memory grow with, and how fast: the study behind `python -m benchmarks scaling`."""
