"""The options that decide what a comparison measures, shared by the commands that make one."""

from dataclasses import dataclass

from benchmarks.learning.data import DATASETS, Dataset, load_dataset
from benchmarks.learning.models import MODELS, Model, build_model
from benchmarks.learning.scenarios import SCENARIOS
from benchmarks.learning.training import RECIPES, Recipe
from benchmarks.tools.errors import UsageError, check_at_least, check_choice, check_share


@dataclass(frozen=True)
class Settings:
    """What is compared, and on what."""

    dataset: str = "digits"
    """digits (embedded), mnist or cifar10 (prepared once by tensorflow-datasets)."""
    scenario: str = "label"
    """What is wrong with the data: label, backdoor, feature or sample."""
    model: str = "mlp"
    """The network: mlp, cnn, convnet or resnet."""
    seeds: int = 5
    """How many seeds are reported; one more is used for tuning."""
    share: float | None = None
    """Share of the training examples that is poisoned; None is the scenario's own."""
    known: float = 1.0
    """Share of the poisoned examples that is known, corrected and judged as the forget set; the
    others stay in the training set unnoticed."""
    fraction: float = 0.05
    """Share of the parameters that a mask selects."""
    budget: float = 0.05
    """Example gradients of the iterative update, as a share of those of retraining. Half of its
    examples are corrected ones, half are retained."""
    curvature_examples: int = 2_000
    """Training examples that curvature is measured on, drawn at random; fewer where the training
    set is smaller."""
    train_examples: int | None = None
    """Training examples to use, drawn at random; None uses all."""
    epochs: int | None = None
    """Passes over the training set when training; None is the recipe of data set and model."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps prepared data; None is its default, or TFDS_DATA_DIR."""

    def check(self) -> None:
        """Raises UsageError unless every setting is in its range."""
        check_choice("dataset", self.dataset, DATASETS)
        check_choice("scenario", self.scenario, SCENARIOS)
        check_choice("model", self.model, MODELS)
        check_at_least("seeds", self.seeds, 1)
        check_share("share", self.poison_share)
        if not 0 < self.known <= 1:
            raise UsageError(f"`known` must lie above 0, at most 1; got {self.known:g}.")
        check_share("fraction", self.fraction)
        check_share("budget", self.budget)
        check_at_least("curvature-examples", self.curvature_examples, 1)
        if self.train_examples is not None:
            check_at_least("train-examples", self.train_examples, 100)
        if self.epochs is not None:
            check_at_least("epochs", self.epochs, 1)

    @property
    def poison_share(self) -> float:
        """The share of the training examples that is poisoned."""
        return SCENARIOS[self.scenario].share if self.share is None else self.share

    def load(self, seed: int) -> Dataset:
        """The data of one seed."""
        return load_dataset(
            self.dataset, data_dir=self.data_dir, seed=seed, train_examples=self.train_examples
        )

    def build(self, dataset: Dataset) -> Model:
        """The network."""
        return build_model(
            self.model,
            dataset=dataset.name,
            image_shape=dataset.train.images.shape[1:],
            num_classes=dataset.num_classes,
        )

    @property
    def recipe(self) -> Recipe:
        """How the network is trained."""
        recipe = RECIPES[self.dataset, self.model]
        return recipe if self.epochs is None else recipe._replace(epochs=self.epochs)
