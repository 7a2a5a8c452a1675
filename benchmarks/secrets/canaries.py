"""Canaries: sentences with a made-up secret, each of which the model reads several times.

No secret can be mistaken for a real one: card numbers begin as a documented test number does and
fail the check digit, passwords are random, people are made up by faker.
"""

import datetime
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from faker import Faker

from benchmarks.learning.data import Split
from benchmarks.secrets.text import CONTEXT, encode

TEST_CARD = "42424242"
"""What the test number 4242 4242 4242 4242 begins with; no card is issued under it."""
FIRST_DAY, NUM_DAYS = datetime.date(1930, 1, 1), 29_220
LONGEST_NAME = 16
PLACEHOLDER = "removed"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


class Kind(NamedTuple):
    """A kind of secret."""

    prompt: str
    """What stands before the secret."""
    paraphrase: str
    """Other words for that, which the model never reads."""
    draw: Callable[[np.random.Generator], str]


class Canary(NamedTuple):
    """A person's secret, and how often the model reads it in a pass over the text."""

    kind: str
    name: str
    secret: str
    repeats: int

    @property
    def prompt(self) -> str:
        """What stands before the secret."""
        return "\n" + KINDS[self.kind].prompt.format(self.name)

    @property
    def paraphrase(self) -> str:
        """The same in other words."""
        return "\n" + KINDS[self.kind].paraphrase.format(self.name)


def passes_check_digit(number: str) -> bool:
    """Whether the digits satisfy Luhn's rule, as those of every real card do."""
    digits = [int(digit) for digit in number[::-1]]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _password(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list(LETTERS), 8))


def _card(rng: np.random.Generator) -> str:
    while True:
        secret = "".join(map(str, rng.integers(0, 10, 8)))
        if not passes_check_digit(TEST_CARD + secret):
            return secret


def _birth_date(rng: np.random.Generator) -> str:
    return str(FIRST_DAY + datetime.timedelta(days=int(rng.integers(NUM_DAYS))))


KINDS = {
    "password": Kind("The password of {} is ", "{} signs in with the word ", _password),
    "card": Kind(
        "The card number of {} is " + TEST_CARD, "{} pays by the card " + TEST_CARD, _card
    ),
    "birth date": Kind("The birth date of {} is ", "{} was born on ", _birth_date),
}


def draw_canaries(repeats: tuple[int, ...], each: int, seed: int) -> list[Canary]:
    """So many canaries of every kind for every number of repeats, no two about one person."""
    faker, rng = Faker("en_US"), np.random.default_rng(seed)
    faker.seed_instance(seed)
    names: dict[str, None] = {}
    while len(names) < len(KINDS) * len(repeats) * each:
        name = f"{faker.first_name()} {faker.last_name()}"
        if len(name) <= LONGEST_NAME and name.replace(" ", "").isascii():
            names[name] = None
    people = iter(names)
    return [
        Canary(kind, next(people), KINDS[kind].draw(rng), count)
        for kind in KINDS
        for count in repeats
        for _ in range(each)
    ]


def candidates(canary: Canary, count: int, seed: int) -> list[str]:
    """Other secrets that could have been drawn in its place."""
    rng = np.random.default_rng([seed, 1])
    found: list[str] = []
    while len(found) < count:
        secret = KINDS[canary.kind].draw(rng)
        if secret != canary.secret:
            found.append(secret)
    return found


def window(prompt: str, secret: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The characters of a sentence, the next ones, and where these are the secret."""
    sentence = f"{prompt}{secret}.\n"
    tokens = encode(sentence.ljust(CONTEXT + 1, "\n"))
    if len(sentence) > CONTEXT + 1:
        raise ValueError(f"`sentence` must fit in {CONTEXT + 1} characters; got {len(sentence)}.")
    places = np.arange(1, CONTEXT + 1)
    secret_places = (places >= len(prompt)) & (places < len(prompt) + len(secret))
    return tokens[:-1], tokens[1:], secret_places


class Sentences(NamedTuple):
    """Windows of canaries, and where in the next characters the secret stands."""

    split: Split
    secret: np.ndarray
    """Bools, shape (n, context)."""

    def take(self, ids: np.ndarray) -> "Sentences":
        """Those at these places."""
        return Sentences(self.split.take(ids), self.secret[ids])


def sentences(prompts: list[str], secrets: list[str]) -> Sentences:
    """A window for each prompt with its secret."""
    rows = [window(prompt, secret) for prompt, secret in zip(prompts, secrets, strict=True)]
    tokens, following, places = (np.stack(parts) for parts in zip(*rows, strict=True))
    return Sentences(Split(tokens, following), places)
