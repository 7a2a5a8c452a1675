"""Real text as windows of characters: tiny_shakespeare, or the manual that ships with Python."""

import functools
from typing import NamedTuple

import numpy as np

from benchmarks.learning.data import Split, is_prepared, read_texts
from benchmarks.tools.errors import check_choice

TEXTS = {
    "tiny_shakespeare": "40,000 lines of Shakespeare, through tensorflow-datasets",
    "manual": "the reference of the language that ships with Python",
}
VOCABULARY = "\n" + "".join(map(chr, range(32, 127)))
CONTEXT = 64
"""Characters that the model sees at once."""
HELD_OUT = 0.1
"""The share of the manual that is test text, and as much for tuning."""
_PLACES = {character: place for place, character in enumerate(VOCABULARY)}


class Text(NamedTuple):
    """The characters of a text in three parts that follow each other."""

    name: str
    train: str
    validation: str
    test: str


def encode(text: str) -> np.ndarray:
    """Each character as its place in `VOCABULARY`; what is not in it as a space."""
    return np.array([_PLACES.get(character, _PLACES[" "]) for character in text], np.int32)


def decode(tokens: np.ndarray) -> str:
    """The text that `encode` makes these numbers of."""
    return "".join(VOCABULARY[token] for token in np.asarray(tokens).ravel())


def windows(text: str, count: int) -> Split:
    """The first `count` windows of a text, one after the other: characters and the next ones."""
    rows = min(count, (len(text) - 1) // CONTEXT)
    tokens = encode(text[: rows * CONTEXT + 1])
    return Split(tokens[:-1].reshape(rows, CONTEXT), tokens[1:].reshape(rows, CONTEXT))


def choose_text(name: str | None, data_dir: str | None) -> str:
    """The name, or where it is None tiny_shakespeare if it is prepared, else the manual.

    Raises:
      UsageError: if there is no such text.
    """
    if name is None:
        return "tiny_shakespeare" if is_prepared("tiny_shakespeare", data_dir) else "manual"
    check_choice("text", name, TEXTS)
    return name


@functools.cache
def load_text(name: str, data_dir: str | None = None) -> Text:
    """The text of that name.

    Raises:
      UsageError: if it is not prepared.
    """
    if name == "manual":
        from pydoc_data.topics import topics

        # Printable characters alone, one space for many: the manual is indented throughout.
        whole = "\n".join(
            " ".join(line.split())
            for topic in sorted(topics)
            for line in topics[topic].splitlines()
        )
        ends = [round((1 - part * HELD_OUT) * len(whole)) for part in (2, 1)]
        return Text(name, whole[: ends[0]], whole[ends[0] : ends[1]], whole[ends[1] :])
    return Text(name, *read_texts(name, data_dir))
