"""`python -m benchmarks scaling`: its exponents on known powers, its shapes, and what it leaves."""

import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sapsel_jax as sap
from benchmarks.__main__ import main
from benchmarks.scaling import on_paper, transformer
from benchmarks.scaling.exponents import LIMIT, exponent, growths, too_fast
from benchmarks.scaling.report import paper_table, paper_verdict, spread, verdict
from benchmarks.scaling.study import PARTS, sweeps
from benchmarks.scaling.sweeps import OPERATIONS, SWEEPS
from benchmarks.secrets.network import losses_of

TINY = transformer.Size(blocks=2, width=8, heads=2, vocabulary=11, length=5)


def rows_of(operation, power, *, memory: int | None = 1):
    return [
        {
            "sweep": "parameters",
            "operation": operation,
            "size": size,
            "entries": size,
            "seconds": 1e-6 * size**power,
            "runs": [2e-6 * size**power, 1e-6 * size**power],
            "extra_bytes": None if memory is None else 4 * size**memory,
        }
        for size in (1000, 100, 10)
    ]


def test_exponents_of_known_powers():
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    rows = [
        *rows_of("gradient", 0.5),
        *rows_of("propagated", 1.5),
        *rows_of("patch", 1, memory=None),
    ]
    gradient, propagated, patch = growths(rows)
    assert propagated[:2] == ("parameters", "propagated")
    assert propagated[2:] == pytest.approx((1.5, 1.5, 1.5, 1, 1, 1))
    assert gradient.gradients == pytest.approx(0)
    assert patch.memory is None


def test_what_grows_too_fast_is_named():
    rows = [*rows_of("gradient", 2), *rows_of("propagated", 1.2), *rows_of("select", 1.0)]
    found = growths(rows)
    assert [one.operation for one in too_fast(found)] == ["propagated"]  # a gradient may
    assert verdict(found).endswith("Not met: propagated against parameters (1.20).")
    assert "is 1.00 (select against parameters)" in verdict([found[0], found[2]])
    assert LIMIT == 1.1


def test_the_spread_of_runs_is_told():
    rows = [{"runs": [1.0, 3.0]}, {"runs": [2.0, 2.0]}, {"runs": [1.0, 2.0, 1.5]}]
    assert "took 2.0 times the fastest" in spread(rows)


def test_every_sweep_measures_a_gradient_and_has_a_quick_form():
    for name, sweep in SWEEPS.items():
        assert sweep.operations[0] == "gradient"
        assert set(sweep.operations) <= set(OPERATIONS)
        assert sweeps(quick=True)[name].sizes == sweep.sizes[:3]


def test_the_sweep_of_parameters_has_them():
    # From shapes alone, as the largest would take long to fill.
    for size in SWEEPS["parameters"].sizes:
        params = jax.eval_shape(lambda size=size: SWEEPS["parameters"].make(size).params)
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == pytest.approx(size, rel=0.1)


def test_the_large_transformer_has_more_than_a_billion_parameters_and_divides_evenly():
    assert transformer.num_entries(on_paper.LARGE) == 1_340_180_480
    rows, columns = on_paper.MESH
    share = {transformer.ROWS: rows, transformer.COLUMNS: columns, None: 1}

    def check(leaf):
        for length, axis in zip(leaf.shape, leaf.place, strict=False):
            assert length % share[axis] == 0

    transformer.on_leaves(check, on_paper.LARGE)


@pytest.mark.slow
def test_the_transformer_is_one_and_looks_back_only():
    params, loss_fn = transformer.random_params(TINY), transformer.loss_of(TINY)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == transformer.num_entries(TINY)
    tokens = np.array([1, 2, 3, 4, 5])
    x = params["tokens"][tokens] + params["places"]
    norm = lambda x, scale: (
        (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale
    )
    for i in range(TINY.blocks):
        block = {name: np.asarray(leaf[i]) for name, leaf in params["blocks"].items()}
        queries, keys, values = np.split(norm(x, block["norm1"]) @ block["inputs"], 3, -1)
        seen = []
        for head in (slice(0, 4), slice(4, 8)):
            scores = queries[:, head] @ keys[:, head].T / 2
            scores = np.where(np.tril(np.ones((5, 5))) > 0, scores, -np.inf)
            seen.append(jax.nn.softmax(scores) @ values[:, head])
        x = x + np.concatenate(seen, -1) @ block["output"]
        x = x + jax.nn.gelu(norm(x, block["norm2"]) @ block["up"]) @ block["down"]
    logits = norm(x, params["norm"]) @ params["head"]
    following = jnp.array([2, 3, 4, 5, 6])
    want = losses_of(logits, following).mean()
    np.testing.assert_allclose(loss_fn(params, (tokens, following)), want, rtol=1e-5)


@pytest.mark.slow
def test_on_paper_is_what_really_lies_on_the_devices():
    mesh = jax.make_mesh((2, 4), (transformer.ROWS, transformer.COLUMNS))
    size = transformer.Size(blocks=2, width=16, heads=2, vocabulary=16, length=8)
    (row,) = on_paper.measure(size, ("selective adam step",))
    places = transformer.on_leaves(lambda leaf: jax.NamedSharding(mesh, leaf.place), size)
    params = jax.device_put(transformer.random_params(size), places)
    state = sap.selective(optax.adam(0.1), jax.tree.map(lambda x: x > 0, params)).init(params)
    held = lambda tree: sum(
        leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree)
    )
    mask_bytes = held(params) // 4
    # Parameters, two moments and a gradient; the count of adam is not spread.
    assert row["argument_bytes"] == pytest.approx(4 * held(params) + mask_bytes, rel=0.01)
    assert held(state) == pytest.approx(2 * held(params), rel=0.01)
    assert row["reused_bytes"] == pytest.approx(3 * held(params), rel=0.01)
    assert row["ideal_bytes"] == pytest.approx(row["argument_bytes"], rel=0.05)


def test_compiling_that_takes_long_is_named():
    row = {
        **{"part": "propagation", "blocks": 3, "entries": 10, "devices": 8},
        **{"argument_bytes": 2**20, "result_bytes": 2**21, "reused_bytes": 2**20},
        **{"temporary_bytes": 2**22, "ideal_bytes": 2**20, "trace_seconds": 61.0},
        **{"compile_seconds": 60.0, "collectives": ["all-reduce"]},
    }
    assert "| 3        | propagation |" in paper_table([row])
    cells = [cell.strip() for cell in paper_table([row]).splitlines()[-1].split("|")[3:-1]]
    assert cells == ["2", "1", "4", "6", "6.00", "61", "60", "all-reduce"]
    assert paper_verdict([row]).endswith("Not met: propagation of 3 blocks (121 s).")
    assert paper_verdict([row]).startswith("The most, 6.00 times its even share, is held by prop")
    assert "0 of 1 parts" in paper_verdict([row])
    assert "under 120 s" in paper_verdict([row | {"trace_seconds": 1.0}])


def test_repeats_are_checked(tmp_path, capsys):
    assert main(["scaling", "--repeats", "0", "--output", str(tmp_path / "out")]) == 2
    assert "`repeats` must be at least 1; got 0." in capsys.readouterr().err


@pytest.mark.slow
def test_a_quick_run_leaves_a_report_and_goes_on_where_it_was_cut(tmp_path, monkeypatch):
    sweep = SWEEPS["parameters"]
    sweep = sweep._replace(sizes=sweep.sizes[:2], operations=("gradient", "select", "patch"))
    few = {"parameters": sweep}
    monkeypatch.setattr("benchmarks.scaling.command.sweeps", lambda quick: few)
    monkeypatch.setattr("benchmarks.scaling.study.PARTS", PARTS[2:3])
    monkeypatch.setattr("benchmarks.scaling.devices.OPERATIONS", ("gradient",))
    output = tmp_path / "out"
    run = functools.partial(main, ["scaling", "--quick", "--repeats", "1", "--output", str(output)])
    assert run() == 0
    lines = {name: (output / name).read_text() for name in ("results.jsonl", "devices.jsonl")}
    rows = [json.loads(line) for line in lines["results.jsonl"].splitlines()]
    assert len(rows) == 2 * len(sweep.operations)
    shares = [json.loads(line) for line in lines["devices.jsonl"].splitlines()]
    work = {row["devices"]: row["floating_point_operations"] for row in shares}
    assert work[8] < 0.25 * work[1]
    assert shares[-1]["collectives"] == ["all-reduce"]
    for name in ("report.html", "time.png", "memory.png", "devices.png"):
        assert (output / name).stat().st_size > 500
    # A run that was killed while it added the rows of a sweep.
    kept = lines["results.jsonl"].splitlines(keepends=True)[:-1]
    (output / "results.jsonl").write_text("".join(kept))
    os.remove(output / "report.md")
    assert run() == 0
    again = (output / "results.jsonl").read_text().splitlines(keepends=True)
    assert again[:-1] == kept
    assert len(again) == len(rows)
    assert "## A large transformer, on paper" in (output / "report.md").read_text()
