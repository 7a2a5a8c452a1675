"""Pictures of what is wrong with the data."""

from pathlib import Path

from benchmarks.learning.data import is_prepared
from benchmarks.learning.settings import Settings
from benchmarks.methods.case import poisoned_data
from benchmarks.methods.tuning import TUNING_SEED
from benchmarks.tools.drawing import INK, figure

NUM_IMAGES = 8


def draw_images(path: Path, settings: Settings) -> None:
    """A few poisoned examples beside what they should have been.

    A picture that is there already is kept where the data are not.
    """
    if path.exists() and not is_prepared(settings.dataset, settings.data_dir):
        return
    _, poisoned = poisoned_data(settings, TUNING_SEED)
    removal = poisoned.corrected is None
    rows = [("to be removed", poisoned.original)] if removal else []
    if poisoned.corrected is not None:
        rows = [("as trained on", poisoned.original), ("corrected", poisoned.corrected)]
    count = min(NUM_IMAGES, len(poisoned.original.labels))
    with figure(
        path,
        (12.0, 1.1 + 1.6 * len(rows)),
        "What is wrong with the data",
        f"{len(poisoned.indices):,} of {len(poisoned.train.labels):,} training examples; above "
        "each image the label it was given.",
        photographs=True,
    ) as canvas:
        axes = canvas.subplots(len(rows), count, squeeze=False)
        for row, (name, split) in zip(axes, rows, strict=True):
            for i, ax in enumerate(row):
                image = split.images[i]
                grey = image.shape[-1] == 1
                ax.imshow(image[..., 0] if grey else image, cmap="gray", vmin=0, vmax=1)
                ax.set_xticks([])
                ax.set_yticks([])
                for spine in ax.spines.values():
                    spine.set_visible(False)
                wrong = removal or split.labels[i] != poisoned.forget.labels[i]
                ax.set_title(
                    str(split.labels[i]),
                    loc="center",
                    pad=4,
                    color="#D55E00" if wrong else "#0072B2",
                    fontweight="bold",
                )
            row[0].set_ylabel(name, color=INK, labelpad=10)
