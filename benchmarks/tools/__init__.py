"""What every benchmark uses and none is about: errors, timing, folders, records, statistics."""
