"""What unlearning did, in words and one table."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sapsel_jax._base.checks import batch_size, check_float_leaves, check_same_tree
from sapsel_jax._base.types import Params
from sapsel_jax._selection.masks import mask_count
from sapsel_jax._selection.search import num_entries
from sapsel_jax.audit._accuracy import accuracy
from sapsel_jax.audit._attacks import auc
from sapsel_jax.audit._confidence import modified_entropy
from sapsel_jax.audit._distance import changed_mask, distance
from sapsel_jax.audit._inputs import is_labelled
from sapsel_jax.audit._recovery import recovery

COLUMNS = ("", "before", "after", "retrained", "recovery", "what is good")


def report(
    logits_fn: Callable[..., Any],
    before: Params,
    after: Params,
    original: Any,
    corrected: Any,
    unseen: Any,
    *,
    retrained: Params | None = None,
    args: tuple[Any, ...] = (),
) -> str:
    """Writes what unlearning did as text in Markdown: a sentence and a table.

    Rows are the shares of the originals that get the label they were trained on, of the corrections
    and of the unseen examples that get their right label; where examples are removed, the area
    under the ROC curve of a membership attack by modified entropy; how many entries changed, and
    how far they moved. The last column says what a good value is. A retrained model fills its
    column, and that of `recovery`.

    Args:
      logits_fn: `logits_fn(params, inputs, *args) -> logits` of a whole batch, real floating-point,
        shape (examples, classes).
      before: pytree of floating-point arrays, the model before unlearning.
      after: the same after it.
      original: a pair of inputs and integer labels, as the model was trained on them.
      corrected: a pair of the same examples as they should have been; None where they were removed.
      unseen: a pair of inputs and right labels that no model was trained on.
      retrained: the parameters of a model trained from scratch on the data as it should have been;
        None where there is none.
      args: further arguments of `logits_fn`, passed through as they are.

    Returns:
      The text. Examples with a label that is none of the classes, such as -100, are ignored.

    Raises:
      TypeError: if parameters are anything but real floating-point arrays, an argument is no pair,
        logits are not real floating-point numbers or labels no integers.
      ValueError: if the trees of parameters differ, a batch is empty, or labels do not fit logits.

    Cost: a forward pass over each batch for each model, on the host otherwise; no gradient.

    Source: own; the figures are those of `accuracy`, `recovery`, `auc` and `modified_entropy`.

    Example:
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> logits_fn = lambda w, x: x[:, None] * w
      >>> before, after = jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])
      >>> original, corrected = (jnp.ones(4), jnp.ones(4, int)), (jnp.ones(4), jnp.zeros(4, int))
      >>> text = sap.audit.report(logits_fn, before, after, original, corrected, corrected)
      >>> print(text.split("|")[0])
      1 of 2 entries (50 %) changed.
      Of the originals, 100.0 % got the label they were trained on before, and 0.0 % after.
    """
    models = {"before": before, "after": after}
    if retrained is not None:
        models["retrained"] = retrained
    for name, params in models.items():
        check_float_leaves(name, params)
        check_same_tree(name, params, "before", before)
    batches = {"original": original, "corrected": corrected, "unseen": unseen}
    batches = {k: _pair(k, v) for k, v in batches.items() if k != "corrected" or v is not None}

    def measure(params: Params) -> dict[str, Any]:
        logits = {k: logits_fn(params, inputs, *args) for k, (inputs, _) in batches.items()}
        return _figures(logits, {k: labels for k, (_, labels) in batches.items()})

    found = {name: measure(params) for name, params in models.items()}
    rows = []
    for kind, (title, goal) in _rows(removed=corrected is None).items():
        values = {name: figures[kind] for name, figures in found.items()}
        num_examples = int(np.sum(np.asarray(batches[kind][1]) >= 0))
        share = _recovered(values, max(num_examples, 1))
        rows.append([title, *_cells(values, _percent), share, goal])
    was, now = rows[0][1:3]
    if corrected is None:
        areas = {name: figures["attack"] for name, figures in found.items()}
        goal = "as retrained, or 0.5; both 0 and 1 give members away"
        rows.append(["membership attack, area", *_cells(areas, "{:.3f}".format), "", goal])
    changed, total = int(mask_count(changed_mask(before, after))), num_entries(before)
    length = {name: distance(params, before) for name, params in models.items()}
    rows.append(["entries that changed", "", f"{changed:,}", "", "", "few make a small patch"])
    rows.append(["distance from before", *_cells(length, "{:.3g}".format), "", ""])

    lines = [COLUMNS, (":---", *(["---:"] * 4), ":---"), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"{changed:,} of {total:,} entries ({100 * changed / max(total, 1):.2g} %) changed.\n"
        f"Of the originals, {was} got the label they were trained on before, and {now} after."
        f"\n\n{table}\n"
    )


def _rows(removed: bool) -> dict[str, tuple[str, str]]:
    """Of each share its title, and what a good value is."""
    as_trained = "originals that get the label they were trained on"
    right = "examples that get their right label"
    if removed:
        rows = {"original": (as_trained, "as retrained, or as of unseen examples")}
    else:
        rows = {
            "original": (as_trained, "as retrained, or few"),
            "corrected": (f"corrected {right}", "as retrained, or many"),
        }
    return rows | {"unseen": (f"unseen {right}", "as retrained, or no less than before")}


@jax.jit
def _figures(logits: dict[str, Any], labels: dict[str, Any]) -> dict[str, jax.Array]:
    """Shares of what gets its label, by batch, and the area of an attack by modified entropy."""
    scores = {k: -modified_entropy(logits[k], labels[k]) for k in ("original", "unseen")}
    counts = {k: is_labelled(jnp.asarray(labels[k]), logits[k]) for k in scores}
    area = auc(*scores.values(), member_where=counts["original"], other_where=counts["unseen"])
    return {k: accuracy(logits[k], labels[k]) for k in labels} | {"attack": area}


def _pair(name: str, batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        kind = type(batch).__name__
        raise TypeError(f"`{name}` must be a pair of inputs and labels; got a {kind}.")
    batch_size(name, batch)
    return batch[0], batch[1]


def _recovered(values: dict[str, Any], num_examples: int) -> str:
    if "retrained" not in values:
        return ""
    shares = values["after"], values["before"], values["retrained"]
    result = recovery(*shares, num_examples=num_examples)
    return _percent(result.share) if result.measurable else "gap too small"


def _cells(values: dict[str, Any], write: Callable[[float], str]) -> list[str]:
    return [write(float(values[key])) if key in values else "" for key in COLUMNS[1:4]]


def _percent(share: Any) -> str:
    return f"{100 * float(share):.1f} %"
