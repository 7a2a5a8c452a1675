"""Convolutions in the forms that curvature needs of them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sapsel_jax._primitives.signature import Kept, Signature
from sapsel_jax._primitives.tangents import Label, Tangent

MAX_SHIFTS = 64
"""A convolution kernel of at most so many places is read by shifted copies of its input."""


def axes(signature: Signature, position: int, marked: Sequence[bool]) -> Kept:
    """The examples of an image, and the output channels of a kernel."""
    numbers = signature.params["dimension_numbers"]
    kept: Kept = [None] * len(signature.shapes[position])
    if signature.params["batch_group_count"] == 1:
        if position == 0:
            kept[numbers.lhs_spec[0]] = numbers.out_spec[0]
        else:
            kept[numbers.rhs_spec[0]] = numbers.out_spec[1]
    return kept


def work(signature: Signature) -> float:
    """Multiplications and additions."""
    kernel = signature.shapes[1]
    out = kernel[signature.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(signature.out) * math.prod(kernel) / max(out, 1)


def push(
    signature: Signature, position: int, inputs: Sequence[Any], tangent: Tangent, kept: Kept
) -> Tangent | None:
    """A convolution whose whole kernel moves: what each place of it sees, its patches."""
    params = signature.params
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    whole = all(tangent.tied[a] for a in range(len(tangent.tied)))
    if position == 0 or params["batch_group_count"] != 1 or not whole:
        return None
    image, spec = inputs[0], numbers.rhs_spec
    kernel = signature.shapes[1]
    window = [kernel[a] for a in spec[2:]]
    num_places, depth, num_out = math.prod(window), kernel[spec[1]], kernel[spec[0]]
    image = image.transpose(numbers.lhs_spec).astype(tangent.value.dtype)
    patches = _patches(image, window, params)  # (places, batch, channels, *out)
    patches = patches.reshape(num_places, patches.shape[1], groups, depth, *patches.shape[3:])
    patches = jnp.moveaxis(patches, 3, 1)  # (places, depth, batch, groups, *out)
    patches = patches.reshape(*window, *patches.shape[1:])
    if groups > 1:
        patches = jnp.repeat(patches, num_out // groups, axis=len(window) + 2)
    # Axes of `value`: directions, then the kernel's as (out, in, *window).
    count, spatial = len(tangent.directions), len(window)
    value = tangent.value.transpose(*range(count), *(count + a for a in spec))
    value = jnp.moveaxis(value, count + 1, -1)  # (directions, out, *window, in)
    value = jnp.moveaxis(value, count, -1)  # (directions, *window, in, out)
    value = value.reshape(*value.shape[:-1], 1, value.shape[-1], *(1,) * spatial)
    value = value * patches  # (directions, *window, in, batch, out, *positions)
    lead = count + spatial + 1
    axes = [lead + numbers.out_spec.index(a) for a in range(len(numbers.out_spec))]
    value = value.transpose(*range(lead), *axes)
    labels = tangent.directions
    for axis in (*spec[2:], spec[1]):
        labels += tangent.tied[axis]
    value = value.reshape(*(label.size for label in labels), *value.shape[lead:])
    tied: list[tuple[Label, ...]] = [()] * len(axes)
    tied[numbers.out_spec[1]] = tangent.tied[spec[0]]
    return Tangent(value, labels, tuple(tied))


def _patches(image: jax.Array, window: Sequence[int], params: Any) -> jax.Array:
    """What each place of a kernel sees: (places, batch, channels, *positions)."""
    strides, spread_by = params["window_strides"], params["rhs_dilation"]
    batch, channels = image.shape[:2]
    if math.prod(window) > MAX_SHIFTS:
        patches = lax.conv_general_dilated_patches(
            image,
            window,
            strides,
            params["padding"],
            lhs_dilation=params["lhs_dilation"],
            rhs_dilation=spread_by,
            precision=lax.Precision.HIGHEST,
        )
        patches = patches.reshape(batch, channels, math.prod(window), *patches.shape[2:])
        return jnp.moveaxis(patches, 2, 0)
    padding = [
        (lo, hi, d - 1)
        for (lo, hi), d in zip(params["padding"], params["lhs_dilation"], strict=True)
    ]
    image = lax.pad(image, jnp.zeros((), image.dtype), [(0, 0, 0), (0, 0, 0), *padding])
    lengths = [
        (size - (w - 1) * d - 1) // s + 1
        for size, w, d, s in zip(image.shape[2:], window, spread_by, strides, strict=True)
    ]
    parts = []
    for place in range(math.prod(window)):
        offsets = []
        for w in reversed(window):
            place, offset = divmod(place, w)
            offsets.append(offset)
        starts = [o * d for o, d in zip(reversed(offsets), spread_by, strict=True)]
        limits = [
            start + (n - 1) * s + 1 for start, n, s in zip(starts, lengths, strides, strict=True)
        ]
        parts.append(
            lax.slice(image, (0, 0, *starts), (batch, channels, *limits), (1, 1, *strides))
        )
    return jnp.stack(parts)


def pull(
    signature: Signature, inputs: Sequence[Any]
) -> Callable[[Sequence[jax.Array]], Sequence[jax.Array]] | None:
    """The cotangent of a convolution's image, for one group of channels.

    The same sums as the transpose that JAX takes, with the channels last and the kernel written
    out as it is used: inside a loop XLA's CPU compiler runs this form several times faster.
    """
    params, kernel = signature.params, inputs[1]
    groups = params["feature_group_count"], params["batch_group_count"]
    if groups != (1, 1) or params["preferred_element_type"] not in (None, kernel.dtype):
        return None
    numbers = params["dimension_numbers"]
    image, out, padding = signature.shapes[0], signature.out, []
    for i, (low, _) in enumerate(params["padding"]):
        window = (kernel.shape[numbers.rhs_spec[2 + i]] - 1) * params["rhs_dilation"][i]
        size = (image[numbers.lhs_spec[2 + i]] - 1) * params["lhs_dilation"][i] + 1
        length = (out[numbers.out_spec[2 + i]] - 1) * params["window_strides"][i] + 1
        before = window - low
        padding.append((before, size + window - length - before))
    last = lambda spec: (spec[0], *spec[2:], spec[1])
    rank, spatial = len(image), tuple(range(len(padding)))
    channels_last = lax.ConvDimensionNumbers(
        lhs_spec=(0, rank - 1, *range(1, rank - 1)),
        rhs_spec=(rank - 1, rank - 2, *range(rank - 2)),
        out_spec=(0, rank - 1, *range(1, rank - 1)),
    )
    order = last(numbers.lhs_spec)

    def back(cotangents: Sequence[jax.Array]) -> Sequence[jax.Array]:
        turned = kernel.transpose(*numbers.rhs_spec[2:], *numbers.rhs_spec[:2])
        result = lax.conv_general_dilated(
            cotangents[0].transpose(last(numbers.out_spec)),
            jnp.flip(turned, spatial),
            window_strides=params["lhs_dilation"],
            padding=padding,
            lhs_dilation=params["window_strides"],
            rhs_dilation=params["rhs_dilation"],
            dimension_numbers=channels_last,
            precision=params["precision"],
        )
        return [result.transpose([order.index(axis) for axis in range(rank)])]

    return back
