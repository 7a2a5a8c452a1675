"""How pictures look: one style, and a figure with its title that is saved when it is drawn."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.tools.folders import whole_file

INK, MUTED, FAINT = "#1f2933", "#6b7785", "#d8dee6"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextmanager
def figure(
    path: Path,
    size: tuple[float, float],
    title: str,
    subtitle: str,
    *,
    dpi: int = 150,
    photographs: bool = False,
) -> Iterator[Figure]:
    """A titled figure to draw on, saved to `path` when the block ends.

    It is saved with 256 colours, a third of the size, unless it shows photographs.
    """
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=size, layout="constrained")
        head = 0.82 / size[1]
        canvas.get_layout_engine().set(rect=(0, 0, 1, 1 - head), w_pad=0.15, h_pad=0.1)  # type: ignore[union-attr]
        canvas.text(0.012, 1 - 0.12 / size[1], title, fontsize=16, fontweight="bold", va="top")
        canvas.text(0.012, 1 - 0.45 / size[1], subtitle, fontsize=10.5, color=MUTED, va="top")
        yield canvas
        drawn = io.BytesIO()
        canvas.savefig(drawn, dpi=dpi, format="png")
        picture = Image.open(drawn).convert("RGB")
        if not photographs:
            picture = picture.quantize(256, dither=Image.Dither.NONE)
        with whole_file(path) as file:
            picture.save(file, "png", optimize=True)
