"""Secrets in text: every figure against NumPy or by hand, and a run that goes on."""

import math
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import sapsel_jax as sap
from benchmarks.learning.data import is_prepared
from benchmarks.secrets import (
    baselines,
    canaries,
    extraction,
    membership,
    problem,
    ranks,
    rounding,
    study,
    summary,
)
from benchmarks.secrets.canaries import KINDS, TEST_CARD, draw_canaries, sentences
from benchmarks.secrets.command import Secrets
from benchmarks.secrets.network import language_model
from benchmarks.secrets.problem import CORRECTIONS, PLACEHOLDER, Problem, Settings
from benchmarks.secrets.records import open_journals
from benchmarks.secrets.report import write_secrets
from benchmarks.secrets.study import Study, run_study
from benchmarks.secrets.text import CONTEXT, VOCABULARY, decode, encode, load_text, windows
from benchmarks.secrets.updates import LEAVES, Plan
from benchmarks.tools.errors import UsageError
from benchmarks.tools.origin import Origin

MODEL = language_model(8, 2, 1)


@pytest.fixture(scope="module")
def params():
    return MODEL.init(0)


@pytest.fixture(scope="module")
def drawn():
    return draw_canaries((1, 4), 2, 0)


def told(drawn):
    return sentences([c.prompt for c in drawn], [c.secret for c in drawn])


def test_text_becomes_windows_that_follow_each_other():
    assert decode(encode("To be,\nor not?")) == "To be,\nor not?"
    assert decode(encode("caf\u00e9\t")) == "caf  "
    split = windows("abc" * CONTEXT, 2)
    assert split.images.shape == split.labels.shape == (2, CONTEXT)
    assert decode(split.images) == ("abc" * CONTEXT)[: 2 * CONTEXT]
    assert decode(split.labels) == ("abc" * CONTEXT)[1 : 2 * CONTEXT + 1]


def test_the_manual_is_at_hand_and_its_parts_do_not_overlap():
    text = load_text("manual")
    assert min(len(text.train), 9 * len(text.test)) > 300_000
    assert abs(len(text.validation) - len(text.test)) <= 1
    assert 'The "assert" statement' in text.train


def test_shakespeare_is_read_whole():
    if not is_prepared("tiny_shakespeare"):
        pytest.skip("tiny_shakespeare is not prepared here")
    text = load_text("tiny_shakespeare")
    assert [len(part) for part in text[1:]] == [1_003_854, 55_770, 55_770]
    assert text.train.startswith("First Citizen:\nBefore we proceed any further")


def test_canaries_are_no_real_credentials(drawn):
    assert canaries.passes_check_digit("4242424242424242")
    assert not canaries.passes_check_digit("4242424242424241")
    assert len({c.name for c in drawn}) == len(drawn) == 3 * 2 * 2
    cards = [c.secret for c in drawn if c.kind == "card"]
    assert not any(canaries.passes_check_digit(TEST_CARD + secret) for secret in cards)
    assert drawn == draw_canaries((1, 4), 2, 0)
    assert drawn != draw_canaries((1, 4), 2, 1)


def test_secrets_are_where_they_are_said_to_be(drawn):
    for each, labels, places in zip(
        drawn, told(drawn).split.labels, told(drawn).secret, strict=True
    ):
        assert decode(labels[places]) == each.secret
        assert f"\n{decode(labels)}".startswith(f"{each.prompt}{each.secret}.\n")
    longest = "N" * canaries.LONGEST_NAME
    for kind in KINDS.values():
        for words in (kind.prompt, kind.paraphrase):
            for secret in (kind.draw(np.random.default_rng(0)), PLACEHOLDER):
                canaries.window("\n" + words.format(longest), secret)
    with pytest.raises(ValueError, match="`sentence` must fit in 65 characters; got 102"):
        canaries.window("a" * 90, "1234567890")


def test_candidates_are_others_of_the_same_kind(drawn):
    for each in drawn[::4]:
        found = canaries.candidates(each, 50, 0)
        assert len(found) == 50
        assert each.secret not in found
        assert {len(secret) for secret in found} == {len(each.secret)}


def test_the_network_looks_back_only(params):
    tokens = np.random.default_rng(0).integers(0, len(VOCABULARY), (1, CONTEXT))
    other = tokens.copy()
    other[0, 40:] = 0
    apply = jax.jit(MODEL.apply)
    got, want = apply(params, other), apply(params, tokens)
    np.testing.assert_array_equal(got[0, :40], want[0, :40])
    assert np.abs(got[0, 40:] - want[0, 40:]).max() > 0.1


def test_a_secret_costs_what_it_costs_in_its_sentence(params, drawn):
    passwords = [each for each in drawn if each.kind == "password"]
    every = told(passwords)
    losses = extraction.character_losses(MODEL, params, *every.split)
    want = np.sum(np.asarray(losses) * every.secret, 1)
    for each, cost in zip(passwords, want, strict=True):
        prompt = encode(each.prompt.ljust(CONTEXT, "\n"))
        given = (params, prompt, np.int32(len(each.prompt)), encode(each.secret)[None])
        np.testing.assert_allclose(ranks.secret_losses(MODEL, *given), [cost], rtol=1e-4)


def test_extrapolation_fits_three_moments():
    losses = np.asarray(stats.skewnorm.rvs(4, loc=20, scale=3, size=1_000, random_state=0))
    got = stats.skewnorm.stats(*ranks._fit_skew_normal(losses), moments="mvs")
    np.testing.assert_allclose(got, [losses.mean(), losses.var(), stats.skew(losses)], rtol=1e-6)
    # A canary at the median of a symmetric sample has one bit.
    even = np.concatenate([losses, 2 * losses.mean() - losses])
    assert ranks.extrapolated_exposure(even.mean(), even) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("right", "extracted", "memorisation", "strength"),
    [("1111", True, 1, 1), ("1011", False, 0.75, 0.5), ("1110", False, 0.75, 0)],
)
def test_extraction_by_hand(right, extracted, memorisation, strength):
    right = np.array([each == "1" for each in right])
    assert extraction.is_extracted(right) is extracted
    assert extraction.exact_memorisation(right) == memorisation
    assert extraction.extraction_strength(right) == strength


@pytest.mark.slow
def test_a_wide_search_finds_the_likeliest_pair(params):
    count, start = len(VOCABULARY), 5
    tokens = encode("\nabcd".ljust(CONTEXT, "z"))
    found = extraction.beam_search(MODEL, params, tokens, np.int32(start), 2, count)
    chances = jax.jit(lambda tokens: jax.nn.log_softmax(MODEL.apply(params, tokens)))
    each = np.tile(tokens, (count, 1))
    each[:, start] = np.arange(count)
    rows = np.asarray(chances(each))
    totals = rows[0, start - 1][:, None] + rows[:, start]
    best = np.unravel_index(np.argsort(-totals, axis=None)[:3], totals.shape)
    np.testing.assert_array_equal(found[:3], np.stack(best, 1))
    greedy = extraction.beam_search(MODEL, params, tokens, np.int32(start), 2, 1)[0]
    assert greedy[0] == rows[0, start - 1].argmax()
    assert greedy[1] == rows[greedy[0], start].argmax()


def test_membership_scores_by_hand():
    own = np.log([0.5, 0.25, 0.125, 0.5, 0.5])
    assert membership.loss_score(own) == pytest.approx(-7 * math.log(2) / 5 - math.log(2) / 5)
    size = len(zlib.compress(b"abcde"))
    assert membership.zlib_score(own, "abcde") == pytest.approx(-8 * math.log(2) / size)
    assert membership.min_k_score(own, 0.4) == pytest.approx(-2.5 * math.log(2))
    # Two places, two characters with chances ¾ and ¼: of the log chances, mean and deviation.
    every = np.log([[0.75, 0.25], [0.75, 0.25]])
    mean = 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    deviation = math.sqrt(0.75 * 0.25) * math.log(3)
    got = membership.min_k_plus_score(every, np.array([0, 1]), 0.5)
    assert got == pytest.approx((math.log(0.25) - mean) / deviation)


def test_members_with_higher_scores_have_a_larger_area():
    rows = lambda *values: [{"loss": value} for value in values]
    assert membership.areas(rows(3.0, 1.0), rows(0.0, 1.0)) == {"loss": 0.875}


def test_rounding_by_hand():
    got = rounding.rounded({"a": jnp.array([-1.0, 0.2, 0.55]), "b": jnp.zeros(2)}, 3)
    np.testing.assert_allclose(got["a"], [-1, 1 / 3, 2 / 3], rtol=1e-6)
    np.testing.assert_array_equal(got["b"], 0)


@pytest.mark.slow
def test_baselines_push_the_secrets_and_keep_the_rest(params, drawn):
    every = told(drawn[:2])
    weight = every.secret * np.float32(1)
    steps = {"image": every.split.images, "label": every.split.labels, "weight": weight}
    steps = {name: values[None] for name, values in steps.items()}
    marked = baselines.with_references(MODEL, params, steps, 1)
    secret, other = ({name: values[0, i] for name, values in marked.items()} for i in range(2))
    losses = ("npo", "grad_diff")

    @jax.jit
    def measured(params, secret, other):
        mean = jax.value_and_grad(MODEL.loss)(params, secret)
        of_secret = [
            jax.value_and_grad(baselines.BASELINES[n], 1)(MODEL, params, secret) for n in losses
        ]
        of_other = [baselines.BASELINES[name](MODEL, params, other) for name in losses]
        return mean, of_secret, of_other, MODEL.loss(params, other)

    got = jax.tree.map(np.asarray, measured(params, secret, other))
    (mean, own), (npo, grad_diff), others, want = got
    assert np.isnan(other["reference"])
    np.testing.assert_allclose(secret["reference"], CONTEXT * mean, rtol=1e-5)
    assert npo[0] == pytest.approx(2 / baselines.BETA * math.log(2), rel=1e-5)
    assert grad_diff[0] == pytest.approx(-mean, rel=1e-5)
    # Where the model is as it was, NPO climbs on the summed loss; GradDiff on the mean always.
    times = lambda factor: jax.tree.map(lambda g: factor * g, own)
    chex.assert_trees_all_close(npo[1], times(-CONTEXT), atol=1e-5)
    chex.assert_trees_all_close(grad_diff[1], times(-1), atol=1e-6)
    np.testing.assert_allclose(others, want, rtol=1e-5)


def test_climbing_stops_at_the_ceiling(params, drawn):
    every = told(drawn)
    example = {"image": every.split.images[0], "label": every.split.labels[0]}
    losses = np.asarray(extraction.character_losses(MODEL, params, *every.split))[0]
    weight = np.where(every.secret[0], -0.5, 1).astype(np.float32)
    want = np.mean(np.where(weight < 0, weight * np.minimum(losses, 2.3), losses))
    assert losses[every.secret[0]].max() > 2.3
    got = jax.jit(MODEL.bounded_loss)(params, example | {"weight": weight})
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_every_leaf_has_a_site(params, drawn):
    every = told(drawn)
    example = {"image": every.split.images[0], "label": every.split.labels[0]}
    plan = sap.explain(MODEL.loss, params, example | {"weight": np.ones(CONTEXT, np.float32)})
    assert len(plan.uses) == len(jax.tree.leaves(params))
    lines = str(plan).splitlines()
    assert sum("at the site" in line for line in lines) == len(plan.uses)
    assert any(line.startswith("characters/embedding") and "gather" in line for line in lines)


@pytest.fixture(scope="module")
def case():
    return Problem(Settings("manual", num_windows=40, epochs=1, curvature_examples=8), 1)


def test_what_is_forgotten_is_not_tuned_on(case):
    tuned = Problem(case.settings, 0)
    assert set(case.forget) == set(tuned.neighbours)
    assert set(case.neighbours) == set(tuned.forget) == {*case.shown, *case.hidden}
    assert not set(case.forget) & set(case.neighbours)
    kinds = [case.canaries[i].kind for i in case.forget]
    assert {kind: kinds.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 4)


def test_retraining_leaves_out_what_is_forgotten(case):
    first = len(case.storage.labels) - len(case.canaries)
    whole, without = (case.ids(without_forget=each) for each in (False, True))
    counts = np.bincount(whole, minlength=first + len(case.canaries))
    np.testing.assert_array_equal(counts[:first], 1)
    np.testing.assert_array_equal(counts[first:], [c.repeats for c in case.canaries])
    assert set(whole) - set(without) == {first + i for i in case.forget}


def test_updates_see_no_hidden_secret(case):
    batches = case.batches(case.corrected("placeholder"))
    seen = "\x00".join(decode(row) for row in batches["label"].reshape(-1, CONTEXT))
    for ids, is_seen in ((case.forget, False), (case.hidden, False), (case.shown, True)):
        assert any(case.canaries[i].secret in seen for i in ids) is is_seen
    for i in case.forget:
        assert case.canaries[i].prompt[1:] + PLACEHOLDER in seen
    weights = batches["weight"][:, : batches["weight"].shape[1] // 2]
    np.testing.assert_allclose(weights.mean(-1), 1, rtol=1e-6)


def test_the_fewest_entries_are_enough_on_every_seed():
    rows = lambda entries, *shares: [
        {**Plan("placeholder", "iterative", "w", entries)._asdict(), "seed": i, "extracted": share}
        for i, share in enumerate(shares)
    ]
    plans = [Plan("placeholder", "iterative", "w", count) for count in (4, 8, 16)]
    every = [*rows(4, 0.5, 0.0), *rows(8, 0.0, 0.0), *rows(16, 0.0, 0.0)]
    assert summary.fewest(every, plans) == 8
    # One that fails with more entries does not count.
    assert summary.fewest([*rows(4, 0.0), *rows(8, 0.1), *rows(16, 0.0)], plans) == 16
    assert summary.fewest(rows(16, 0.1), plans) is None


@pytest.mark.parametrize("first", CORRECTIONS)
def test_every_plan_is_measured_once(first):
    plans = Secrets(text="manual", correction=first).study().plans
    assert len(plans) == len(set(plans))
    assert {plan.correction for plan in plans} == set(CORRECTIONS)
    # What a control's entries are found with is tuned before.
    for i, plan in enumerate(plans):
        assert plan.finding() is None or plan.finding() in plans[:i]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"text": "hamlet"}, "`text` must be one of tiny_shakespeare, manual; got 'hamlet'."),
        (
            {"correction": "none"},
            "`correction` must be one of placeholder, other, removal; got 'none'.",
        ),
        ({"seeds": 0}, "`seeds` must be at least 1; got 0."),
        ({"budget": 1.5}, "`budget` must lie between 0 and 1; got 1.5."),
    ],
)
def test_bad_options_are_told(options, reason):
    with pytest.raises(UsageError) as error:
        Secrets(**options).study()
    assert str(error.value) == reason


def test_exposure_is_averaged_over_the_chosen_canaries():
    row = {"exposed": {"0": 2.0, "2": 4.0, "5": 9.0}}
    assert summary.mean_exposure(row, [0, 2]) == 3
    assert summary.mean_exposure({}, [0]) is None


@pytest.mark.slow
def test_a_run_goes_on_where_it_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(problem, "language_model", lambda: MODEL)
    # These have tests of their own, and take long.
    found = {"exposed": {str(i): 1.0 for i in range(72)}, "relearned": {}, "searched": 0.0}
    found["relearned"] = dict.fromkeys(("text", "others", "part", "copies"), 0.5)
    monkeypatch.setattr(study, "attacks", lambda *_: found | {"extrapolated": found["exposed"]})
    settings = Settings("manual", num_windows=40, epochs=1, curvature_examples=8, cache=tmp_path)
    small = Study(settings, 1, (), 8, tuple(LEAVES), (), ("placeholder",))
    said = []
    run_study(small, *open_journals(tmp_path), said.append)
    trials, cells = open_journals(tmp_path)
    assert len(said) == len(trials.rows) + len(cells.rows) == 3 + 5
    run_study(small, trials, cells, lambda words: pytest.fail(words))
    poisoned, retrained, full, last_layer, _ = cells.rows
    assert poisoned["changed_entries"] == 0 < last_layer["changed_entries"]
    assert last_layer["changed_entries"] <= 96 * 9 < full["changed_entries"]
    assert retrained["update_example_gradients"] > full["update_example_gradients"]
    write_secrets(
        tmp_path, small, trials.rows, cells.rows, Origin(("python -m benchmarks secrets",), {}, {})
    )
    report = (tmp_path / "report.md").read_text()
    assert "none was tried" in report
    assert "| last layer" in report
