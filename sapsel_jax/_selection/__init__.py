"""Scores, and the masks that the largest of them make."""
