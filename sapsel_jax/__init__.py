"""Machine unlearning by sharpness-aware parameter selection."""

from sapsel_jax._curvature import (
    basis_diagonal,
    count_nonfinite,
    exact_diagonal,
    hutchinson_diagonal,
    probe_diagonal,
)

__all__ = [
    "basis_diagonal",
    "count_nonfinite",
    "exact_diagonal",
    "hutchinson_diagonal",
    "probe_diagonal",
]
