"""What the tests of scores, masks and transformations share: a tree, an oracle, a look at bits."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

SHAPES = {"bias": (4,), "conv": (2, 3, 2), "empty": (0, 3), "kernel": (5, 3), "scale": ()}
DTYPES = {"bias": np.float16, "conv": ml_dtypes.bfloat16}
NUM_ENTRIES = 4 + 12 + 0 + 15 + 1


def tree_of(values):
    """A flat vector as a tree of four dtypes' worth of leaves, empty and scalar ones included."""
    leaves, start = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        leaf = np.asarray(values[start : start + size], np.float32).reshape(shape)
        leaves[name] = leaf.astype(DTYPES.get(name, np.float32))
        start += size
    return leaves


def random_tree(seed=0):
    return tree_of(np.random.default_rng(seed).standard_normal(NUM_ENTRIES))


def flat(tree):
    """All entries in leaf order."""
    leaves = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf if leaf.dtype == bool else leaf.astype(float) for leaf in leaves])


def top_oracle(scores, count):
    """The flat mask by NumPy's stable sort; NaN and -inf are never selected."""
    values = flat(scores)
    usable = values > -np.inf
    order = np.argsort(-np.where(usable, values, -np.inf), kind="stable")
    mask = np.zeros(values.size, bool)
    mask[order[: min(count, usable.sum())]] = True
    return mask


def changed_bits(before, after):
    """Flat mask of the entries whose bits differ; -0.0 is not 0.0 here."""

    def differ(a, b):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        word = np.dtype(f"u{a.dtype.itemsize}")
        return a.reshape(-1).view(word) != b.reshape(-1).view(word)

    return np.concatenate(
        [differ(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)]
    )


def collectives(compiled):
    """The kinds of collective operations in a compiled program."""
    kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    text = compiled.as_text()
    return {kind for kind in kinds if f" {kind}(" in text or f" {kind}-start(" in text}


def equations(jaxpr):
    """All equations of a jaxpr, those of its inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def as_jax(tree):
    return jax.tree.map(jnp.asarray, tree)
