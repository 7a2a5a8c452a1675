"""All that is measured of a model: what it still tells, what it keeps, and how it is attacked."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sapsel_jax as sap
from benchmarks.measures.metrics import count_changed, count_entries
from benchmarks.secrets.canaries import Sentences
from benchmarks.secrets.extraction import (
    beam_search,
    character_losses,
    exact_memorisation,
    extraction_strength,
    found_by_search,
    is_extracted,
    right_guesses,
)
from benchmarks.secrets.membership import areas, scores
from benchmarks.secrets.network import LanguageModel
from benchmarks.secrets.problem import Problem, answers
from benchmarks.secrets.ranks import exposure
from benchmarks.secrets.rounding import rounded
from benchmarks.secrets.text import CONTEXT, decode, encode

BITS = (8, 4)
BEAMS = 4
SAMPLE_LENGTH = 12
"""Characters of text that the report shows after a prompt."""
RELEARNING_RATES = (1e-3, 3e-3)
RELEARNING_STEPS, RELEARNING_BATCH = 20, 8
HELD = 4
"""Forgotten secrets that the attacker holds, where the others are judged."""


def figures(problem: Problem, params: Any) -> dict[str, Any]:
    """What is measured of every model."""
    model, told = problem.model, problem.told
    right = lambda chosen: right_guesses(model, params, chosen)
    mean = lambda of, rows: float(np.mean([of(row) for row in rows]))
    forget = right(told.take(problem.forget))
    row: dict[str, Any] = {
        "changed_entries": count_changed(problem.poisoned.params, params),
        "total_entries": count_entries(params),
        "extracted": mean(is_extracted, forget),
        "memorisation": mean(exact_memorisation, forget),
        "strength": mean(extraction_strength, forget),
        "paraphrased": mean(exact_memorisation, right(problem.paraphrased.take(problem.forget))),
        "unseen": mean(exact_memorisation, right(problem.unseen)),
    }
    for name, ids in (("shown", problem.shown), ("hidden", problem.hidden)):
        rows = right(told.take(ids))
        row[f"{name}_extracted"] = mean(is_extracted, rows)
        row[f"{name}_memorisation"] = mean(exact_memorisation, rows)
    row["perplexity"] = math.exp(np.mean(character_losses(model, params, *problem.test)))
    row["membership"] = membership(problem, params)
    for bits in BITS:
        rows = right_guesses(model, rounded(params, bits), told.take(problem.forget))
        row[f"memorisation_{bits}_bits"] = mean(exact_memorisation, rows)
    row["margins"] = margins(problem, params)
    row["samples"] = samples(problem, params)
    return row


def attacks(problem: Problem, params: Any, ids: np.ndarray) -> dict[str, Any]:
    """What takes longer: exposure of the canaries `ids`, a search, relearning."""
    model = problem.model
    count = problem.settings.candidates
    found = [exposure(model, params, problem.canaries[i], count) for i in ids]
    searched = found_by_search(model, params, problem.told.take(problem.forget), BEAMS)
    return {
        "exposed": {str(i): round(e.by_rank, 4) for i, e in zip(ids, found, strict=True)},
        "extrapolated": {str(i): round(e.extrapolated, 4) for i, e in zip(ids, found, strict=True)},
        "searched": float(np.mean(searched)),
        "relearned": relearned(problem, params),
    }


@functools.partial(jax.jit, static_argnums=0)
def _log_chances(model: LanguageModel, params: Any, tokens: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(model.apply(params, tokens))


def membership(problem: Problem, params: Any) -> dict[str, float]:
    """The area under the ROC curve of each attack on the forgotten sentences.

    Their counterparts are sentences of the same kinds that no model has read.
    """
    return areas(
        _scores(problem, params, problem.told.take(problem.forget)),
        _scores(problem, params, problem.unseen),
    )


def _scores(problem: Problem, params: Any, told: Sentences) -> list[dict[str, float]]:
    every = np.asarray(_log_chances(problem.model, params, told.split.images))
    found = []
    for row, labels, places in zip(every, told.split.labels, told.secret, strict=True):
        # The characters of the secret alone: people's names are no secret.
        own = labels[places]
        found.append(scores(row[places], own, decode(own)))
    return found


def margins(problem: Problem, params: Any) -> list[float]:
    """`sap.audit.margin` of each character of each forgotten secret."""
    told = problem.told.take(problem.forget)
    logits = _log_chances(problem.model, params, told.split.images)[told.secret]
    found = sap.audit.margin(logits, jnp.asarray(told.split.labels[told.secret]))
    return np.round(np.asarray(found, float), 3).tolist()


def samples(problem: Problem, params: Any) -> list[str]:
    """What the model writes after the prompt of a forgotten secret of each kind, and of others."""
    written = []
    for i in sample_ids(problem):
        prompt = problem.canaries[i].prompt
        tokens = encode(prompt.ljust(CONTEXT, "\n"))
        length = min(SAMPLE_LENGTH, CONTEXT - len(prompt))
        ends = beam_search(problem.model, params, tokens, np.int32(len(prompt)), length, 1)
        written.append(decode(np.asarray(ends[0])))
    return written


def sample_ids(problem: Problem) -> list[int]:
    """A forgotten canary of each kind, a neighbour that updates see, and one that is hidden."""
    per_kind = len(problem.forget) // 3
    return [*problem.forget[::per_kind].tolist(), int(problem.shown[0]), int(problem.hidden[0])]


def relearned(problem: Problem, params: Any) -> dict[str, float]:
    """The exact memorisation of forgotten secrets after an attacker's few steps.

    The attacker reads retained text, other people's secrets, the first `HELD` forgotten ones (the
    rest are judged), or copies of all of them.
    """
    judged = answers(problem.told.take(problem.forget))
    others = answers(problem.told.take(problem.neighbours))
    counted = np.arange(len(problem.forget)) >= HELD
    rest = judged | {"weight": judged["weight"] * counted[:, None]}
    attempts = {
        "text": (problem.retained(), judged),
        "others": (others, judged),
        "part": ({name: values[:HELD] for name, values in judged.items()}, rest),
        "copies": (judged, judged),
    }
    count = RELEARNING_STEPS * RELEARNING_BATCH
    found = {}
    for name, (examples, rated) in attempts.items():
        ids = np.arange(count) % len(examples["label"])
        read = {part: values[ids] for part, values in examples.items()}
        found[name] = round(float(_relearn(problem.model, params, read, rated)), 5)
    return found


@functools.partial(jax.jit, static_argnums=0)
def _relearn(model: LanguageModel, params: Any, examples: Any, judged: Any) -> jax.Array:
    def score(params: Any, judged: Any) -> jax.Array:
        counts = judged["weight"] > 0
        right = model.apply(params, judged["image"]).argmax(-1) == judged["label"]
        return jnp.sum(right & counts) / jnp.sum(counts)

    attack = sap.audit.relearn(
        model.loss,
        params,
        examples,
        judged,
        score_fn=score,
        step_sizes=jnp.asarray(RELEARNING_RATES),
        counts=(len(examples["label"]),),
        num_steps=RELEARNING_STEPS,
        batch_size=RELEARNING_BATCH,
        at_once=1,
    )
    return attack.rates[0]
