"""Every function that takes a loss refuses what is not one real scalar, in one sentence."""

import collections
import inspect
from collections.abc import Callable
from typing import Any, get_args, get_origin

import calls
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sapsel_jax as sap

Pair = collections.namedtuple("Pair", ["loss", "aux"])
FIRST = ": return the scalar alone, for instance by `lambda *args: {name}(*args)[0]`"
ALONE = ": return the scalar alone"
BAD: dict[str, tuple[Any, str]] = {
    "a pair": (lambda loss: (loss, {"accuracy": 1.0}), "a tuple of 2" + FIRST),
    "a named pair": (lambda loss: Pair(loss, None), "a Pair of 2" + FIRST),
    "a list of one": (lambda loss: [loss], "a list of 1" + FIRST),
    "a pair the other way round": (lambda loss: (None, loss), "a tuple of 2" + ALONE),
    "nothing at all": (lambda loss: (), "a tuple of 0" + ALONE),
    "a dict": (lambda loss: {"loss": loss}, "a value of type dict" + ALONE),
    "None": (lambda loss: None, "None"),
    "text": (lambda loss: "0.5", "a value of type str"),
    "a vector": (lambda loss: jnp.stack([loss, loss]), "float32[2]"),
    "a vector of one": (lambda loss: loss[None], "float32[1]"),
    "a matrix of one": (lambda loss: loss[None, None], "float32[1, 1]"),
    "no loss": (lambda loss: jnp.zeros(0), "float32[0]"),
    "complex": (lambda loss: loss + 1j, "complex64[]"),
    "float0": (lambda loss: np.zeros((), jax.dtypes.float0), "float0[]"),
    "a key": (lambda loss: jax.random.key(0), "key<fry>[]"),
}
WHOLE: dict[str, tuple[Any, str]] = {
    "whole": (lambda loss: jnp.round(loss).astype(jnp.int32), "int32[]"),
    "a Python integer": (lambda loss: 1, "a value of type int"),
    "bool": (lambda loss: loss > 0, "bool[]"),
    "a Python bool": (lambda loss: True, "a value of type bool"),
}


def takes_scalar_function(annotation):
    """Whether an argument is a function that returns one array: a loss, a score, a penalty."""
    options = [annotation, *get_args(annotation)]
    functions = [option for option in options if get_origin(option) is Callable]
    return any(get_args(option)[-1:] == (jax.Array,) for option in functions)


ARGUMENTS = [
    (name, argument)
    for name, function in calls.public_functions().items()
    for argument, parameter in inspect.signature(function).parameters.items()
    if takes_scalar_function(parameter.annotation)
] + [("with_first_order", "loss_fn"), ("with_iteration", "loss_fn")]


def message_of(name, argument, returned):
    """What a public function says where one of the caller's functions returns something else."""
    call = calls.CALLS[name]
    good = inspect.signature(call).parameters[argument].default
    with pytest.raises(TypeError) as raised:
        call(**{argument: lambda *inputs: returned(good(*inputs))})
    return str(raised.value)


def sentence(argument, kind):
    return f"`{argument}` must return one real scalar; it returned {kind.format(name=argument)}."


def test_every_public_function_has_a_call_and_every_loss_can_be_exchanged():
    assert set(calls.CALLS) == set(calls.public_functions())
    assert len(ARGUMENTS) >= 20
    for name, argument in ARGUMENTS:
        assert argument in inspect.signature(calls.CALLS[name]).parameters, (name, argument)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_pair_is_refused_with_what_to_do(name, argument):
    returned, kind = BAD["a pair"]
    assert message_of(name, argument, returned) == sentence(argument, kind)


@pytest.mark.parametrize(
    ("name", "argument", "case"),
    [
        (name, argument, case)
        for name, argument in ARGUMENTS
        for case in (*BAD, *WHOLE)
        # A rate is not differentiated: it may be whole. Other updates are called by `unlearn`, and
        # all of it runs before it validates: a pair is enough for these.
        if not name.startswith("with_") and argument != "validate"
        if argument != "score_fn" or case in BAD
    ],
)
@pytest.mark.slow
def test_whatever_is_not_one_real_scalar_is_refused(name, argument, case):
    returned, kind = (BAD | WHOLE)[case]
    assert message_of(name, argument, returned) == sentence(argument, kind)


@pytest.mark.parametrize("case", [*BAD, *WHOLE])
@pytest.mark.parametrize("name", ["exact_diagonal", "basis_diagonal", "gradient_change"])
def test_each_kind_is_named(name, case):
    (argument,) = (argument for other, argument in ARGUMENTS if other == name)
    returned, kind = (BAD | WHOLE)[case]
    assert message_of(name, argument, returned) == sentence(argument, kind)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_real_dtype_passes(dtype):
    diagonal = sap.exact_diagonal(lambda w, x: jnp.sum(w**2 * x, dtype=dtype))
    np.testing.assert_array_equal(diagonal(jnp.ones(2), jnp.ones((3, 2))), [2, 2])


@pytest.mark.parametrize("constant", [0.5, np.float32(0.5), np.float64(0.5)])
def test_a_constant_is_a_real_scalar(constant):
    loss_fn, params, data = lambda w, x: constant, jnp.ones(2), jnp.ones((3, 2))
    for diagonal in (sap.exact_diagonal(loss_fn), sap.basis_diagonal(loss_fn)):
        np.testing.assert_array_equal(diagonal(params, data), [0, 0])
    np.testing.assert_array_equal(sap.gradient_change(loss_fn, params, data, None), [0, 0])


@pytest.mark.parametrize("name", ["exact_diagonal", "explain"])
def test_the_check_takes_no_trace_of_its_own(name):
    traces = []

    def counted(*inputs):
        traces.append(inputs)
        return calls.loss(*inputs)

    calls.CALLS[name](counted)
    assert len(traces) == 1


def test_the_check_leaves_the_function_itself_to_be_compiled_by():
    traces = []

    @jax.jit
    def compiled(*inputs):
        traces.append(inputs)
        return calls.loss(*inputs)

    for _ in range(2):
        calls.CALLS["gradient_change"](compiled)
    assert len(traces) == 1
