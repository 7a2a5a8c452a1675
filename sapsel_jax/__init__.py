"""Machine unlearning by sharpness-aware parameter selection."""

from sapsel_jax import audit
from sapsel_jax._base.over_batches import mean_over_batches
from sapsel_jax._base.precision import count_nonfinite
from sapsel_jax._base.streaming import MeanState, mean_finalize, mean_init, mean_update
from sapsel_jax._curvature.basis import basis_diagonal, probe_diagonal
from sapsel_jax._curvature.exact import exact_diagonal
from sapsel_jax._curvature.explain import Plan, explain
from sapsel_jax._curvature.fisher import empirical_fisher_diagonal
from sapsel_jax._curvature.gauss_newton import gauss_newton_diagonal, sampled_gauss_newton_diagonal
from sapsel_jax._curvature.hutchinson import hutchinson_diagonal
from sapsel_jax._curvature.piecewise import is_piecewise_affine
from sapsel_jax._curvature.propagation import propagated_diagonal
from sapsel_jax._descent import Steps
from sapsel_jax._selection.entries import (
    select_leaves,
    select_like,
    select_top_count,
    select_top_fraction,
    select_top_fraction_per_leaf,
)
from sapsel_jax._selection.masks import (
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
from sapsel_jax._selection.scores import (
    score_brain_damage,
    score_change,
    score_decrease,
    score_fisher_ratio,
    score_flattest,
    score_magnitude,
    score_newton_step,
    score_random,
    score_saliency,
    score_sharpest,
)
from sapsel_jax._selection.units import select_top_fraction_per_unit, select_top_units
from sapsel_jax._sparsify import Sparsified, sparsify_update
from sapsel_jax._unlearn import Unlearned, unlearn
from sapsel_jax._updates.certificates import Certificate, Reason
from sapsel_jax._updates.certified import with_first_order, with_iteration
from sapsel_jax._updates.corrections import gradient_change
from sapsel_jax._updates.first_order import first_order_update
from sapsel_jax._updates.iterative import iterative_update
from sapsel_jax._updates.patch_files import load_patch, save_patch
from sapsel_jax._updates.patches import (
    Patch,
    apply_patch,
    describe_patch,
    make_patch,
    revert_patch,
)
from sapsel_jax._updates.second_order import second_order_update
from sapsel_jax._updates.selective import selective, selective_packed
from sapsel_jax._updates.solvers import (
    Solution,
    System,
    conjugate_gradient,
    dense_solver,
    diagonal_solver,
    lissa,
)

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "MeanState",
    "Patch",
    "Plan",
    "Reason",
    "Solution",
    "Sparsified",
    "Steps",
    "System",
    "Unlearned",
    "apply_patch",
    "audit",
    "basis_diagonal",
    "conjugate_gradient",
    "count_nonfinite",
    "dense_solver",
    "describe_mask",
    "describe_patch",
    "diagonal_solver",
    "empirical_fisher_diagonal",
    "exact_diagonal",
    "explain",
    "first_order_update",
    "gauss_newton_diagonal",
    "gradient_change",
    "hutchinson_diagonal",
    "is_piecewise_affine",
    "iterative_update",
    "lissa",
    "load_mask",
    "load_patch",
    "make_patch",
    "mask_complement",
    "mask_count",
    "mask_density",
    "mask_intersection",
    "mask_overlap",
    "mask_union",
    "mean_finalize",
    "mean_init",
    "mean_over_batches",
    "mean_update",
    "probe_diagonal",
    "propagated_diagonal",
    "revert_patch",
    "sampled_gauss_newton_diagonal",
    "save_mask",
    "save_patch",
    "score_brain_damage",
    "score_change",
    "score_decrease",
    "score_fisher_ratio",
    "score_flattest",
    "score_magnitude",
    "score_newton_step",
    "score_random",
    "score_saliency",
    "score_sharpest",
    "second_order_update",
    "select_leaves",
    "select_like",
    "select_top_count",
    "select_top_fraction",
    "select_top_fraction_per_leaf",
    "select_top_fraction_per_unit",
    "select_top_units",
    "selective",
    "selective_packed",
    "sparsify_update",
    "unlearn",
    "with_first_order",
    "with_iteration",
]
