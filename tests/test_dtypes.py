"""Arrays and numbers of kinds that JAX has not, or that it does not reckon with."""

from decimal import Decimal

import audits
import calls
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from refusals import refuses

import sapsel_jax as sap
from sapsel_jax import audit

UNKNOWN = {
    "another byte order": ">f4",
    "more than 64 bits": np.longdouble,
    "objects": object,
}
CONSTANTS = ("PARAMS", "GRADIENT", "STARTS")
WITHOUT_PARAMS = ("audit.", "mask_", "select_l", "selective", "describe_mask", "load_mask", "save_")


def recast(monkeypatch, names, dtype):
    """What the calls hand over, in another dtype."""
    for name in names:
        tree = jax.tree.map(lambda x: x.astype(dtype), getattr(calls, name))
        monkeypatch.setattr(calls, name, tree)


@pytest.mark.parametrize("dtype", UNKNOWN.values(), ids=UNKNOWN)
@pytest.mark.parametrize("names", [CONSTANTS, ("DATA", "ORIGINAL", "CORRECTED", "BATCHES")])
def test_arrays_of_dtypes_that_jax_has_not_are_refused_by_name(monkeypatch, names, dtype):
    recast(monkeypatch, names, dtype)
    # The calls themselves reckon with some of them.
    tested = [name for name in calls.CALLS if not name.startswith(WITHOUT_PARAMS)]
    if names != CONSTANTS:  # the functions of these two take data in any place
        tested = [name for name in tested if name not in ("basis_diagonal", "probe_diagonal")]
        tested = [name for name in tested if not name.startswith(("score_", "select_", "mean_"))]
        tested = [name for name in tested if "patch" not in name and name != "count_nonfinite"]
    for name in [*tested, "audit.train_ensemble", "audit.relearn"]:
        with pytest.raises(
            TypeError, match=r"^`\w+` must hold arrays of dtypes that JAX has; leaf"
        ):
            calls.CALLS[name]()


@pytest.mark.parametrize("dtype", UNKNOWN.values(), ids=UNKNOWN)
def test_figures_refuse_arrays_of_such_dtypes(dtype):
    for fn, *arguments in audits.CALLS.values():
        some = [x if x.dtype == bool else x.astype(dtype) for x in arguments]
        if any(a is not b for a, b in zip(some, arguments, strict=True)):
            with pytest.raises(TypeError, match=r"^`\w+` must hold "):
                fn(*some)


def test_the_error_says_what_to_hand_over():
    begin = "`like` must hold arrays of dtypes that JAX has; leaf 'a' has dtype"
    for array, end in (
        (np.ones(2, ">f8"), ">f8: hand over `x.astype(x.dtype.newbyteorder('='))`."),
        (np.ones(2, np.longdouble), "float128: hand over `x.astype(float)`."),
        (np.array(["x"]), "<U1: hand over an array of numbers."),
    ):
        refuses(lambda array=array: sap.mean_init({"a": array}), TypeError, f"{begin} {end}")


def test_a_module_with_functions_in_it_is_refused_with_the_name_of_the_filter():
    refuses(
        lambda: sap.score_magnitude({"activation": jax.nn.relu, "weight": np.ones(2, np.float32)}),
        TypeError,
        "`params` must hold arrays only; leaf 'activation' is a custom_jvp. Keep the arrays alone, "
        "of an equinox module by `eqx.filter(module, eqx.is_inexact_array)`.",
    )


NUMBERS = {
    "damping": lambda x: calls.second_order(damping=x),
    "damping of a score": lambda x: sap.score_decrease(calls.GRADIENT, calls.PARAMS, damping=x),
    "damping of a step": lambda x: sap.score_newton_step(calls.GRADIENT, calls.PARAMS, damping=x),
    "damping of a ratio": lambda x: sap.score_fisher_ratio(calls.PARAMS, calls.PARAMS, damping=x),
    "floor": lambda x: sap.score_flattest(calls.PARAMS, floor=x),
    "step_size": lambda x: sap.first_order_update(
        calls.loss, calls.PARAMS, calls.ORIGINAL, calls.CORRECTED, step_size=x
    ),
    "step_size of a rule": lambda x: sap.with_first_order(step_size=x),
    "tolerance": lambda x: sap.conjugate_gradient(tolerance=x),
    "tolerance of lissa": lambda x: sap.lissa(batch_size=2, key=calls.key(), tolerance=x),
    "scale": lambda x: sap.lissa(batch_size=2, key=calls.key(), scale=x),
    "num_examples": lambda x: sap.mean_update(sap.mean_init(calls.PARAMS), calls.GRADIENT, x),
    "fraction": lambda x: sap.select_top_fraction(calls.PARAMS, x),
    "fraction of a leaf": lambda x: sap.select_top_fraction_per_leaf(calls.PARAMS, x),
    "fraction of a unit": lambda x: sap.select_top_fraction_per_unit(calls.PARAMS, x),
    "fraction of units": lambda x: sap.select_top_units(calls.PARAMS, x),
    "fraction of all": lambda x: calls.unlearn(fraction=x),
    "min_std": lambda x: audit.klom(audits.ENSEMBLE, audits.ENSEMBLE, min_std=x),
    "min_std of attack": lambda x: audit.u_lira(audits.ENSEMBLE, audits.ENSEMBLE, min_std=x),
    "clip": lambda x: audit.klom(audits.ENSEMBLE, audits.ENSEMBLE, clip=x),
    "smoothing": lambda x: audit.klom_binned(audits.ENSEMBLE, audits.ENSEMBLE, smoothing=x),
    "penalty": lambda x: audit.logistic_attack(audits.SCORES, audits.OTHERS, penalty=x),
    "small_gap": lambda x: audit.recovery(0.5, 0.4, 0.6, num_examples=50, small_gap=x),
    "false_positive_rate": lambda x: audit.true_positive_rate(
        audits.SCORES, audits.OTHERS, false_positive_rate=x
    ),
}
NO_NUMBERS = [
    *("0.5", np.str_("0.5"), b"0.5", Decimal("0.5"), True, np.True_, np.array(True), 0.5 + 0j),
    *(np.complex64(0.5), np.array([0.5]), np.array(0.5, ">f4"), np.array(0.5, np.longdouble)),
    np.array(0.5, ml_dtypes.float8_e4m3fn),
]


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_refused_in_one_sentence(name):
    parameter = name.split()[0]
    for value in NO_NUMBERS:
        with pytest.raises(
            TypeError, match=rf"^`{parameter}` must be a (Python )?number; got .*\.$"
        ):
            NUMBERS[name](value)


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_floats_of_8_bits_are_reckoned_with_in_32(dtype):
    narrow = jax.tree.map(lambda x: x.astype(dtype), calls.PARAMS)
    wide = jax.tree.map(lambda x: x.astype(np.float32), narrow)
    loss = lambda p, e: calls.loss(jax.tree.map(lambda x: x.astype(jnp.float32), p), e)

    def found(params):
        moved = sap.first_order_update(loss, params, calls.ORIGINAL, calls.CORRECTED, step_size=0.1)
        stream = sap.mean_update(sap.mean_init(params), params, 3)
        scores = sap.score_decrease(params, params, damping=0.5)
        figures = audit.distance(params, calls.PARAMS), audit.klom(params["up"], params["up"])
        return moved, (sap.exact_diagonal(loss)(params, calls.DATA), stream, scores, figures)

    got, want = (jax.jit(found)(params) for params in (narrow, wide))
    for a, b in zip(*map(jax.tree.leaves, (got[1], want[1])), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(*map(jax.tree.leaves, (got[0], want[0])), strict=True):
        assert a.dtype == dtype
        np.testing.assert_array_equal(a.astype(np.float32), b.astype(dtype).astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, ml_dtypes.float8_e4m3fn])
def test_losses_that_compute_narrowly_are_followed_under_strict_promotion(monkeypatch, dtype):
    recast(monkeypatch, CONSTANTS, dtype)
    model_fn = calls.model_fn
    cast = lambda tree: jax.tree.map(lambda x: jnp.asarray(x).astype(dtype), tree)
    monkeypatch.setattr(calls, "model_fn", lambda p, e: model_fn(cast(p), cast(e)))
    monkeypatch.setattr(calls, "output_loss", lambda o, e: 0.5 * jnp.square(o - cast(e[1])))
    monkeypatch.setattr(calls, "penalty", lambda p: 0.1 * sum(x.sum() ** 2 for x in p.values()))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for diagonal in (calls.CALLS["exact_diagonal"], calls.CALLS["propagated_diagonal"]):
            found = jax.eval_shape(lambda diagonal=diagonal: diagonal())
            assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
        for update in (calls.CALLS["iterative_update"], calls.CALLS["with_iteration"]):
            moved = jax.eval_shape(lambda update=update: update()[0])
            assert {leaf.dtype for leaf in jax.tree.leaves(moved)} == {np.dtype(dtype)}
