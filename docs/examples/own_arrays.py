"""From your own model, checkpoint, arrays and bad rows to a patch and a report.

Run as `python own_arrays.py FOLDER`; FOLDER holds `data.npz` (x, y), `bad_rows.csv` (row, right
label) and `checkpoint`, as `your_files.py` writes them.
"""

import functools
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from your_files import Network  # your own model

import sapsel_jax as sap

folder = Path(sys.argv[1]).absolute()

# The model's parameters, as a plain dictionary of arrays.
structure, state = nnx.split(nnx.eval_shape(lambda: Network(nnx.Rngs(0))))
with ocp.StandardCheckpointer() as checkpointer:
    params = checkpointer.restore(folder / "checkpoint", nnx.to_pure_dict(state))


def logits_fn(params, x):
    return nnx.merge(structure, params)(x)


def loss_fn(params, example):
    x, y = example
    return optax.softmax_cross_entropy_with_integer_labels(logits_fn(params, x), y)


# The bad rows as they were, as they should have been, and the whole training set put right.
with np.load(folder / "data.npz") as file:
    x, y = file["x"], file["y"]
bad, right = np.loadtxt(folder / "bad_rows.csv", int, delimiter=",", unpack=True)
original, corrected = (x[bad], y[bad]), (x[bad], right)
y[bad] = right
data, unseen = (x[:1200], y[:1200]), (x[1200:], y[1200:])  # the last rows were never trained on

# The certificate says whether to trust the result.
unlearn = functools.partial(sap.unlearn, loss_fn, count=24)
result = jax.jit(unlearn)(params, original, corrected, data, key=jax.random.key(0))
if not result.certificate.converged:
    raise SystemExit(sap.Reason(int(result.certificate.reason)).name)

patch = sap.make_patch(params, result.params)
sap.save_patch(folder / "unlearned.patch", patch)
report = sap.audit.report(logits_fn, params, result.params, original, corrected, unseen)
changes = sap.describe_patch(patch)
(folder / "report.md").write_text(
    f"# Unlearning {len(bad)} rows\n\n{report}\n```\n{changes}\n```\n"
)
print(report)
