"""What the study of selections consists of, the most informative part first."""

import dataclasses

from benchmarks.ablation.study import Part
from benchmarks.learning.settings import Settings

FRACTIONS = (0.005, 0.01, 0.05, 0.2)
FIRST_DERIVATIVES = ("first_order", "iterative", "corrected_only")
"""The updates of the CNN, whose products with the Hessian would take most of the study's time."""
DIGITS_SEEDS, MNIST_SEEDS = 10, 5


def study_parts(
    *,
    seeds: int | None,
    fractions: tuple[float, ...],
    few_fractions: tuple[float, ...],
    mnist_examples: int | None,
    curvature_examples: int,
    data_dir: str | None,
) -> dict[str, Part]:
    """The parts by their names; the options are those of the command."""
    digits = Settings(
        seeds=seeds or DIGITS_SEEDS, curvature_examples=curvature_examples, data_dir=data_dir
    )
    of = lambda **changes: dataclasses.replace(digits, **changes)
    backdoor, cnn = {"scenario": "backdoor"}, {"model": "cnn"}
    mnist = of(dataset="mnist", seeds=seeds or MNIST_SEEDS, train_examples=mnist_examples)
    few = "only 10 % known"
    parts = [
        Part("digits-label", "Digits, false labels, MLP", digits, fractions),
        Part("digits-backdoor", "Digits, backdoor, MLP", of(**backdoor), fractions),
        Part("mnist-label", "MNIST, false labels, MLP", mnist, few_fractions),
        Part("digits-label-few", f"Digits, false labels, {few}, MLP", of(known=0.1), fractions),
        Part(
            "digits-backdoor-few",
            f"Digits, backdoor, {few}, MLP",
            of(**backdoor, known=0.1),
            fractions,
        ),
        Part(
            "digits-backdoor-cnn",
            "Digits, backdoor, CNN",
            of(**backdoor, **cnn),
            few_fractions,
            FIRST_DERIVATIVES,
        ),
        Part(
            "digits-label-cnn",
            "Digits, false labels, CNN",
            of(**cnn),
            few_fractions,
            FIRST_DERIVATIVES,
        ),
    ]
    return {part.name: part for part in parts}
