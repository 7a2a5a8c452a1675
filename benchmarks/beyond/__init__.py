"""Ideas beyond masks of entries, each measured against its control."""
