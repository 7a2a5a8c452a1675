"""Single operations of JAX with random parameters: what the facts of primitives are tested on."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Shape = tuple[int, ...]
STEP = 1e-3
"""Operations are smooth within such a distance of their points, in all inputs together."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """A function of floating-point arrays, and points where it is smooth."""

    fn: Callable[..., Any]
    inputs: tuple[np.ndarray, ...]

    def __repr__(self) -> str:
        """The jaxpr: what a failing example is read by."""
        return str(jax.make_jaxpr(self.fn)(*self.inputs))


def shapes(min_rank: int = 0, max_rank: int = 3, max_size: int = 3) -> st.SearchStrategy[Shape]:
    sizes = st.integers(1, max_size)
    return st.lists(sizes, min_size=min_rank, max_size=max_rank).map(tuple)


def values(draw: Any, *shapes: Shape, low: float = 0.2, high: float = 0.9) -> tuple[Any, ...]:
    """Entries of a grid, each taken once: the largest stays the largest after a step."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    total = sum(math.prod(shape) for shape in shapes)
    entries = rng.permutation(np.linspace(low, high, total) if total else np.zeros(0))
    parts = np.split(entries, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
    return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))


def some_axes(rank: int) -> st.SearchStrategy[Shape]:
    return st.lists(st.sampled_from(range(rank)), unique=True).map(tuple) if rank else st.just(())


def axis_of(shape: Shape) -> st.SearchStrategy[int]:
    return st.sampled_from(range(len(shape)))


@st.composite
def slices(draw: Any) -> Operation:
    shape = draw(shapes(1, 3, 5))
    starts = [draw(st.integers(0, n - 1)) for n in shape]
    limits = [draw(st.integers(a + 1, n)) for a, n in zip(starts, shape, strict=True)]
    strides = [draw(st.integers(1, 3)) for _ in shape]
    return Operation(lambda x: lax.slice(x, starts, limits, strides), values(draw, shape))


@st.composite
def dynamic_slices(draw: Any) -> Operation:
    shape = draw(shapes(1, 3, 4))
    sizes = [draw(st.integers(1, n)) for n in shape]
    starts = np.array([draw(st.integers(-1, n + 1)) for n in shape])
    return Operation(
        lambda x: lax.dynamic_slice(x, tuple(jnp.asarray(starts)), sizes), values(draw, shape)
    )


@st.composite
def dynamic_updates(draw: Any) -> Operation:
    shape = draw(shapes(1, 3, 4))
    sizes = tuple(draw(st.integers(1, n)) for n in shape)
    starts = np.array([draw(st.integers(-1, n + 1)) for n in shape])
    return Operation(
        lambda x, y: lax.dynamic_update_slice(x, y, tuple(jnp.asarray(starts))),
        values(draw, shape, sizes),
    )


@st.composite
def pads(draw: Any) -> Operation:
    shape, config = draw(shapes(1, 3)), []
    for n in shape:
        inner = draw(st.integers(0, 2))
        length = n + (n - 1) * inner
        low = draw(st.integers(1 - length, 2))
        high = draw(st.integers(1 - length - min(low, 0) if low < 0 else 1 - length, 2))
        config.append((low, max(high, 1 - length - low), inner))
    return Operation(lambda x, y: lax.pad(x, y, config), values(draw, shape, ()))


@st.composite
def reversals(draw: Any) -> Operation:
    shape = draw(shapes(1))
    axes = draw(some_axes(len(shape)))
    return Operation(lambda x: lax.rev(x, axes), values(draw, shape))


@st.composite
def concatenations(draw: Any) -> Operation:
    shape = draw(shapes(1))
    axis = draw(axis_of(shape))
    parts = [
        (*shape[:axis], draw(st.integers(1, 3)), *shape[axis + 1 :])
        for _ in range(draw(st.integers(1, 3)))
    ]
    return Operation(lambda *xs: lax.concatenate(xs, axis), values(draw, *parts))


@st.composite
def stacks(draw: Any) -> Operation:
    shape = draw(shapes(0, 2))
    axis = draw(st.integers(0, len(shape)))
    parts = [shape] * draw(st.integers(1, 3))
    return Operation(lambda *xs: jnp.stack(xs, axis), values(draw, *parts))


@st.composite
def tilings(draw: Any) -> Operation:
    shape = draw(shapes(1, 2))
    times = [draw(st.integers(1, 2)) for _ in shape]
    return Operation(lambda x: jnp.tile(x, times), values(draw, shape))


@st.composite
def transpositions(draw: Any) -> Operation:
    shape = draw(shapes(1))
    order = draw(st.permutations(range(len(shape))))
    return Operation(lambda x: lax.transpose(x, order), values(draw, shape))


@st.composite
def reshapes(draw: Any) -> Operation:
    factors = draw(st.lists(st.sampled_from([1, 2, 2, 3]), max_size=4))

    def grouped() -> Shape:
        shape: list[int] = []
        for factor in factors:
            if shape and draw(st.booleans()):
                shape[-1] *= factor
            else:
                shape += [1] * draw(st.integers(0, 1)) + [factor]
        return tuple(shape)

    source, target = grouped(), grouped()
    if draw(st.booleans()):
        target = tuple(draw(st.permutations(target)))
    return Operation(lambda x: lax.reshape(x, target), values(draw, source))


@st.composite
def squeezes(draw: Any) -> Operation:
    shape = draw(shapes(1, 4, 2))
    axes = draw(st.lists(st.sampled_from([a for a, n in enumerate(shape) if n == 1] or [None])))
    axes = sorted({a for a in axes if a is not None})
    return Operation(lambda x: lax.squeeze(x, axes), values(draw, shape))


@st.composite
def expansions(draw: Any) -> Operation:
    shape = draw(shapes(0, 3))
    axes = draw(some_axes(len(shape) + 2).filter(lambda a: 0 < len(a) <= 2))
    axes = [a for a in axes if a < len(shape) + len(axes)]
    return Operation(lambda x: lax.expand_dims(x, axes), values(draw, shape))


@st.composite
def broadcasts(draw: Any) -> Operation:
    target = draw(shapes(0, 4))
    places = sorted(draw(some_axes(len(target))))
    source = tuple(target[a] if draw(st.booleans()) else 1 for a in places)
    return Operation(lambda x: lax.broadcast_in_dim(x, target, places), values(draw, source))


def reductions(fn: Callable[..., Any]) -> st.SearchStrategy[Operation]:
    @st.composite
    def reduction(draw: Any) -> Operation:
        shape = draw(shapes(1))
        axes = draw(some_axes(len(shape)))
        return Operation(lambda x: fn(x, axes), values(draw, shape))

    return reduction()


def cumulative(fn: Callable[..., Any]) -> st.SearchStrategy[Operation]:
    @st.composite
    def operation(draw: Any) -> Operation:
        shape = draw(shapes(1))
        axis, reverse = draw(axis_of(shape)), draw(st.booleans())
        return Operation(lambda x: fn(x, axis, reverse=reverse), values(draw, shape))

    return operation()


@st.composite
def sorts(draw: Any) -> Operation:
    shape = draw(shapes(1))
    axis = draw(axis_of(shape))
    num = draw(st.integers(1, 3))
    keys = draw(st.integers(1, num))
    return Operation(
        lambda *xs: lax.sort(xs, dimension=axis, num_keys=keys), values(draw, *[shape] * num)
    )


@st.composite
def largest(draw: Any) -> Operation:
    shape = draw(shapes(1))
    k = draw(st.integers(1, shape[-1]))
    return Operation(lambda x: lax.top_k(x, k)[0], values(draw, shape))


@st.composite
def lookups(draw: Any) -> Operation:
    """Parts along one axis; numbers out of range are clipped, filled, or wrapped around."""
    shape = draw(shapes(1))
    axis, mode = draw(axis_of(shape)), draw(st.sampled_from(("clip", "fill", "wrap", None)))
    length = shape[axis]
    low, high = (-length - 1, length + 1) if mode else (-length, length - 1)
    ids = np.array(draw(st.lists(st.integers(low, high), min_size=1, max_size=3)))
    places = (*(slice(None),) * axis, ids)  # Without a mode they are promised to be in range.
    take = lambda x: jnp.take(x, jnp.asarray(ids), axis, mode=mode, fill_value=0.5)
    return Operation(take if mode else lambda x: x[places], values(draw, shape))


@st.composite
def blocks(draw: Any) -> Operation:
    """Blocks of an array at places of which there may be several in a batch."""
    shape = draw(shapes(1, 3, 4))
    sizes = tuple(draw(st.integers(1, n)) for n in shape)
    moved = sorted(draw(some_axes(len(shape))))
    collapsed = tuple(a for a in range(len(shape)) if sizes[a] == 1 and draw(st.booleans()))
    batch = draw(shapes(0, 2, 2))
    kept = len(shape) - len(collapsed)
    offsets = sorted(draw(st.permutations(range(kept + len(batch))))[:kept])
    numbers = lax.GatherDimensionNumbers(tuple(offsets), collapsed, tuple(moved))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    starts = rng.integers(-1, 4, (*batch, len(moved)))
    mode = draw(st.sampled_from(("clip", "fill")))
    return Operation(
        lambda x: lax.gather(x, jnp.asarray(starts), numbers, sizes, mode=mode, fill_value=0.5),
        values(draw, shape),
    )


@st.composite
def lookups_along(draw: Any) -> Operation:
    shape = draw(shapes(1, 2))
    axis = draw(axis_of(shape))
    where = (*shape[:axis], draw(st.integers(1, 3)), *shape[axis + 1 :])
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    ids = rng.integers(-shape[axis], shape[axis], where)
    return Operation(lambda x: jnp.take_along_axis(x, ids, axis), values(draw, shape))


@st.composite
def scatters(draw: Any) -> Operation:
    shape, mode = draw(shapes(1, 2)), draw(st.sampled_from(("clip", "drop")))
    how = draw(st.sampled_from(("add", "set", "subtract", "multiply")))
    number = st.integers(-shape[0] - 1, shape[0] + 1)
    ids = np.array(draw(st.lists(number, min_size=1, max_size=3, unique=how != "add")))
    unique = how == "multiply"
    if unique:
        ids = np.unique(ids % shape[0])

    def fn(x: Any, y: Any) -> Any:
        return getattr(x.at[jnp.asarray(ids)], how)(y, mode=mode, unique_indices=unique)

    return Operation(fn, values(draw, shape, (len(ids), *shape[1:])))


@st.composite
def dots(draw: Any) -> Operation:
    num_batch, num_bound = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    bound = [draw(st.integers(1, 3)) for _ in range(num_batch + num_bound)]
    orders, sides = [], []
    for _ in range(2):
        free = [draw(st.integers(1, 3)) for _ in range(draw(st.integers(0, 2)))]
        order = draw(st.permutations(range(len(bound) + len(free))))
        sizes = [*bound, *free]
        sides.append(tuple(sizes[i] for i in order))
        orders.append([order.index(i) for i in range(len(bound))])
    lhs, rhs = orders
    numbers = (
        (tuple(lhs[num_batch:]), tuple(rhs[num_batch:])),
        (tuple(lhs[:num_batch]), tuple(rhs[:num_batch])),
    )
    return Operation(lambda x, y: lax.dot_general(x, y, numbers), values(draw, *sides))


@st.composite
def convolutions(draw: Any) -> Operation:
    rank = draw(st.integers(0, 2))
    groups, batch_groups = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (3, 1)]))
    depth, features = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    window = [draw(st.integers(1, 3)) for _ in range(rank)]
    spread = [draw(st.integers(1, 2)) for _ in range(rank)]
    gaps = [draw(st.integers(1, 2)) for _ in range(rank)]
    image = [draw(st.integers(1, 4)) for _ in range(rank)]
    padding = []
    for n, g, w, d in zip(image, gaps, window, spread, strict=True):
        length, needed = (n - 1) * g + 1, (w - 1) * d + 1
        low = draw(st.integers(-1 if length > 1 else 0, 2))
        padding.append((low, max(draw(st.integers(-1, 2)), needed - length - low)))
    specs = [draw(st.permutations(range(rank + 2))) for _ in range(3)]
    numbers = lax.ConvDimensionNumbers(*map(tuple, specs))
    lhs, rhs = [0] * (rank + 2), [0] * (rank + 2)
    sizes = ((batch_groups * draw(st.integers(1, 2)), groups * depth, *image), lhs, specs[0])
    kernel = ((groups * batch_groups * features, depth, *window), rhs, specs[1])
    for numbered, shape, spec in (sizes, kernel):
        for size, axis in zip(numbered, spec, strict=True):
            shape[axis] = size
    options = {
        "window_strides": [draw(st.integers(1, 2)) for _ in range(rank)],
        "padding": padding,
        "lhs_dilation": gaps,
        "rhs_dilation": spread,
        "dimension_numbers": numbers,
        "feature_group_count": groups,
        "batch_group_count": batch_groups,
    }
    return Operation(
        lambda x, k: lax.conv_general_dilated(x, k, **options),
        values(draw, tuple(lhs), tuple(rhs)),
    )


def windows(start: float, fn: Callable[..., Any]) -> st.SearchStrategy[Operation]:
    @st.composite
    def window(draw: Any) -> Operation:
        shape = draw(shapes(1, 2, 4))
        each = lambda low, high: [draw(st.integers(low, high)) for _ in shape]
        sizes, strides, padding = (
            each(1, 2),
            each(1, 2),
            list(zip(each(0, 1), each(0, 1), strict=True)),
        )
        # A maximum over a dilated input has no derivative in JAX.
        base = each(1, 2) if fn is lax.add else [1] * len(shape)
        dilation = each(1, 2) if fn is lax.add else [1] * len(shape)
        if any(
            (n - 1) * b + 1 + sum(p) < (w - 1) * d + 1
            for n, b, p, w, d in zip(shape, base, padding, sizes, dilation, strict=True)
        ):
            sizes = [1] * len(shape)
        return Operation(
            lambda x: lax.reduce_window(x, start, fn, sizes, strides, padding, base, dilation),
            values(draw, shape),
        )

    return window()


@st.composite
def splits(draw: Any) -> Operation:
    shape = draw(shapes(1))
    axis = draw(axis_of(shape))
    first = draw(st.integers(1, shape[axis]))
    sizes = [n for n in (first, shape[axis] - first) if n]
    return Operation(lambda x: lax.split(x, sizes, axis), values(draw, shape))


@st.composite
def selections(draw: Any) -> Operation:
    shape = draw(shapes())
    num = draw(st.integers(2, 3))
    which_shape = shape if draw(st.booleans()) else ()
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    which = rng.integers(0, num, which_shape)
    which = which.astype(bool if num == 2 else np.int32)
    return Operation(
        lambda *xs: lax.select_n(jnp.asarray(which), *xs), values(draw, *[shape] * num)
    )


@st.composite
def clamps(draw: Any) -> Operation:
    shape = draw(shapes())
    low, high = (shape if draw(st.booleans()) else () for _ in range(2))

    inputs = values(draw, low, shape, high)
    grid = 0.7 / max(sum(x.size for x in inputs) - 1, 1)
    # A third off the grid, so that no two of lower bound, entry and upper bound are the same.
    apart = (0.3 // grid + 1 / 3) * grid

    def fn(a: Any, x: Any, b: Any) -> Any:
        # JAX has no derivative in a bound that is a number for a whole array.
        a, b = (y if y.shape == x.shape else lax.stop_gradient(y) for y in (a, b))
        return lax.clamp(a - apart, x, b + apart)

    return Operation(fn, inputs)


def elementwise(
    fn: Callable[..., Any], arity: int = 1, low: float = 0.2, high: float = 0.9
) -> st.SearchStrategy[Operation]:
    @st.composite
    def operation(draw: Any) -> Operation:
        return Operation(fn, values(draw, *[draw(shapes())] * arity, low=low, high=high))

    return operation()


@st.composite
def scans(draw: Any) -> Operation:
    """Slices that a scan takes of its input, and the stack that it leaves."""
    shape = draw(shapes(1, 3))
    reverse = draw(st.booleans())
    step = lambda carry, x: (carry + jnp.sum(x), carry * jnp.ones_like(x) + 2 * x)
    return Operation(lambda x: lax.scan(step, 0.0, x, reverse=reverse)[1], values(draw, shape))


UNARY = (
    *(lax.neg, lax.abs, lax.sign, lax.floor, lax.round, lax.square, lax.stop_gradient),
    *(lax.exp, lax.exp2, lax.expm1, lax.log, lax.log1p, jnp.log2, lax.sqrt, lax.rsqrt, lax.cbrt),
    *(lax.tanh, lax.logistic, lax.erf, lax.erfc, lax.erf_inv, lax.lgamma, lax.digamma),
    *(lax.sin, lax.cos, lax.tan, lax.asin, lax.acos, lax.atan),
    *(lax.sinh, lax.cosh, lax.asinh, lax.atanh, lax.bessel_i0e, lax.bessel_i1e),
    lambda x: lax.integer_pow(x, 3),
    lambda x: x.astype(jnp.float32),
    lambda x: lax.reduce_precision(x, 11, 52),
)
BINARY = (
    *(lax.add, lax.sub, lax.mul, lax.div, lax.max, lax.min, lax.pow, lax.atan2),
    lambda x, y: lax.rem(2 + 0.7 * x, 0.9 + 0.1 * y),  # the quotient is never near a whole number
    lambda x, y: lax.igamma(lax.stop_gradient(x), y),
    lambda x, y: lax.igammac(lax.stop_gradient(x), y),
)
OPERATIONS: dict[str, st.SearchStrategy[Operation]] = {
    "slice": slices(),
    "dynamic_slice": dynamic_slices(),
    "dynamic_update_slice": dynamic_updates(),
    "pad": pads(),
    "rev": reversals(),
    "concatenate": concatenations(),
    "stack": stacks(),
    "tile": tilings(),
    "transpose": transpositions(),
    "reshape": reshapes(),
    "squeeze": squeezes(),
    "expand_dims": expansions(),
    "broadcast_in_dim": broadcasts(),
    "reduce_sum": reductions(
        lambda x, axes: lax.reduce_sum_p.bind(x, axes=axes, out_sharding=None)
    ),
    "reduce_max": reductions(lambda x, axes: jnp.max(x, axes)),
    "reduce_min": reductions(lambda x, axes: jnp.min(x, axes)),
    "reduce_prod": reductions(lambda x, axes: jnp.prod(x, axes)),
    "logsumexp": reductions(lambda x, axes: jax.nn.logsumexp(x, axes)),
    "cumsum": cumulative(lax.cumsum),
    "cumprod": cumulative(lax.cumprod),
    "cummax": cumulative(lax.cummax),
    "cummin": cumulative(lax.cummin),
    "cumlogsumexp": cumulative(lax.cumlogsumexp),
    "sort": sorts(),
    "top_k": largest(),
    "gather": st.one_of(lookups(), blocks()),
    "gather along": lookups_along(),
    "scatter": scatters(),
    "dot_general": dots(),
    "conv_general_dilated": convolutions(),
    "reduce_window_sum": windows(0.0, lax.add),
    "reduce_window_max": windows(-math.inf, lax.max),
    "reduce_window_min": windows(math.inf, lax.min),
    "split": splits(),
    "select_n": selections(),
    "clamp": clamps(),
    "scan": scans(),
    "of one": st.one_of(elementwise(lax.acosh, low=1.2, high=3.0), *map(elementwise, UNARY)),
    "of two": st.one_of(*(elementwise(fn, 2) for fn in BINARY)),
}
