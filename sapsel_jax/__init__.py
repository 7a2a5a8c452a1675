"""Machine unlearning by sharpness-aware parameter selection."""

from sapsel_jax._basis import basis_diagonal, probe_diagonal
from sapsel_jax._exact import exact_diagonal
from sapsel_jax._hutchinson import hutchinson_diagonal
from sapsel_jax._masks import (
    describe_mask,
    load_mask,
    mask_complement,
    mask_count,
    mask_density,
    mask_intersection,
    mask_overlap,
    mask_union,
    save_mask,
)
from sapsel_jax._nonfinite import count_nonfinite
from sapsel_jax._propagation import propagated_diagonal
from sapsel_jax._scoring import (
    score_brain_damage,
    score_decrease,
    score_fisher_ratio,
    score_flattest,
    score_magnitude,
    score_newton_step,
    score_random,
    score_saliency,
    score_sharpest,
)
from sapsel_jax._selection import (
    select_leaves,
    select_like,
    select_top_count,
    select_top_fraction,
    select_top_fraction_per_leaf,
)
from sapsel_jax._transforms import selective
from sapsel_jax._updates import first_order_update, iterative_update

__all__ = [
    "basis_diagonal",
    "count_nonfinite",
    "describe_mask",
    "exact_diagonal",
    "first_order_update",
    "hutchinson_diagonal",
    "iterative_update",
    "load_mask",
    "mask_complement",
    "mask_count",
    "mask_density",
    "mask_intersection",
    "mask_overlap",
    "mask_union",
    "probe_diagonal",
    "propagated_diagonal",
    "save_mask",
    "score_brain_damage",
    "score_decrease",
    "score_fisher_ratio",
    "score_flattest",
    "score_magnitude",
    "score_newton_step",
    "score_random",
    "score_saliency",
    "score_sharpest",
    "select_leaves",
    "select_like",
    "select_top_count",
    "select_top_fraction",
    "select_top_fraction_per_leaf",
    "selective",
]
