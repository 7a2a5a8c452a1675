"""A mean over batches that can stop and resume."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sapsel_jax._base.checks import check_float_leaves, check_number, check_same_tree
from sapsel_jax._base.precision import wide_dtype


class MeanState(NamedTuple):
    """What a streaming mean has seen so far: sums in two floats each, so in about 48 bits.

    Attributes:
      total: pytree of sums over examples, float32 or wider.
      rest: what rounding left out of `total`, shaped like it.
      num_examples: float32, how many examples were added.
      num_examples_rest: what rounding left out of it.
      magnitude: pytree of int8: 1 where an entry of `total` and `rest` is kept in units of 2^64,
        because its sum might be infinite, -1 where it is kept in units of 2^-64, because digits
        would be lost, 0 elsewhere. In float64 the units are 2^512 and 2^-512.
    """

    total: Any
    rest: Any
    num_examples: jax.Array
    num_examples_rest: jax.Array
    magnitude: Any


def mean_init(like: Any) -> MeanState:
    """Starts a mean over batches of any size; `mean_update` adds the batches.

    The state is all there is. The same batches in the same order give a state of the same bits:
    eagerly, under `jit`, and wherever the stream was cut, saved and continued. The sums over
    batches are kept in two floats each, in about 48 bits for float32, and are rounded once, at the
    end. So another division into batches changes the result only by the rounding of the batches'
    own means.

    Args:
      like: pytree of floating-point arrays or `jax.ShapeDtypeStruct`, shaped like the values to
        come: the parameters, for gradients and diagonals.

    Returns:
      A state, a pytree of arrays that any checkpoint library can save.

    Raises:
      TypeError: if `like` holds anything but real floating-point arrays.

    Cost: two arrays of zeros for each leaf; no gradient.

    Source: own; the sums are explained in `mean_update`.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> state = sap.mean_init(jnp.zeros(2))
      >>> state = sap.mean_update(state, jnp.array([1.0, 4.0]), 1)  # the mean of one example
      >>> state = sap.mean_update(state, jnp.array([4.0, 1.0]), 2)  # the mean of two more
      >>> sap.mean_finalize(state)
      Array([3., 2.], dtype=float32)
    """
    check_float_leaves("like", like)
    full = jnp.full_like  # keeps the sharding
    zeros = lambda: jax.tree.map(lambda x: full(x, 0, wide_dtype(jnp.result_type(x))), like)
    magnitude = jax.tree.map(lambda x: full(x, -1, jnp.int8), like)
    return MeanState(zeros(), zeros(), jnp.float32(0), jnp.float32(0), magnitude)


def mean_update(state: MeanState, value: Any, num_examples: Any) -> MeanState:
    """Adds the mean over one batch to a streaming mean.

    It adds num_examples · value to the sums and num_examples to the count. Both are kept in two
    floats, so that many small batches lose nothing by rounding.

    Args:
      state: a `MeanState`, from `mean_init` or `mean_update`.
      value: pytree of means over the batch, such as gradients or the result of `exact_diagonal`.
        Numbers too small for the backend's arithmetic, such as denormal ones on CPU, count as 0.
      num_examples: how many examples it is the mean of, or the sum of their weights; at least 0,
        exact below 2²⁴, may be traced.

    Returns:
      The new state; `state` itself stays as it is. An entry that is NaN or infinite in one batch
      is NaN in the end.

    Raises:
      TypeError: if `value` holds anything but real floating-point arrays, or `num_examples` is no
        number.
      ValueError: if `value` is not shaped like the state or `num_examples` is negative.

    Cost: a few passes over the entries; no gradient.

    Source: Dekker's exact product and Knuth's exact sum; see T. Ogita, S. M. Rump, S. Oishi,
      "Accurate sum and dot product" (2005), algorithms 3.1 and 5.3.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> state = sap.mean_update(sap.mean_init(jnp.zeros(2)), jnp.array([1.0, 4.0]), 3)
      >>> print(state.total, state.num_examples)
      [ 3. 12.] 3.0
    """
    check_float_leaves("value", value)
    check_same_tree("value", value, "state", state.total)
    check_number("num_examples", num_examples, minimum=0)
    count = jnp.asarray(num_examples, jnp.float32)
    structure = jax.tree.structure(state.total)
    leaves = map(jax.tree.leaves, (state.total, state.rest, state.magnitude, value))
    parts = [
        _add_leaf(total, rest, magnitude, x, count)
        for total, rest, magnitude, x in zip(*leaves, strict=True)
    ]
    total, rest, magnitude = (structure.unflatten(part[i] for part in parts) for i in range(3))
    num, num_rest = _add(state.num_examples, state.num_examples_rest, jnp.float32(1), count)
    return MeanState(total, rest, num, num_rest, magnitude)


def mean_finalize(state: MeanState) -> Any:
    """Returns the mean over all examples so far.

    The mean is Σ num_examples · value / Σ num_examples over the batches, rounded once.

    Args:
      state: a `MeanState`, from `mean_init` or `mean_update`. It stays as it is, and more batches
        may be added to it.

    Returns:
      A pytree shaped like the values, float32 or wider; NaN where no example was added.

    Raises: nothing of its own.

    Cost: a few passes over the entries; no gradient.

    Source: own; the sums are explained in `mean_update`.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> state = sap.mean_update(sap.mean_init(jnp.zeros(2)), jnp.array([1.0, 4.0]), 3)
      >>> sap.mean_finalize(sap.mean_update(state, jnp.array([5.0, 0.0]), 1))
      Array([2., 3.], dtype=float32)
    """

    def divide(total: Any, rest: Any, magnitude: Any) -> jax.Array:
        total, rest = jnp.asarray(total), jnp.asarray(rest)
        counts = [
            jnp.asarray(count, total.dtype)
            for count in (state.num_examples, state.num_examples_rest)
        ]
        # Backends divide by a scalar in several ways; the remainder takes the difference back.
        quotient = total / counts[0]
        for count in counts:
            total, rest = _add(total, rest, -quotient, count)
        mean = quotient + (total + rest) / counts[0]
        return mean * _units(jnp.asarray(magnitude), mean.dtype)

    return jax.tree.map(divide, state.total, state.rest, state.magnitude)


def _units(magnitude: jax.Array, dtype: Any) -> jax.Array:
    """What numbers of each magnitude are measured in: powers of two."""
    unit = 2.0 ** (jnp.finfo(dtype).maxexp // 2)
    exact = lambda number: jnp.asarray(number, dtype)
    return jnp.where(magnitude > 0, exact(unit), jnp.where(magnitude < 0, exact(1 / unit), 1))


def _add_leaf(
    total: Any, rest: Any, magnitude: Any, x: Any, count: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Adds x · count to a leaf, in units of the largest magnitude so far."""
    total, rest, before = map(jnp.asarray, (total, rest, magnitude))
    x = jnp.asarray(x).astype(total.dtype)
    large, small = (_units(jnp.int8(sign), x.dtype) for sign in (1, -1))
    own = (jnp.abs(x) > large).astype(jnp.int8) - (jnp.abs(x) < small).astype(jnp.int8)
    now = jnp.maximum(before, own)
    units = _units(now, x.dtype)
    change = _units(before, x.dtype) / units
    return *_add(total * change, rest * change, x / units, count), now


def _add(
    total: jax.Array, rest: jax.Array, x: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Adds x · count without losing a bit of the product or of the sum."""
    for x_part in _halves(x):
        for count_part in _halves(count.astype(x.dtype)):
            # Both factors have half a float's digits, so that the product is exact and no compiler
            # changes the result by fusing it with the sum.
            part = x_part * count_part
            new = total + part
            shift = new - total
            rest = rest + ((total - (new - shift)) + (part - shift))
            total = new
    return total, rest


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x as the sum of its leading and its trailing digits."""
    word, dropped = (jnp.uint64, 27) if x.dtype == jnp.float64 else (jnp.uint32, 12)
    bits = lax.bitcast_convert_type(x, word)
    leading = lax.bitcast_convert_type(bits >> dropped << dropped, x.dtype)
    return leading, x - leading
