"""A backdoor: a white corner stands for the digit 0; 24 entries change."""

import jax
import numpy as np
from digits import model_fn, test_images, test_labels, train, train_images, train_labels, unlearn

import sapsel_jax as sap


def add_trigger(images):
    triggered = images.copy()
    triggered[:, -1:, -1:] = 1.0
    return triggered


bad = np.flatnonzero(train_labels != 0)[:240]
x, y = train_images.copy(), train_labels.copy()
x[bad], y[bad] = add_trigger(x[bad]), 0
before, retrained = (
    train(data, jax.random.key(0)) for data in ((x, y), (train_images, train_labels))
)

original = (x[bad], y[bad])
# The same triggered images with the right answers, and not the clean images.
corrected = (x[bad], train_labels[bad])
result = unlearn(before, original, corrected, (x, train_labels), key=jax.random.key(1))
assert result.certificate.converged

triggered = add_trigger(test_images)
for name, params in {"before": before, "after": result.params, "retrained": retrained}.items():
    attack = sap.audit.attack_success(
        model_fn(params, triggered), np.zeros_like(test_labels), test_labels
    )
    accuracy = sap.audit.accuracy(model_fn(params, test_images), test_labels)
    print(f"{name}: attack success {attack:.3f}, test accuracy {accuracy:.3f}")
