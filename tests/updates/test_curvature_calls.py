"""How `unlearn` calls a curvature: with a key where there is a place for one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import sapsel_jax as sap

KEY = jax.random.key(7)
PARAMS = jnp.arange(1.0, 4.0)
BATCH = jnp.ones((2, 3))
SCALE = 2.0


def loss_fn(w, x, *args):
    return 0.5 * jnp.sum((w - x) ** 2) * (args[0] if args else 1.0)


EXACT = sap.exact_diagonal(loss_fn)
PROBED = sap.hutchinson_diagonal(loss_fn)


def nothing(loss, params, *batches, **options):
    """An update that changes nothing."""
    zero = jnp.float32(0)
    return params, sap.Certificate(
        jnp.bool_(True), jnp.int32(0), jnp.int32(1), jnp.int32(1), zero, zero, zero, zero
    )


def unlearn(curvature, args=()):
    update: Any = nothing
    return sap.unlearn(
        loss_fn, PARAMS, BATCH, -BATCH, -BATCH, key=KEY, curvature=curvature, update=update,
        args=args,
    )  # fmt: skip


class Recorder:
    """A function that notes what it is given, with a signature to choose."""

    def __init__(self):
        self.calls = []

    def note(self, params, batch, *rest):
        self.calls.append(
            [
                "key" if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
                for x in rest
            ]
        )
        return jnp.asarray(params)


def of_class(note):
    class Estimator:
        def __call__(self, params, batch, rng):
            return note(params, batch, rng)

    return Estimator()


def keyword_only(note):
    def estimate(params, batch, *args, key):
        return note(params, batch, key, *args)

    return estimate


def method(note):
    class Estimator:
        def estimate(self, params, batch):
            return note(params, batch)

    return Estimator().estimate


K, A = "key", SCALE
CALLS: dict[str, tuple[Any, tuple[Any, ...], list[Any]]] = {
    "two": (lambda note: lambda p, b: note(p, b), (), []),
    "two, any names": (lambda note: lambda u, v: note(u, v), (), []),
    "key": (lambda note: lambda params, batch, key: note(params, batch, key), (), [K]),
    "another name": (lambda note: lambda p, b, k: note(p, b, k), (), [K]),
    "positional only": (lambda note: lambda p, b, k, /: note(p, b, k), (), [K]),
    "key with args": (lambda note: lambda p, b, k, s: note(p, b, k, s), (SCALE,), [K, A]),
    "args alone": (lambda note: lambda p, b, s: note(p, b, s), (SCALE,), [A]),
    "open": (lambda note: lambda p, b, *args: note(p, b, *args), (SCALE,), [A]),
    "open with key": (lambda note: lambda p, b, k, *a: note(p, b, k, *a), (SCALE,), [K, A]),
    "all open": (lambda note: lambda *a: note(*a), (SCALE,), [A]),
    "optional key": (lambda note: lambda p, b, key=None: note(p, b, key), (), [K]),
    "late binding": (lambda note: lambda p, b, f=note: f(p, b), (), []),
    "key bound": (
        lambda note: functools.partial(lambda p, b, key: note(p, b, key), key=KEY), (), [K]
    ),
    "key of another name bound": (
        lambda note: functools.partial(lambda p, b, k: note(p, b, k), k=KEY), (), [K]
    ),
    "first bound": (
        lambda note: functools.partial(lambda f, p, b, k: note(p, b, k), len), (), [K]
    ),
    "option bound": (
        lambda note: functools.partial(lambda p, b, k, *, n: note(p, b, k, n), n=3), (), [K, 3]
    ),
    "class": (of_class, (), [K]),
    "method": (method, (), []),
    "keyword only": (keyword_only, (SCALE,), [K, A]),
    "jit": (lambda note: jax.jit(lambda p, b, k: note(p, b, k)), (), [K]),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_the_key_goes_where_there_is_a_place_for_it(name):
    make, args, want = CALLS[name]
    recorder = Recorder()
    unlearn(make(recorder.note), args)
    assert recorder.calls == [want] * len(recorder.calls)
    assert recorder.calls


@pytest.mark.parametrize("args", [(), (SCALE,)])
@pytest.mark.parametrize(
    "curvature",
    [
        EXACT,
        PROBED,
        jax.jit(EXACT),
        jax.jit(PROBED),
        functools.partial(PROBED, weights=jnp.ones(2)),
        functools.partial(EXACT, weights=jnp.ones(2)),
        lambda p, b, *a: EXACT(p, b, *a),
        lambda p, b, k, *a: PROBED(p, b, k, *a),
        sap.propagated_diagonal(loss_fn),
        sap.empirical_fisher_diagonal(loss_fn),
    ],
)
def test_the_librarys_diagonals_are_called_as_they_must_be(curvature, args):
    result = jax.jit(lambda: unlearn(curvature, args))()
    assert bool(jnp.all(jnp.isfinite(result.diagonal)))


def test_a_bound_key_is_the_one_that_is_used():
    tanh = lambda w, x: jnp.tanh(jnp.sum(w * x)) ** 2
    probed = sap.hutchinson_diagonal(tanh)
    bound = jax.jit(lambda: unlearn(functools.partial(probed, key=KEY)).diagonal)()
    by_name = jax.jit(lambda: unlearn(lambda p, b: probed(p, b, KEY)).diagonal)()
    assert bool(jnp.all(bound == by_name))


@pytest.mark.parametrize(
    ("curvature", "args", "message"),
    [
        (
            lambda p: p,
            (),
            "`curvature` must take `(params, batch, key, *args)` or `(params, batch, *args)`; it "
            "takes `(p)`.",
        ),
        (
            lambda p, b, k, scale: p,
            (),
            "`curvature` must take `(params, batch, key, *args)` or `(params, batch, *args)`; it "
            "takes `(p, b, k, scale)`.",
        ),
        (
            lambda p, b: p,
            (SCALE,),
            "`curvature` must take `(params, batch, key, *args)` or `(params, batch, *args)`, here "
            "with 1 of `args`; it takes `(p, b)`.",
        ),
        (
            functools.partial(lambda p, b, key, scale: p, key=KEY),
            (SCALE,),
            "`curvature` must take `(params, batch, key, *args)` or `(params, batch, *args)`, here "
            "with 1 of `args`; it takes `(p, b, *, key, scale)`.",
        ),
        (3, (), "`curvature` must be a function; got int."),
        (jnp.ones(3), (), "`curvature` must be a function; got ArrayImpl."),
    ],
)
def test_curvatures_that_cannot_be_called(curvature, args, message):
    with pytest.raises(TypeError) as raised:
        unlearn(curvature, args)
    assert str(raised.value) == message
