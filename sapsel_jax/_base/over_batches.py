"""The mean of a function over more batches than fit into memory, saved on the way."""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from sapsel_jax._base.bits import fingerprint
from sapsel_jax._base.checks import batch_size, by_path, check_count, named_leaves
from sapsel_jax._base.processes import on_host
from sapsel_jax._base.streaming import MeanState, mean_finalize, mean_init, mean_update


def mean_over_batches(
    fn: Callable[[Any, int], Any],
    params: Any,
    batches: Iterable[Any] | Callable[[int], Iterable[Any]],
    *,
    folder: str | Path | None = None,
    save_every: int = 100,
    on_batch: Callable[[int], Any] | None = None,
) -> Any:
    """Takes the mean of a diagonal or a gradient over batches, one after the other.

    The mean is that over examples: each batch counts with its number of examples. With a folder the
    state is saved on the way, and the same call continues where an earlier one was stopped, with
    the same bits at the end. A state is saved whole or not at all, whenever the process ends.

    Args:
      fn: `fn(batch, number) -> pytree` shaped like `params`, the mean over the examples of one
        batch. `number` counts the batches from 0, for random keys. Compile it by `jax.jit`.
      params: pytree of floating-point arrays that the function is about. A folder belongs to them:
        it is refused with any others.
      batches: pytrees with the examples along the leading axis of every leaf, in the same order
        every time. Or `batches(number)`, those from a number on; without it the batches that were
        seen are read again and skipped.
      folder: for the checkpoints, made if it is missing; needs orbax-checkpoint. None saves
        nothing. Take another folder for another `fn` or other data.
      save_every: batches between two checkpoints, at least 1. The end is saved, too.
      on_batch: called with the number of batches that are done, after each.

    Returns:
      A pytree shaped like `params`, in float32 or wider; NaN where there was no example.

    Raises:
      TypeError: if `params` or what `fn` returns holds anything but real floating-point arrays.
      ValueError: if `fn` returns something shaped unlike `params`, if a batch is empty or its
        leaves differ in length, if `save_every` is below 1, or if `folder` belongs to other
        parameters.
      ImportError: if `folder` is given and orbax-checkpoint is not installed.

    Cost: that of `fn` for each batch; a checkpoint holds two arrays for each leaf.

    Source: own; the sums are explained in `mean_update`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import sapsel_jax as sap
      >>> loss_fn = lambda w, x: 0.5 * jnp.sum(x * w) ** 2  # second derivatives are x²
      >>> w = jnp.zeros(2)
      >>> diagonal = jax.jit(lambda batch, number: sap.exact_diagonal(loss_fn)(w, batch))
      >>> batches = [jnp.ones((3, 2)), jnp.full((1, 2), 3.0)]
      >>> sap.mean_over_batches(diagonal, w, batches)
      Array([3., 3.], dtype=float32)
    """
    check_count("save_every", save_every, minimum=1)
    state, start = mean_init(params), 0
    saved = None if folder is None else _Checkpoints(Path(folder), params)
    if saved is not None:
        state, start = saved.latest(state)
    # One program for all batches; without it each of its small operations is sent by itself.
    update = jax.jit(mean_update)
    rest = batches(start) if callable(batches) else itertools.islice(batches, start, None)
    done = start
    for batch in rest:
        num_examples = batch_size("batch", batch)
        state = update(state, fn(batch, done), num_examples)
        done += 1
        if saved is not None and done % save_every == 0:
            saved.save(done, state)
        if on_batch is not None:
            on_batch(done)
    if saved is not None and done > start and done % save_every:
        saved.save(done, state)
    return mean_finalize(state)


class _Checkpoints:
    """States of a mean in a folder, of which orbax writes each whole or not at all."""

    def __init__(self, folder: Path, params: Any) -> None:
        try:
            import orbax.checkpoint as ocp
        except ImportError as error:
            raise ImportError(
                "`folder` needs orbax-checkpoint; install it by `pip install orbax-checkpoint`."
            ) from error
        self.ocp, self.folder = ocp, folder
        leaves = [(path, on_host(leaf)) for path, leaf in by_path(named_leaves(params))]
        self.params = fingerprint(leaves)

    def manager(self) -> Any:
        """What reads and writes the folder, and waits until a state is written."""
        options = self.ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=False, create=True
        )
        return self.ocp.CheckpointManager(self.folder.absolute(), options=options)

    def latest(self, state: MeanState) -> tuple[MeanState, int]:
        """The state that was saved last, and after how many batches; or the one given, and 0."""
        with self.manager() as manager:
            done = manager.latest_step()
            if done is None:
                return state, 0
            args = self.ocp.args
            about = manager.restore(done, args=args.Composite(of=args.JsonRestore()))["of"]
            if about["params"] != self.params:
                raise ValueError(
                    "`folder` must be new or hold a mean for the same `params`; "
                    f"{str(self.folder)!r} holds one for others."
                )
            wanted = args.Composite(state=args.StandardRestore(_held(state)))
            held = manager.restore(done, args=wanted)["state"]
        leaves, structure = jax.tree.flatten(state)
        leaves = [_free(held[str(i)]) if str(i) in held else leaf for i, leaf in enumerate(leaves)]
        return structure.unflatten(leaves), done

    def save(self, done: int, state: MeanState) -> None:
        """Saves a state after so many batches."""
        args = self.ocp.args
        with self.manager() as manager:
            manager.save(
                done,
                args=args.Composite(
                    state=args.StandardSave(_held(state)), of=args.JsonSave({"params": self.params})
                ),
            )


def _free(leaf: jax.Array) -> jax.Array:
    """As in a new state: bound to a mesh, or to no device, so that it meets what lies on any."""
    return leaf if isinstance(leaf.sharding, NamedSharding) else jnp.asarray(np.asarray(leaf))


def _held(state: MeanState) -> dict[str, Any]:
    """The arrays of a state that are not empty, which orbax does not save, by number."""
    return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state)) if leaf.size}
