"""The command line: a table of subcommands, each a dataclass of options with a `run`."""

import functools
from collections.abc import Sequence
from typing import Any

from benchmarks.tools.ending import exit_code, finish, stop_in_order
from benchmarks.tools.errors import UsageError

INSTALL = 'pip install -e ".[bench]"'
DESCRIPTION = """Benchmarks of sapsel_jax on real data.

Every command writes to one folder. Ctrl-C keeps what is finished there, and the same command goes
on from it. Exit codes: 0 done; 1 an error in the program; 2 wrong use, or a file that cannot be
read or written; 130 interrupted by Ctrl-C; 143 terminated; 129 hung up."""


@functools.cache
def commands() -> dict[str, Any]:
    """The subcommands; imported only here, so that Ctrl-C meanwhile ends in a sentence, too."""
    from benchmarks.ablation.command import Ablation
    from benchmarks.audit.command import Audit
    from benchmarks.beyond.command import Beyond
    from benchmarks.listing import List
    from benchmarks.paper.command import Paper
    from benchmarks.propagation.command import Propagation
    from benchmarks.render import Render
    from benchmarks.scaling.command import Scaling
    from benchmarks.secrets.command import Secrets
    from benchmarks.selection.command import Selection
    from benchmarks.sparsity.command import Sparsity
    from benchmarks.speed.command import Speed
    from benchmarks.tools.help import with_help
    from benchmarks.unlearn.command import Unlearn

    kinds = (
        *(Unlearn, Audit, Speed, Propagation, Selection, Ablation, Paper, Sparsity, Beyond),
        *(Scaling, Secrets, Render, List),
    )
    return {kind.__name__.lower(): with_help(kind) for kind in kinds}


def main(args: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code."""

    def work() -> None:
        try:
            import tyro

            kinds = commands()
        except ModuleNotFoundError as error:
            if (error.name or "").startswith(("benchmarks", "sapsel_jax")):
                raise
            raise UsageError(
                f"the benchmarks need {error.name}; install what they need by `{INSTALL}`."
            ) from error
        command = tyro.extras.subcommand_cli_from_dict(
            kinds,
            prog="python -m benchmarks",
            description=DESCRIPTION,
            args=args,
        )
        command.run()

    return exit_code(work)


if __name__ == "__main__":
    stop_in_order()
    finish(main())
