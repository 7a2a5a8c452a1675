"""The report in Markdown: figures worked out by hand."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refuses

from sapsel_jax import audit

INPUTS = np.array([1, 2, 3, 4], np.float32)
BEFORE, AFTER, RETRAINED = ({"w": jnp.array(w)} for w in ([0.0, 1.0], [0.0, -1.0], [-1.0, -1.5]))
ORIGINAL, CORRECTED = (INPUTS, np.ones(4, int)), (INPUTS, np.zeros(4, int))
UNSEEN = (INPUTS[:2], np.array([0, 1]))


def logits_fn(params, inputs, shift=0.0):
    return inputs[:, None] * params["w"] + shift


def cells(text):
    """The rows of the table by title."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0]: [cell.strip() for cell in row[1:]] for row in rows[2:]}


def test_corrections_with_a_retrained_model():
    text = audit.report(logits_fn, BEFORE, AFTER, ORIGINAL, CORRECTED, UNSEEN, retrained=RETRAINED)
    assert text.startswith(
        "1 of 2 entries (50 %) changed.\n"
        "Of the originals, 100.0 % got the label they were trained on before, and 0.0 % after.\n\n|"
    )
    rows = cells(text)
    old = rows["originals that get the label they were trained on"]
    assert old[:4] == ["100.0 %", "0.0 %", "0.0 %", "100.0 %"]
    new = rows["corrected examples that get their right label"]
    assert new[:4] == ["0.0 %", "100.0 %", "100.0 %", "100.0 %"]
    # One of two is right with either model, which is no gap.
    unseen = rows["unseen examples that get their right label"]
    assert unseen[:4] == ["50.0 %", "50.0 %", "50.0 %", "gap too small"]
    assert rows["entries that changed"][1] == "1"
    assert rows["distance from before"][:3] == ["0", "2", "2.69"]  # √(1 + 2.5²)
    assert len(rows) == 5


def test_removed_examples_are_attacked():
    rows = cells(audit.report(logits_fn, BEFORE, AFTER, ORIGINAL, None, UNSEEN))
    # Before, an original is surer than the unseen 1 of label 0, and than the unseen 2 of label 1
    # where its input is larger: 4 + (½ + 2) of 8 pairs, less one half where both inputs are 2.
    assert rows["membership attack, area"][:3] == ["0.812", "0.188", ""]
    assert "corrected examples that get their right label" not in rows
    old = rows["originals that get the label they were trained on"]
    assert old[:4] == ["100.0 %", "0.0 %", "", ""]


def test_other_labels_are_ignored_and_arguments_pass():
    original = (INPUTS, np.array([1, 1, -100, -100]))
    unseen = (INPUTS, np.array([0, 1, -100, 1]))
    some = audit.report(logits_fn, BEFORE, AFTER, original, None, unseen, args=(jnp.ones(2),))
    fewer = audit.report(
        logits_fn,
        BEFORE,
        AFTER,
        (INPUTS[:2], np.ones(2, int)),
        None,
        (INPUTS[[0, 1, 3]], np.array([0, 1, 1])),
    )
    assert some == fewer


@pytest.mark.parametrize("name", ["original", "corrected", "unseen"])
def test_what_is_no_pair_is_refused(name):
    given: dict[str, Any] = {"original": ORIGINAL, "corrected": CORRECTED, "unseen": UNSEEN} | {
        name: INPUTS
    }
    refuses(
        lambda: audit.report(logits_fn, BEFORE, AFTER, **given),
        TypeError,
        f"`{name}` must be a pair of inputs and labels; got a ndarray.",
    )


def test_other_parameters_are_refused():
    refuses(
        lambda: audit.report(logits_fn, BEFORE, {"v": jnp.ones(2)}, ORIGINAL, None, UNSEEN),
        ValueError,
        "`after` and `before` must have the same structure; they first differ at 'v' against 'w'.",
    )
    refuses(
        lambda: audit.report(logits_fn, BEFORE, {"w": jnp.ones(2, int)}, ORIGINAL, None, UNSEEN),
        TypeError,
        "`after` must hold real floating-point arrays; leaf 'w' has dtype int32.",
    )
