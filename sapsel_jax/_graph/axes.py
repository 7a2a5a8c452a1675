"""Which axes an operation keeps apart.

An operation keeps an axis of an input apart where each place along it acts on one place of an axis
of the output alone: `axes_kept` names that axis. Channels through a pooling are an example, or the
rows of a matrix through a product from the right.
"""

from collections.abc import Sequence

from sapsel_jax._graph.graph import Graph, Node

Shape = tuple[int, ...]


def axes_kept(graph: Graph, node: Node, position: int, marked: Sequence[bool]) -> list[int | None]:
    """For each axis of an input the axis of the output that it is kept apart on, or None.

    `marked` says which axes of the input it is asked for; several marked axes that a reshape merges
    into one are kept on that one.
    """
    source, target = graph.shape(node.ins[position]), graph.shape(node.outs[0])
    params, name = node.params, node.name
    axes = range(len(source))
    if node.elementwise:
        return [a if source[a] == target[a] else None for a in axes]
    if name == "transpose":
        return [params["permutation"].index(a) for a in axes]
    if name == "broadcast_in_dim" and position == 0:
        places = params["broadcast_dimensions"]
        return [places[a] if source[a] == target[places[a]] else None for a in axes]
    if name in ("reshape", "squeeze", "expand_dims"):
        return _through_reshape(source, target, marked)
    if name == "dot_general":
        return _through_dot(graph, node, position)
    if name == "conv_general_dilated":
        return _through_convolution(graph, node, position)
    if name == "scan_stack":
        return [a + 1 for a in axes]
    touched = _touched(node, position, source)
    if touched is None:
        return [None] * len(source)
    dropped = touched if len(target) < len(source) else ()
    return [None if a in touched else a - sum(d < a for d in dropped) for a in axes]


def _touched(node: Node, position: int, shape: Shape) -> set[int] | None:
    """The axes that an operation mixes or cuts; None where that is not known."""
    params, name = node.params, node.name
    axes = range(len(shape))
    if name in ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"):
        return set(params["axes"])
    if name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "split"):
        return {params["axis"]}
    if name in ("concatenate", "sort"):
        return {params["dimension"]}
    if name == "rev":
        return set(params["dimensions"])
    if name == "scan_slice":
        return {0}
    if name == "pad" and position == 0:
        return {a for a in axes if tuple(params["padding_config"][a]) != (0, 0, 0)}
    if name == "slice":  # A slice of full length is the whole axis in its order.
        limits, starts = params["limit_indices"], params["start_indices"]
        strides = params["strides"] or (1,) * len(shape)
        whole = lambda a: (starts[a], limits[a], strides[a]) == (0, shape[a], 1)
        return {a for a in axes if not whole(a)}
    if name == "dynamic_slice" and position == 0:
        return {a for a in axes if params["slice_sizes"][a] != shape[a]}
    if name in ("reduce_window_sum", "reduce_window_max", "reduce_window_min"):
        names = ("window_dimensions", "window_strides", "base_dilation", "padding")
        windows = zip(*(params[key] for key in names), strict=True)
        return {a for a, (*ones, pad) in enumerate(windows) if (*ones, *pad) != (1, 1, 1, 0, 0)}
    return None


def _through_reshape(source: Shape, target: Shape, marked: Sequence[bool]) -> list[int | None]:
    """Axes are kept where a group of source axes becomes one target axis and all are marked."""
    kept: list[int | None] = [None] * len(source)
    if 0 in source:
        return kept
    i = j = 0
    while i < len(source) or j < len(target):
        group, into = [], []
        if i < len(source) and source[i] == 1:
            i += 1  # an axis of length 1 has no place to be kept on
            continue
        if j < len(target) and target[j] == 1:
            j += 1
            continue
        left, right = source[i], target[j]
        group, into, i, j = [i], [j], i + 1, j + 1
        while left != right:
            if left < right:
                left *= source[i]
                group.append(i)
                i += 1
            else:
                right *= target[j]
                into.append(j)
                j += 1
        into = [a for a in into if target[a] != 1]
        wide = [a for a in group if source[a] != 1]
        if len(into) == 1 and (len(wide) == 1 or all(marked[a] for a in group)):
            for a in group if len(wide) > 1 else wide:
                kept[a] = into[0]
    return kept


def _through_dot(graph: Graph, node: Node, position: int) -> list[int | None]:
    contracted, batch = node.params["dimension_numbers"]
    ranks = [len(graph.shape(var)) for var in node.ins[:2]]
    free = [
        [a for a in range(ranks[side]) if a not in (*contracted[side], *batch[side])]
        for side in (0, 1)
    ]
    start = len(batch[0]) + (len(free[0]) if position else 0)
    kept: list[int | None] = [None] * ranks[position]
    for place, axis in enumerate(batch[position]):
        kept[axis] = place
    for place, axis in enumerate(free[position]):
        kept[axis] = start + place
    return kept


def _through_convolution(graph: Graph, node: Node, position: int) -> list[int | None]:
    numbers = node.params["dimension_numbers"]
    kept: list[int | None] = [None] * len(graph.shape(node.ins[position]))
    if node.params["batch_group_count"] == 1:
        if position == 0:
            kept[numbers.lhs_spec[0]] = numbers.out_spec[0]
        else:
            kept[numbers.rhs_spec[0]] = numbers.out_spec[1]
    return kept
