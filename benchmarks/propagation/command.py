"""`python -m benchmarks propagation`: what one pass costs, how near it comes, what it selects."""

import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.table import Table

import sapsel_jax as sap
from benchmarks.learning.data import is_prepared
from benchmarks.measures.diagonals import captured, flat, gradient_equivalents, overlaps, quality
from benchmarks.propagation.block_rules import WITHOUT, matters, propagated_without
from benchmarks.propagation.networks import (
    NETWORKS,
    Trained,
    mlp,
    resnet,
    stack,
    trained,
    transformer,
)
from benchmarks.propagation.report import draw, quality_table, report
from benchmarks.tools.command import continued
from benchmarks.tools.errors import check_at_least
from benchmarks.tools.origin import Origin, add_origin, write_report
from benchmarks.tools.page import write_page
from benchmarks.tools.pieces import Work, measure, read_rows
from benchmarks.tools.timing import compiled, temporary_bytes
from sapsel_jax._curvature.propagation import PROBES_AT_ONCE

NUM_EXAMPLES = {"digits": 512, "mnist": 2_000}
MNIST = ("relu mlp", "tanh mlp", "gelu mlp")
"""Those that train on MNIST in seconds, and have an exact diagonal there in seconds."""
MORE_EXAMPLES = ("relu mlp", "tanh mlp", "gelu mlp", "relu cnn", "gelu cnn")
"""Those whose exact diagonal of all digits takes seconds."""
MOST_PROBES = {"digits": 64, "mnist": 16}
CHUNK = 64
"""Examples that are added at a time where their number is varied."""
DEPTHS = (2, 4, 8, 16, 32)
STACKED = (8, 16, 32, 64, 128)
SPREAD_PROBES = 64
ABLATED = ("relu mlp", "gelu mlp", "attention")
LOOPED = ("gelu mlp", "relu cnn")
MICROBATCH = 8
LARGE: dict[str, tuple[Callable[[], Any], int]] = {
    "ResNet": (resnet, 32),
    "6-layer transformer": (lambda: transformer(6, (32, 96), width=128, heads=4), 32),
}
"""How they are made, and on how many random images of 32×32×3 they run."""
Say = Callable[[str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Propagation:
    """Measure curvature propagation: cost, error, its rules, its masks, and depth."""

    seeds: int = 8
    """How many seeds are reported: draws that the quality of an estimate is averaged over."""
    seconds: float = 2.0
    """About how long each timing takes; ten times that for the large networks."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps prepared data; None is its default, or TFDS_DATA_DIR. Without
    MNIST there scikit-learn's digits are all."""
    output: Path | None = None
    """Folder for the results; None is results/propagation. What stands there is not done again."""
    quick: bool = False
    """A rough run: two dense networks, up to 8 layers, no large networks."""

    def run(self) -> None:
        """Measures what is missing, prints a table and leaves a report."""
        check_at_least("seeds", self.seeds, 1)
        settings = {name: getattr(self, name) for name in ("seeds", "seconds", "quick")}
        with continued(self.output or Path("results", "propagation"), settings) as run:
            add_origin(run.folder, self)
            rows = measure(run, self.plan(run.tell))
            write_report(self, run.folder)
            table = Table(title="Curvature propagation, one probe", box=box.SIMPLE)
            headings, cells = quality_table(rows)
            for heading in headings:
                table.add_column(heading, justify="left" if heading == headings[0] else "right")
            for row in cells:
                table.add_row(*row)
            run.tables.append(table)

    def report(self, folder: Path, origin: Origin) -> None:
        """Pictures and pages from what stands in the folder."""
        rows = read_rows(folder)
        draw(folder, rows)
        write_page(folder, report(rows, origin))

    def plan(self, tell: Say) -> dict[str, Work]:
        """What is measured; `part` of its rows says what they are about."""
        networks = [(n, "digits") for n in (("relu mlp", "gelu mlp") if self.quick else NETWORKS)]
        if not self.quick and is_prepared("mnist", self.data_dir):
            networks += [(name, "mnist") for name in MNIST]
        some = ("gelu mlp",) if self.quick else None
        plan: dict[str, Work] = {}
        for name, dataset in networks:
            work = functools.partial(self._network, name, dataset, tell)
            plan[f"{name} on {dataset}"] = work
        for name in some or LOOPED:
            plan[f"{name}, several probes"] = functools.partial(self._loops, name, tell)
        for depth in DEPTHS[:3] if self.quick else DEPTHS:
            plan[f"{depth} layers"] = functools.partial(self._depth, depth, tell)
        for layers in STACKED[:2] if self.quick else STACKED:
            plan[f"{layers} layers in a scan"] = functools.partial(self._stack, layers, tell)
        for without in WITHOUT:
            for name in some or ABLATED:
                work = functools.partial(self._rule, without, name, tell)
                plan[f"{name} without {without}"] = work
        for name in () if self.quick else LARGE:
            plan[name] = functools.partial(self._large, name, tell)
        return plan

    def _network(self, name: str, dataset: str, say: Say) -> Iterator[Row]:
        """Cost, error and masks of one network."""
        about = f"{name} on {dataset}"
        say(f"{about}: training and compiling")
        network, batch, exact, want = _with_exact(name, dataset, self.data_dir)
        loss_fn, params, key = network.loss_fn, network.params, jax.random.key(0)
        estimate, _ = compiled(sap.propagated_diagonal(loss_fn), params, batch, key)
        works = {
            "propagated": lambda: estimate(params, batch, key),
            "exact": lambda: exact(params, batch),
        }
        costs = gradient_equivalents(
            loss_fn, params, batch, works, self.seconds, lambda words: say(f"{about}: {words}")
        )
        say(f"{about}: drawing")
        keys = [jax.random.key(i) for i in range(max(self.seeds, MOST_PROBES[dataset]))]
        draws = np.stack([flat(estimate(params, batch, each)) for each in keys])
        first = {"dataset": dataset, "network": name}
        yield first | {
            "part": "quality",
            "examples": NUM_EXAMPLES[dataset],
            "entries": len(want),
            "loss": float(jnp.mean(jax.vmap(loss_fn, (None, 0))(params, batch))),
            "cost": costs["propagated"],
            "exact_cost": costs["exact"],
            **quality(want, draws[: self.seeds]),
            "overlap": overlaps(want, draws[: self.seeds]),
            "captured": captured(want, draws[: self.seeds], 0.05),
        }
        for probes in (2**i for i in range(MOST_PROBES[dataset].bit_length())):
            groups = draws[: len(draws) // probes * probes].reshape(-1, probes, len(want))
            means = groups[: self.seeds].mean(1)
            yield first | {"part": "probes", "probes": probes, "overlap": overlaps(want, means)}
        if dataset == "digits" and name in MORE_EXAMPLES:
            yield from self._examples(network, first, say)

    def _examples(self, network: Trained, first: Row, say: Say) -> Iterator[Row]:
        """Masks from the first examples against the mask from the exact diagonal of all."""
        say(f"{first['network']}: more examples")
        num_chunks = len(network.examples[1]) // CHUNK
        whole = network.take(num_chunks * CHUNK)
        stacked = jax.tree.map(lambda x: x.reshape(num_chunks, CHUNK, *x.shape[1:]), whole)
        chunks = [jax.tree.map(operator.itemgetter(i), stacked) for i in range(num_chunks)]
        key = jax.random.key(0)
        sums = {"exact": sap.exact_diagonal, "propagated": sap.propagated_diagonal}
        programs = {}
        for method, make in sums.items():
            rest = () if method == "exact" else (key,)
            fn = make(network.loss_fn, reduction="sum")
            programs[method], _ = compiled(fn, network.params, chunks[0], *rest)
        running: dict[str, list[Any]] = {"exact": [], "propagated": []}
        parts = [flat(programs["exact"](network.params, chunk)) for chunk in chunks]
        running["exact"] = [np.cumsum(parts, axis=0)]
        for seed in range(self.seeds):
            keys = jax.random.split(jax.random.key(seed), num_chunks)
            parts = [
                flat(programs["propagated"](network.params, *some))
                for some in zip(chunks, keys, strict=True)
            ]
            running["propagated"].append(np.cumsum(parts, axis=0))
        want = running["exact"][0][-1]
        for count in sorted({*(2**i for i in range(num_chunks.bit_length())), num_chunks}):
            for method, totals in running.items():
                found = [total[count - 1] for total in totals]
                yield first | {
                    "part": "examples",
                    "method": method,
                    "examples": count * CHUNK,
                    "of": num_chunks * CHUNK,
                    "overlap": overlaps(want, found),
                }

    def _loops(self, name: str, say: Say) -> Iterator[Row]:
        """Several probes at once, and one after the other."""
        say(f"{name}: several probes")
        network, batch, *_ = _with_exact(name, "digits", self.data_dir)
        loss_fn, params, key = network.loss_fn, network.params, jax.random.key(0)
        together = sap.propagated_diagonal(loss_fn, num_probes=PROBES_AT_ONCE)
        in_turn = sap.propagated_diagonal(
            loss_fn, num_probes=PROBES_AT_ONCE, microbatch=NUM_EXAMPLES["digits"]
        )
        ways = {"at once": together, "in turn": in_turn}
        programs = {way: compiled(fn, params, batch, key)[0] for way, fn in ways.items()}
        works = {
            way: functools.partial(program, params, batch, key) for way, program in programs.items()
        }
        costs = gradient_equivalents(loss_fn, params, batch, works, self.seconds, say)
        for way, program in programs.items():
            yield {
                "part": "loops",
                "network": name,
                "way": way,
                "probes": PROBES_AT_ONCE,
                "cost": costs[way],
                "megabytes": temporary_bytes(program) / 2**20,
            }

    def _depth(self, depth: int, say: Say) -> Iterator[Row]:
        """Cost of a pass and of one product per site, for tanh networks of one width."""
        say(f"{depth} layers: compiling")
        loss_fn, params = mlp("tanh", (64, *[32] * (depth - 1), 10))
        batch, key = _with_exact("relu mlp", "digits", self.data_dir).batch, jax.random.key(0)
        programs = {
            "propagated": compiled(sap.propagated_diagonal(loss_fn), params, batch, key)[0],
            "product per site": compiled(sap.hutchinson_diagonal(loss_fn), params, batch, key)[0],
        }
        works = {
            name: functools.partial(program, params, batch, key)
            for name, program in programs.items()
        }
        say(f"{depth} layers")
        costs = gradient_equivalents(loss_fn, params, batch, works, self.seconds, say)
        yield {"part": "depth", "layers": depth, **{name: costs[name] for name in works}}

    def _stack(self, layers: int, say: Say) -> Iterator[Row]:
        """Cost, memory, compilation and spread for layers in a scan."""
        say(f"{layers} layers in a scan: compiling")
        loss_fn, params = stack(layers, 64, 32)
        batch, key = _with_exact("relu mlp", "digits", self.data_dir).batch, jax.random.key(0)
        program, seconds = compiled(sap.propagated_diagonal(loss_fn), params, batch, key)
        gradient = jax.grad(lambda p, b: jnp.mean(jax.vmap(loss_fn, (None, 0))(p, b)))
        estimate = sap.propagated_diagonal(loss_fn, num_probes=SPREAD_PROBES, return_error=True)
        mean, error = (
            flat(tree) for tree in compiled(estimate, params, batch, key)[0](params, batch, key)
        )
        works = {"propagated": functools.partial(program, params, batch, key)}
        costs = gradient_equivalents(loss_fn, params, batch, works, self.seconds, say)
        yield {
            "part": "stack",
            "layers": layers,
            "cost": costs["propagated"],
            "megabytes": temporary_bytes(program) / 2**20,
            "gradient_megabytes": temporary_bytes(compiled(gradient, params, batch)[0]) / 2**20,
            "compile_seconds": seconds,
            "spread": float(np.linalg.norm(error) * np.sqrt(SPREAD_PROBES) / np.linalg.norm(mean)),
        }

    def _rule(self, without: str, name: str, say: Say) -> Iterator[Row]:
        """The error of one probe without a rule, where the network has blocks for it."""
        network, batch, _, want = _with_exact(name, "digits", self.data_dir)
        loss_fn, params = network.loss_fn, network.params
        if not matters(without, loss_fn, params, batch):
            return
        say(f"{name} without {without}")
        estimate, _ = compiled(
            propagated_without(without, loss_fn), params, batch, jax.random.key(0)
        )
        draws = [flat(estimate(params, batch, jax.random.key(i))) for i in range(self.seeds)]
        yield {"part": "rules", "without": without, "network": name, **quality(want, draws)}

    def _large(self, name: str, say: Say) -> Iterator[Row]:
        """Cost and memory in microbatches."""
        say(f"{name}: compiling")
        make, num_examples = LARGE[name]
        loss_fn, params = make()
        keys = jax.random.split(jax.random.key(0), 2)
        images = jax.random.uniform(keys[0], (num_examples, 32, 32, 3))
        batch = (images, jax.random.randint(keys[1], (num_examples,), 0, 10))
        estimate = sap.propagated_diagonal(loss_fn, microbatch=MICROBATCH)
        program, compile_seconds = compiled(estimate, params, batch, keys[0])
        say(name)
        works = {"propagated": lambda: program(params, batch, keys[0])}
        costs = gradient_equivalents(loss_fn, params, batch, works, 10 * self.seconds, say)
        yield {
            "part": "large",
            "network": name,
            "entries": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "examples": num_examples,
            "microbatch": MICROBATCH,
            "cost": costs["propagated"],
            "megabytes": temporary_bytes(program) / 2**20,
            "compile_seconds": compile_seconds,
        }


class _WithExact(NamedTuple):
    network: Trained
    batch: Any
    exact: Any
    """The compiled program of its exact diagonal."""
    diagonal: np.ndarray


@functools.cache
def _with_exact(name: str, dataset: str, data_dir: str | None) -> _WithExact:
    """A trained network, what its curvature is measured on, and the exact one."""
    network = trained(name, dataset, data_dir)
    batch = network.take(NUM_EXAMPLES[dataset])
    exact, _ = compiled(sap.exact_diagonal(network.loss_fn), network.params, batch)
    return _WithExact(network, batch, exact, flat(exact(network.params, batch)))
