"""How few entries of a model have to change: recovery against their number."""
