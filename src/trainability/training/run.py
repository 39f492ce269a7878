"""The loop of a run, which all of its processes go through alike: only their writers differ."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from trainability.errors import ArgumentError, FolderError, UnsupportedModelError
from trainability.training.interrupts import deferred
from trainability.training.trainer import Training
from trainability.training.writer import Writer


def run(
    training: Training,
    writer: Writer,
    *,
    resume: bool = False,
    checkpoint_every: int | None = None,
    progress: Callable[[Training], None] = lambda _: None,
) -> int | None:
    """Train to the end, or to an interrupt, with checkpoints; return the step of the one that it went on from.

    Args:
        training: not yet prepared.
        writer: that of the first process, or one that writes nothing.
        resume: go on from the writer's newest checkpoint, if there is one.
        checkpoint_every: steps between checkpoints; an epoch by default.
        progress: is called after each step.

    Raises:
        FolderError: the checkpoint is of another run, or damaged.
        UnsupportedModelError: the networks cannot run as the configuration wants them.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint, in the first process; the others return.
    """
    fabric = training.fabric
    state = fabric.broadcast(writer.newest() if resume else None)
    try:
        _begin(training, state)
    except UnsupportedModelError:
        if not resume:
            writer.discard()
        raise
    writer.note("resumed" if resume else "started", step=training.steps, execution=training.execution)
    begun_at = training.steps if state is not None else None
    if fabric.broadcast(training.done and writer.complete):
        return begun_at
    every = checkpoint_every or training.batches.per_epoch
    with writer.logging(), deferred(fabric) as interrupted:
        while not training.done:
            training.advance()
            ends = interrupted(training.steps) and not training.done
            if ends or (training.steps % every == 0 and not training.done):
                writer.save(training.state())  # of which every process has a part
                writer.note("interrupted" if ends else "checkpoint", step=training.steps)
            progress(training)
            if ends:
                break
        else:
            training.finish("done")
            writer.save(training.state())
            writer.finish(training.steps, training.histories)
            return begun_at
    if fabric.is_global_zero:  # another's exit code would make the launcher end the first
        raise KeyboardInterrupt
    return begun_at


def _begin(training: Training, state: dict[str, Any] | None) -> None:
    """Start or take up a training, every process from the first one's state."""
    if state is not None:
        try:
            training.load(state)
        except ArgumentError as error:
            raise FolderError(
                f"the newest checkpoint is not one of this run: {error}; remove it to go on from the one before it",
                code=error.code,
            ) from None
    else:
        training.prepare()


@contextmanager
def naming_the_dead() -> Iterator[None]:
    """Within it, the death of another process of the run is a sentence, where the network library says it at length."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(name in str(error).lower() for name in ("gloo", "nccl")):
            raise
        raise FolderError(
            "the run stopped because another of its processes died; go on with --resume", code="process-died"
        ) from None
