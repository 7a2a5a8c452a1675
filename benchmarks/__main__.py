"""The command line: a table of subcommands, each a dataclass of options with a `run`."""

import sys
from collections.abc import Sequence

import tyro

from benchmarks.ablation.command import Ablation
from benchmarks.audit.command import Audit
from benchmarks.listing import List
from benchmarks.paper.command import Paper
from benchmarks.propagation.command import Propagation
from benchmarks.selection.command import Selection
from benchmarks.speed.command import Speed
from benchmarks.tools.errors import UsageError
from benchmarks.unlearn.command import Unlearn

COMMANDS = {
    "unlearn": Unlearn,
    "audit": Audit,
    "speed": Speed,
    "propagation": Propagation,
    "selection": Selection,
    "ablation": Ablation,
    "paper": Paper,
    "list": List,
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code."""
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="python -m benchmarks",
        description="Benchmarks of sapsel_jax on real data.",
        args=args,
    )
    try:
        command.run()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"interrupted; {stop or 'nothing was written'}.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
