"""Diagonals of the Hessian, exact and estimated, and what they cost."""
