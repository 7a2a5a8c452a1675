"""Removed records: 120 examples should not have been used; there is nothing to correct them to."""

import functools

import jax
import numpy as np
from digits import (
    loss_fn,
    model_fn,
    test_images,
    test_labels,
    train,
    train_images,
    train_labels,
)

import sapsel_jax as sap

removed = np.arange(0, 1200, 10)
kept = np.setdiff1d(np.arange(1200), removed)
original = (train_images[removed], train_labels[removed])
data = (train_images[kept], train_labels[kept])
before = train((train_images, train_labels), jax.random.key(0))
retrained = train(data, jax.random.key(0))

# Records need many entries: here a tenth of them.
unlearn = jax.jit(functools.partial(sap.unlearn, loss_fn, corrected=None, fraction=0.1))
result = unlearn(before, original, data=data, key=jax.random.key(1))
assert result.certificate.converged

unseen = (test_images, test_labels)
print(
    sap.audit.report(model_fn, before, result.params, original, None, unseen, retrained=retrained)
)
