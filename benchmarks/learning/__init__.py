"""Data sets, scenarios, models and their training."""
