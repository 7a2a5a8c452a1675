"""The loss of one example as a graph: its operations, and where each parameter enters it."""
