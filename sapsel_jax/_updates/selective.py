"""Optax transformations that touch only the selected parameters."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sapsel_jax._base.checks import check_bool_leaves, check_count, check_same_leaves, named_shapes
from sapsel_jax._base.counts import count_of, excess, totals_so_far
from sapsel_jax._base.types import Mask, Params

PIECE = 32
"""Entries of a row at most that are counted together."""


def selective(
    inner: optax.GradientTransformation, mask: Mask
) -> optax.GradientTransformationExtraArgs:
    """Runs an optax transformation on the selected entries and leaves all others bit-identical.

    Gradients outside the mask are set to zero before `inner` sees them, so that its statistics hold
    nothing of them, not even NaN. Updates outside the mask are set to -0.0 afterwards, so that
    nothing that `inner` adds (weight decay, noise, momentum) moves those entries. Adding -0.0
    leaves every float as it is; adding 0.0 would turn a parameter of -0.0 into 0.0. Denormal
    parameters are the one exception, on backends that flush them to zero in any addition.

    Put it outermost: a transformation around it may add updates of its own, and `optax.MultiSteps`
    and `optax.apply_if_finite` return 0.0 for a step that they hold back. Inside it each of them is
    safe.

    A transformation that looks at whole leaves (muon, or clipping by a norm) sees them with zeros
    outside the mask: muon orthogonalises that sparse matrix, then keeps of the result what the mask
    selects, which is no longer orthogonal.

    Args:
      inner: any optax transformation, `optax.chain` and schedules included.
      mask: pytree of bool arrays shaped like the parameters, True for the entries to train. It may
        be traced: a second mask needs no new compilation.

    Returns:
      A transformation with the state of `inner`. Keyword arguments of `update` are passed on;
      `grad`, which line searches take, is masked like the gradients. Both parts of
      `optax.LookaheadParams` are masked.

    Raises:
      TypeError: if a leaf of `mask` is not bool.
      ValueError: by `init` and `update`, if the tree they are given does not fit the mask.

    Cost: as `inner`, and two passes over the parameters; no gradient.

    Source: optax's masking wrappers take one bool per leaf; this is their elementwise form.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import sapsel_jax as sap
      >>> params = jnp.array([1.0, 1.0])
      >>> tx = sap.selective(optax.adamw(0.1, weight_decay=0.5), jnp.array([True, False]))
      >>> updates, state = tx.update(jnp.array([1.0, 1.0]), tx.init(params), params)
      >>> print(optax.apply_updates(params, updates).round(3))
      [0.85 1.  ]
    """
    check_bool_leaves("mask", mask)
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> Any:
        _on_each_copy(lambda copy: _check_fits(mask, "params", copy), params)
        return inner.init(params)

    def update(
        updates: Any, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        _check_fits(mask, "updates", updates)
        if extra_args.get("grad") is not None:
            extra_args["grad"] = _where(mask, extra_args["grad"], 0.0)
        updates, state = inner.update(_where(mask, updates, 0.0), state, params, **extra_args)
        return _on_each_copy(lambda copy: _where(mask, copy, -0.0), updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _on_each_copy(fn: Callable[[Any], Any], tree: Any) -> Any:
    """A function of a tree shaped like the parameters, on each copy that lookahead keeps."""
    if isinstance(tree, optax.LookaheadParams):
        return optax.LookaheadParams(fn(tree.fast), fn(tree.slow))
    return fn(tree)


def _check_fits(mask: Mask, name: str, tree: Any) -> None:
    """The same paths and shapes; the containers may differ.

    Flax's `nnx.Optimizer` gives `init` its variables, whose paths end in `value`, and `update` the
    arrays in them.
    """
    leaves, like = (
        [(path.removesuffix("/value"), leaf) for path, leaf in named_shapes(t)]
        for t in (mask, tree)
    )
    check_same_leaves("mask", leaves, name, like)


def _where(mask: Mask, tree: Any, other: float) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(
        jnp.where(m, x, jnp.asarray(other, x.dtype))
        for m, x in zip(jax.tree.leaves(mask), leaves, strict=True)
    )


class SelectivePackedState(NamedTuple):
    """State of `selective_packed`.

    Attributes:
      positions: uint32, shape (count,): where each selected entry lies in its leaf.
      ends: uint32, one per leaf: how many of `positions` belong to this leaf and those before it.
      num_left_out: uint32, how many selected entries found no room and stay fixed.
      inner: the state of the inner transformation, for one vector of `count` entries.
    """

    positions: jax.Array
    ends: jax.Array
    num_left_out: jax.Array
    inner: Any


def selective_packed(
    inner: optax.GradientTransformation, mask: Mask, count: int
) -> optax.GradientTransformationExtraArgs:
    """Runs an optax transformation on the selected entries, with state for `count` entries only.

    `inner` sees one vector: the selected entries in leaf order, then zeros. Elementwise
    transformations give the same parameters as under `selective`. Transformations that look at
    whole leaves (adafactor, muon, lamb, clipping by block) take the vector for one leaf, so their
    result differs. Leaves of several dtypes are promoted to one dtype, and updates are returned in
    it.

    The positions of the selected entries are taken from the mask by `init` and stay in the state;
    `update` goes by the state.

    Args:
      inner: any optax transformation that does not evaluate the loss itself.
      mask: pytree of bool arrays shaped like the parameters, True for the entries to train. It may
        be traced.
      count: room for this many entries, a Python integer of at least 0: usually the number that was
        selected. Selected entries past it, in leaf order, stay fixed, and the state counts them.

    Returns:
      A transformation whose state is a `SelectivePackedState`. Unselected entries stay
      bit-identical; keyword arguments of `update` are passed on.

    Raises:
      TypeError: if a leaf of `mask` is not bool or `count` is no Python integer.
      ValueError: if `count` is negative; by `init` and `update`, if the tree they are given does
        not fit the mask.
      NotImplementedError: if a leaf has 2³¹ entries or more or is sharded over an Explicit mesh; by
        `update`, if it is given a `value_fn`, as line searches are, which would be called with the
        vector.

    Cost: as `inner` on `count` entries, a gather and a scatter of at most `count` entries for each
      leaf, and one pass to write the updates; no gradient.

    Source: own.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import sapsel_jax as sap
      >>> params = {"a": jnp.ones((2, 2)), "b": jnp.ones(3)}
      >>> mask = sap.select_leaves(params, lambda path, leaf: path == "b")
      >>> tx = sap.selective_packed(optax.adam(0.1), mask, count=3)
      >>> state = tx.init(params)
      >>> print(state.inner[0].mu.shape, state.num_left_out)
      (3,) 0
    """
    check_bool_leaves("mask", mask)
    check_count("count", count, minimum=0)
    inner = optax.with_extra_args_support(inner)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(mask)]
    for shape in shapes:
        if math.prod(shape) >= 2**31:
            raise NotImplementedError(
                f"`selective_packed` takes leaves of fewer than 2**31 entries; got {list(shape)}."
            )
    rooms = [min(count, math.prod(shape)) for shape in shapes]
    most_room = max(rooms, default=0)

    def join(windows: list[jax.Array], ends: jax.Array, dtype: Any) -> jax.Array:
        """One vector of the leaves' entries, each leaf's over the unused rest of those before."""
        vector = jnp.zeros(count + most_room, dtype)
        starts = jnp.concatenate([jnp.zeros(1, jnp.uint32), ends])
        for window, start in zip(windows, starts, strict=False):
            vector = lax.dynamic_update_slice(vector, window.astype(dtype), (start,))
        used = jnp.arange(count, dtype=jnp.uint32) < starts[-1]
        return jnp.where(used, vector[:count], jnp.zeros((), dtype))

    def split(vector: jax.Array, ends: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """For each leaf its entries of the vector, and which of them are its own."""
        vector = jnp.pad(vector, (0, most_room))
        starts = jnp.concatenate([jnp.zeros(1, jnp.uint32), ends])
        return [
            (
                lax.dynamic_slice(vector, (start,), (room,)),
                start + jnp.arange(room, dtype=jnp.uint32) < end,
            )
            for start, end, room in zip(starts, ends, rooms, strict=False)
        ]

    def pack(tree: Any, state: SelectivePackedState) -> jax.Array:
        leaves = jax.tree.leaves(tree)
        _check_not_explicit(leaves)
        windows = [
            jnp.atleast_1d(leaf).at[_coordinates(positions, jnp.shape(leaf))].get(mode="clip")
            for leaf, (positions, _) in zip(leaves, split(state.positions, state.ends), strict=True)
        ]
        return join(windows, state.ends, _common_dtype(leaves))

    def unpack(vector: Any, state: SelectivePackedState, structure: Any) -> Any:
        leaves = []
        for shape, (positions, own), (values, _) in zip(
            shapes, split(state.positions, state.ends), split(vector, state.ends), strict=True
        ):
            unchanged = jnp.full(shape or (1,), -0.0, vector.dtype)
            outside = jnp.uint32(math.prod(shape))  # where writing does nothing
            coordinates = _coordinates(jnp.where(own, positions, outside), shape)
            leaves.append(unchanged.at[coordinates].set(values, mode="drop").reshape(shape))
        return structure.unflatten(leaves)

    def init(params: Params) -> SelectivePackedState:
        _check_fits(mask, "params", params)
        selected = [jnp.asarray(leaf) for leaf in jax.tree.leaves(mask)]
        _check_not_explicit(selected)
        counts = [jnp.sum(leaf, dtype=jnp.uint32) for leaf in selected]
        totals = totals_so_far(jnp.asarray(counts, jnp.uint32))
        ends = excess(totals, count_of(0), count)
        windows = [_first(leaf, room) for leaf, room in zip(selected, rooms, strict=True)]
        positions = join(windows, ends, jnp.uint32)
        num_left_out = jnp.sum(excess(totals, count_of(count), 2**32 - 1)[-1:], dtype=jnp.uint32)
        state = SelectivePackedState(positions, ends, num_left_out, None)
        leaves = jax.tree.leaves(params)
        vector: Any = jax.ShapeDtypeStruct((count,), _common_dtype(leaves))
        if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
            vector = pack(params, state)
        return state._replace(inner=inner.init(vector))

    def update(
        updates: Any, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        _check_fits(mask, "updates", updates)
        if extra_args.get("value_fn") is not None:
            raise NotImplementedError(
                "`selective_packed` cannot pass `value_fn` on, for its inner transformation sees a "
                "vector; use `selective`."
            )
        vector, inner_state = inner.update(
            pack(updates, state),
            state.inner,
            None if params is None else pack(params, state),
            **extra_args,
        )
        unpacked = unpack(vector, state, jax.tree.structure(updates))
        return unpacked, state._replace(inner=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_not_explicit(leaves: list[Any]) -> None:
    for kind in map(jax.typeof, leaves):
        if any(kind.sharding.spec):
            raise NotImplementedError(
                "`selective_packed` takes no leaves sharded over an Explicit mesh; use an Auto "
                f"mesh or `selective`; got {kind.str_short()}."
            )


def _common_dtype(leaves: list[Any]) -> Any:
    return jnp.result_type(*(leaf.dtype for leaf in leaves)) if leaves else jnp.float32


def _first(selected: jax.Array, room: int) -> jax.Array:
    """Where the first selected entries lie, in leaf order, uint32, then zeros.

    Each device ranks its own entries, row by row in short pieces; only how many a piece has is
    known to all. `jnp.flatnonzero` would gather the whole leaf.
    """
    *rows, width = selected.shape or (1,)
    piece = max(n for n in range(1, PIECE + 1) if width % n == 0)
    pieces = selected.reshape(*rows, width // piece, piece)
    rank = _running_count(pieces.astype(jnp.uint32)) - jnp.uint32(1)
    place = jnp.zeros(pieces.shape, jnp.uint32)
    for axis, length in enumerate(pieces.shape):
        place = place * jnp.uint32(length) + lax.broadcasted_iota(jnp.uint32, place.shape, axis)
    past = jnp.uint32(room)  # where writing does nothing
    return jnp.zeros(room, jnp.uint32).at[jnp.where(pieces, rank, past)].add(place, mode="drop")


def _running_count(counts: jax.Array) -> jax.Array:
    """The sum so far, in the order of the entries: along the last axis, then along the others."""
    along = jnp.cumsum(counts, -1, jnp.uint32)
    if counts.ndim == 1:
        return along
    whole = along[..., -1]
    return along + (_running_count(whole) - whole)[..., None]


def _coordinates(positions: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """One index per axis, and one for a scalar; past the end of the array is past its first axis.

    Not by a reshape of the array, which would gather the parts of a sharded one.
    """
    strides = [math.prod(shape[axis + 1 :]) for axis in range(max(len(shape), 1))]
    first, *rest = [positions // jnp.uint32(max(stride, 1)) for stride in strides]
    inner = [index % jnp.uint32(max(n, 1)) for index, n in zip(rest, shape[1:], strict=True)]
    return (first, *inner)
