"""False labels: 240 of 1,200 digits were labelled as the next digit; 24 entries change."""

import jax
import numpy as np
from digits import model_fn, test_images, test_labels, train, train_images, train_labels, unlearn

import sapsel_jax as sap

bad = np.arange(0, 1200, 5)
wrong = train_labels.copy()
wrong[bad] = (wrong[bad] + 1) % 10
data = (train_images, train_labels)
before, retrained = (train((train_images, y), jax.random.key(0)) for y in (wrong, train_labels))

original = (train_images[bad], wrong[bad])  # as they were trained on
corrected = (train_images[bad], train_labels[bad])  # as they should have been
result = unlearn(before, original, corrected, data, key=jax.random.key(1))
assert result.certificate.converged

text = sap.audit.report(
    model_fn,
    before,
    result.params,
    original,
    corrected,
    (test_images, test_labels),
    retrained=retrained,
)
print(text)
