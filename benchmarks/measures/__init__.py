"""Figures of models and of diagonals."""
