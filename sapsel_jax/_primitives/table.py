"""One entry for each primitive: all that is known of it.

Every fact is a shortcut. Of a primitive without an entry nothing is assumed: its axes count as
mixed, whether it is affine is read from the jaxpr of its derivative, and tangents and cotangents
go through it by `jax.jvp` and `jax.vjp`. What an entry says is tested by brute force.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from sapsel_jax._primitives import axes, convolutions, lookups, products, reshaping
from sapsel_jax._primitives.contraction import Place
from sapsel_jax._primitives.signature import AxesRule, Kept, Signature
from sapsel_jax._primitives.tangents import Labels, Tangent

Push = Callable[[Signature, int, Sequence[Any], Tangent, Kept], Tangent | None]
Ties = Callable[[Signature, int, Sequence[Labels], Kept], tuple[Labels, ...]]
Pull = Callable[
    [Signature, Sequence[Any]], Callable[[Sequence[jax.Array]], Sequence[jax.Array]] | None
]


@dataclasses.dataclass(frozen=True)
class Primitive:
    """What is known of a primitive.

    Attributes:
      elementwise: each entry of the output depends on the same entry of each input alone; inputs
        may be numbers for whole arrays.
      signs: of an operation that adds up its inputs, or changes their dtype alone: with which sign
        each input goes through, the last sign for all further inputs.
      linear: linear in all floating-point inputs together.
      product: linear in each of its first two inputs, but not in both together.
      flat: its derivative is zero wherever it has one.
      moves: each entry of the output is an entry of the input, and none is there twice.
      axes: which axes are kept apart; elementwise operations have a rule in common.
      push: tangents of one input to the output, stored as such tangents are; None where the rule
        does not apply.
      ties: where labels that are tied to axes of an input are tied in the output; without, to the
        axes that are kept apart.
      pull: a cotangent to the first input, where that moves alone; None where it does not apply.
      pulls_all: JAX has a reverse derivative in all inputs together only.
      pulls_singly: several cotangents are pulled back one after the other, which is faster on CPU.
      contracts: it sums over axes that its inputs share; tangents tied to such an axis have one
        entry in each sum, which is not taken.
      places: names for the axes of a product of two inputs: those of each, and of the output; and
        the sizes of the axes that are summed over.
      run: the operation as a function, where there is a better one than the primitive itself.
      reads_rows: whether it looks up whole rows of its first input.
      work: multiplications and additions; without it, what goes in and comes out is counted.
      back_work: what pulling back counts, against running it: as measured on CPU.
    """

    elementwise: bool = False
    signs: tuple[int, ...] = ()
    linear: bool = False
    product: bool = False
    flat: bool = False
    moves: bool = False
    axes: AxesRule | None = None
    push: Push | None = None
    ties: Ties | None = None
    pull: Pull | None = None
    pulls_all: bool = False
    pulls_singly: bool = False
    contracts: bool = False
    places: Callable[[Signature], tuple[Sequence[Sequence[Place]], dict[Place, int]]] | None = None
    run: Callable[[Signature], Callable[..., Sequence[Any]] | None] | None = None
    reads_rows: Callable[[Signature], bool] | None = None
    work: Callable[[Signature], float] | None = None
    back_work: float = 1.0

    @property
    def passes(self) -> bool:
        """Whether the operation only adds up its inputs, or changes their sign or dtype."""
        return bool(self.signs)


def _linear(axes: AxesRule, push: Push | None = None, **more: Any) -> Primitive:
    return Primitive(linear=True, axes=axes, push=push, **more)


def _passing(*signs: int, moves: bool = False) -> Primitive:
    return Primitive(elementwise=True, signs=signs, linear=True, moves=moves)


_curved = Primitive(elementwise=True)
_flat = dataclasses.replace(_curved, flat=True)
_reshape = _linear(
    reshaping.reshaped, reshaping.push_reshape, ties=reshaping.split_ties, moves=True
)
_along_axes = Primitive(axes=axes.but("axes"))
_along_axis = Primitive(axes=axes.but("axis"))

# fmt: off
_CURVED = (
    "exp", "exp2", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "cbrt", "square", "pow",
    "integer_pow", "one_minus_square", "div", "rem", "abs", "max", "min", "clamp", "select_n",
    "tanh", "logistic", "erf", "erfc", "erf_inv", "lgamma", "digamma", "polygamma", "zeta",
    "igamma", "igammac", "igamma_grad_a", "random_gamma_grad", "regularized_incomplete_beta",
    "bessel_i0e", "bessel_i1e", "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh",
    "cosh", "asinh", "acosh", "atanh", "nextafter", "reduce_precision",
)
"""Elementwise, and bent somewhere or in kinks."""
_FLAT = (
    "stop_gradient", "sign", "floor", "ceil", "round", "is_finite",
    "eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to", "le_to", "and", "or", "xor", "not",
    "shift_left", "shift_right_arithmetic", "shift_right_logical", "population_count", "clz",
    "mulhi",
)
"""Elementwise, without a derivative."""
# fmt: on

TABLE: dict[str, Primitive] = {
    **dict.fromkeys(_CURVED, _curved),
    **dict.fromkeys(_FLAT, _flat),
    **dict.fromkeys(("add", "add_any"), _passing(1)),
    "sub": _passing(1, -1),
    "neg": _passing(-1),
    **dict.fromkeys(("convert_element_type", "copy", "copy_p"), _passing(1, moves=True)),
    "mul": dataclasses.replace(_curved, product=True),
    # Axes move, merge, split, repeat.
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "transpose": _linear(reshaping.transposed, reshaping.push_transpose, moves=True),
    "broadcast_in_dim": _linear(reshaping.broadcast, reshaping.push_broadcast),
    "tile": _linear(axes.tiles),
    # Entries are taken, moved, put together.
    "slice": _linear(axes.slices, moves=True),
    "rev": _linear(axes.but("dimensions"), moves=True),
    "pad": _linear(axes.padding, pulls_all=True),
    "concatenate": _linear(axes.but("dimension")),
    "split": _linear(axes.but("axis")),
    "stack": _linear(axes.stacked),
    "dynamic_slice": _linear(axes.blocks),
    "gather": Primitive(axes=lookups.axes, run=lookups.run, reads_rows=lookups.reads_rows),
    "sort": Primitive(axes=axes.but("dimension")),
    "top_k": _along_axis,
    # Entries are summed, or the largest is taken.
    "reduce_sum": _linear(axes.but("axes"), reshaping.push_sum),
    **dict.fromkeys(("reduce_max", "reduce_min", "reduce_prod"), _along_axes),
    "cumsum": _linear(axes.but("axis")),
    **dict.fromkeys(("cumprod", "cummax", "cummin", "cumlogsumexp"), _along_axis),
    "reduce_window_sum": _linear(axes.windows),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min"), Primitive(axes=axes.windows)),
    # Products.
    "dot_general": Primitive(
        product=True,
        axes=products.axes,
        push=products.push,
        pulls_singly=True,
        contracts=True,
        places=products.places,
        run=products.run,
        work=products.work,
    ),
    "conv_general_dilated": Primitive(
        product=True,
        axes=convolutions.axes,
        push=convolutions.push,
        pull=convolutions.pull,
        work=convolutions.work,
        back_work=3.0,
    ),
    # Steps of a scan that is unrolled: a part of what it runs over, and what it leaves.
    "scan_slice": _linear(axes.but("axis"), moves=True),
    "scan_stack": _linear(axes.stacked),
}

UNKNOWN = Primitive()
