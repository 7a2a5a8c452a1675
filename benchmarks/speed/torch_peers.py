"""Peers in PyTorch, run by its own Python: no import of this project or of JAX.

Reads the name of a case's `.npz` per line of standard input, writes what it found beside it, and
answers with one line when that is done. `benchmarks.speed.torch_link` is at the other end.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import argparse
import importlib
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": lambda: nn.GELU(approximate="tanh")}
Arrays = list[np.ndarray]


class Network:
    """A case as `nn.Sequential`, and the way back to the layout of its parameters.

    Kernels are transposed; where images are flattened, channels come first here and last there.
    """

    def __init__(self, layers: list[str], arrays: Arrays, inputs: np.ndarray, labels: np.ndarray):
        """Takes kernels and biases in turn, and the examples."""
        x = torch.tensor(inputs)
        self.inputs = x.movedim(-1, 1).contiguous() if x.ndim == 4 else x
        self.labels = torch.tensor(labels, dtype=torch.long)
        self.flattened: dict[int, tuple[int, ...]] = {}
        """For the kernel behind a `flatten`, the shape of the image (height, width, channels)."""
        modules: list[nn.Module] = []
        position, x, image = 0, self.inputs[:1], ()
        for layer in layers:
            if layer.startswith(("dense", "conv")):
                kernel, bias = (torch.tensor(a) for a in arrays[position : position + 2])
                if image:
                    self.flattened[position] = (*image[1:], image[0])
                module = self._with_weights(layer, position, kernel, bias)
                position, image = position + 2, ()
            elif layer == "flatten":
                module, image = nn.Flatten(), tuple(x.shape[1:])
            else:
                module = nn.MaxPool2d(2) if layer == "pool" else ACTIVATIONS[layer]()
            modules.append(module)
            x = module(x)
        self.model = nn.Sequential(*modules)
        self.loss = nn.CrossEntropyLoss()

    def _with_weights(
        self, layer: str, position: int, kernel: torch.Tensor, bias: torch.Tensor
    ) -> nn.Module:
        weight = self.to_torch(position, kernel)
        if layer == "dense":
            module: nn.Module = nn.Linear(weight.shape[1], weight.shape[0])
        else:
            padding = weight.shape[-1] // 2 if layer.endswith("SAME") else 0
            module = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], padding=padding)
        with torch.no_grad():
            module.weight.copy_(weight)
            module.bias.copy_(bias)
        return module

    def to_torch(self, position: int, kernel: torch.Tensor) -> torch.Tensor:
        """A kernel as PyTorch has it: outputs first."""
        if kernel.ndim == 4:
            return kernel.permute(3, 2, 0, 1).contiguous()
        if position in self.flattened:
            image = kernel.reshape(*self.flattened[position], -1)
            kernel = image.permute(2, 0, 1, 3).reshape(kernel.shape)
        return kernel.T.contiguous()

    def from_torch(self, tensors: list[torch.Tensor]) -> np.ndarray:
        """All entries as one vector, in the order of the parameters there: bias before kernel."""
        found = []
        for position in range(0, len(tensors), 2):
            weight, bias = (t.detach() for t in tensors[position : position + 2])
            kernel = weight.permute(2, 3, 1, 0) if weight.ndim == 4 else weight.T
            if position in self.flattened:
                height, width, channels = self.flattened[position]
                image = kernel.reshape(channels, height, width, -1)
                kernel = image.permute(1, 2, 0, 3)
            found += [bias.reshape(-1).numpy(), kernel.reshape(-1).numpy()]
        return np.concatenate(found)

    def split(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """A vector over all parameters as one tensor each."""
        parameters = list(self.model.parameters())
        parts = torch.split(vector, [p.numel() for p in parameters])
        return [part.reshape(p.shape) for part, p in zip(parts, parameters, strict=True)]

    def gradient(self) -> list[torch.Tensor]:
        """The unit of cost: the gradient of the same mean loss on the same examples."""
        loss = self.loss(self.model(self.inputs), self.labels)
        return list(torch.autograd.grad(loss, list(self.model.parameters())))


Work = Callable[[], list[torch.Tensor]]


def backpack(network: Network, name: str) -> Work:
    """One of BackPACK's extensions."""
    library = importlib.import_module("backpack")
    extension = getattr(importlib.import_module("backpack.extensions"), name)()
    model, loss = library.extend(network.model), library.extend(nn.CrossEntropyLoss())

    def work() -> list[torch.Tensor]:
        model.zero_grad()
        with library.backpack(extension):
            loss(model(network.inputs), network.labels).backward()
        return [getattr(p, extension.savefield) for p in model.parameters()]

    return work


def curvlinops(network: Network, name: str, num_products: int) -> Work:
    """Hutchinson's estimator or XDiag on the Hessian as a linear operator."""
    library = importlib.import_module("curvlinops")
    module = "hutchinson" if name == "hutchinson_diag" else "epperly2024xtrace"
    estimate = getattr(importlib.import_module(f"curvlinops.diagonal.{module}"), name)
    parameters = list(network.model.parameters())
    operator = library.HessianLinearOperator(
        network.model,
        network.loss,
        parameters,
        [(network.inputs, network.labels)],
        check_deterministic=False,
    )
    return lambda: network.split(estimate(operator, num_products))


def nngeometry(network: Network) -> Work:
    """The diagonal of the Fisher matrix of the softmax: the Gauss-Newton matrix."""
    fim = importlib.import_module("nngeometry.metrics").FIM
    diagonal = importlib.import_module("nngeometry.object").PMatDiag
    data = torch.utils.data.TensorDataset(network.inputs, network.labels)
    loader = torch.utils.data.DataLoader(data, batch_size=len(data))

    def work() -> list[torch.Tensor]:
        matrix = fim(model=network.model, loader=loader, representation=diagonal)
        return network.split(matrix.get_diag().detach())

    return work


def asdl(network: Network) -> Work:
    """The same by asdl's exact Fisher."""
    library = importlib.import_module("asdl")
    config = library.FisherConfig(
        fisher_type=library.FISHER_EXACT,
        fisher_shapes=[library.SHAPE_DIAG],
        loss_type=library.LOSS_CROSS_ENTROPY,
        data_size=len(network.labels),
    )
    maker = library.get_fisher_maker(network.model, config)

    def work() -> list[torch.Tensor]:
        logits = maker.setup_model_call(network.model, network.inputs)
        maker.setup_loss_call(nn.functional.cross_entropy, logits, network.labels, reduction="sum")
        maker.forward_and_backward()
        layers = [m for m in network.model if isinstance(m, (nn.Linear, nn.Conv2d))]
        return [t for m in layers for t in (m.fisher.diag.weight, m.fisher.diag.bias)]

    return work


def contenders(is_affine: bool) -> list[dict[str, Any]]:
    """What is run: method, library, what it is to the Hessian's diagonal, products, and how."""
    of_hessian = "exact" if is_affine else "biased"
    sampled = "unbiased" if is_affine else "biased"
    rows: list[tuple[str, str, str, int, bool, Callable[[Network], Work]]] = [
        ("DiagHessian", "BackPACK", "exact", 1, True, lambda n: backpack(n, "DiagHessian")),
        ("DiagGGNExact", "BackPACK", of_hessian, 1, True, lambda n: backpack(n, "DiagGGNExact")),
        ("DiagGGNMC", "BackPACK", sampled, 1, True, lambda n: backpack(n, "DiagGGNMC")),
        ("FIM diagonal", "nngeometry", of_hessian, 1, True, nngeometry),
        ("Fisher diagonal", "asdl", of_hessian, 1, True, asdl),
        (
            "Hutchinson",
            "curvlinops",
            "unbiased",
            1,
            True,
            lambda n: curvlinops(n, "hutchinson_diag", 1),
        ),
    ]
    rows += [
        ("XDiag", "curvlinops", "unbiased", k, False, lambda n, k=k: curvlinops(n, "xdiag", k))
        for k in (4, 16)
    ]
    names = ("method", "library", "kind", "num_probes", "averages", "make")
    return [dict(zip(names, row, strict=True)) for row in rows]


def measure(path: Path, draws: int, repeats: int, seconds: float, turn: float) -> None:
    """Runs all on one case; leaves `NAME.found.npz` with the answers and `NAME.found.json`."""
    data = np.load(path)
    about = json.loads(str(data["about"]))
    arrays = [data[f"array{i}"] for i in range(about["num_arrays"])]
    make = lambda: Network(about["layers"], arrays, data["inputs"], data["labels"])
    network = make()
    works: dict[str, Work] = {"gradient": network.gradient}
    found, rows = {}, []
    for i, row in enumerate(contenders(about["piecewise_affine"])):
        if row["method"] not in about["methods"]:
            continue
        entry = {name: value for name, value in row.items() if name != "make"} | {"id": f"found{i}"}
        rows.append(entry)
        try:
            own = make()
            work = row["make"](own)
            torch.manual_seed(0)
            count = draws if row["kind"] == "unbiased" else 1
            found[entry["id"]] = np.stack([own.from_torch(work()) for _ in range(count)])
            works[entry["id"]] = work
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            entry["failed"] = f"{type(error).__name__}: {first_line[:160]}"
    runs = in_turn(works, repeats, seconds, turn)
    for entry in rows:
        entry["runs"] = runs.get(entry["id"], [])
    np.savez(path.with_suffix(".found.npz"), **found)
    answer = {
        "rows": rows,
        "gradient": runs["gradient"],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    path.with_suffix(".found.json").write_text(json.dumps(answer), encoding="utf-8")


def in_turn(
    works: dict[str, Work], repeats: int, seconds: float, turn: float
) -> dict[str, list[float]]:
    """Seconds of each run, one after the other in every round, as `tools.timing` does it.

    One that has run for `seconds` in all rests from then on; a quick one runs again and again until
    its turn has taken `turn` seconds, and the mean counts as one run.
    """
    runs: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            if sum(runs[name]) < seconds:
                runs[name].append(_turn(work, turn))
    return runs


def _turn(work: Work, least: float) -> float:
    count, start, passed = 0, time.perf_counter(), 0.0
    while not count or passed < least:
        work()
        count, passed = count + 1, time.perf_counter() - start
    return passed / count


def main() -> None:
    """Serves cases until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--draws", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--turn", type=float, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        measure(path, options.draws, options.repeats, options.seconds, options.turn)
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    main()
