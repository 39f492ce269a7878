"""The loop of a run, which all of its processes go through alike: only their writers differ."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from trainability._references import naming_the_place
from trainability.errors import ArgumentError, FolderError
from trainability.training.folder import Writer
from trainability.training.trainer import Training

_SECONDS = 5.0  # between checkpoints at the end of epochs


class Run:
    """The training of one stack with its record; several may take turns, an epoch each.

    Args:
        training: not yet prepared.
        writer: that of the first process, or one that writes nothing.
        checkpoint_every: steps between checkpoints; by default an epoch, but not more often than every few seconds.
        whose: what an error is said to be of that is raised in no file of the user's; it is raised as it is without.
    """

    def __init__(
        self, training: Training, writer: Writer, checkpoint_every: int | None = None, whose: str = ""
    ) -> None:
        self._whose = whose
        self.training, self._writer, self._every = training, writer, checkpoint_every
        self._kept_at = time.monotonic()

    def begin(self, state: Mapping[str, Any] | None = None) -> None:
        """Prepare the training, or take it up from a checkpoint; the first process's choices are everybody's.

        Raises:
            FolderError: the checkpoint is of another run, or damaged.
            UnsupportedModelError: the networks cannot run as the configuration wants them.
        """
        training = self.training
        state = training.fabric.broadcast(state)
        if state is not None:
            try:
                with naming_the_place():
                    training.load(state)
            except ArgumentError as error:
                raise FolderError(
                    f"the newest checkpoint is not one of this run: {error}; remove it to go on from the one before it",
                    code=error.code,
                ) from None
        else:
            with naming_the_place():
                training.prepare()
        self._writer.note("resumed" if state else "started", step=training.steps, execution=training.execution)
        if state is None:
            self.save()  # killed in its first epoch, it goes on with the choices made here

    def epoch(self, after_step: Callable[[], bool]) -> bool:
        """Train to the end of the epoch, or until ``after_step``, which is called after each, says to stop."""
        training = self.training
        while not training.done:
            with naming_the_place(self._whose):
                training.advance()
            ended = training.steps % training.batches.per_epoch == 0
            if not training.done and self._is_due(ended):
                self.save()
            if after_step() and not training.done:
                return False
            if ended:
                break
        return True

    def _is_due(self, ended: bool) -> bool:
        if self._every is not None:
            return self.training.steps % self._every == 0
        return ended and bool(self.training.fabric.broadcast(time.monotonic() - self._kept_at > _SECONDS))

    def save(self, event: str = "checkpoint") -> None:
        """Write a checkpoint, of which every process has a part."""
        self._writer.save(self.training.state())
        self._writer.note(event, step=self.training.steps)
        self._kept_at = time.monotonic()

    def finish(self) -> None:
        """Record the end, with a last checkpoint."""
        self.training.finish("done")
        self.save()
        results = [history.result() for history in self.training.histories]
        self._writer.note("finished", step=self.training.steps, results=results)

    def stop(self) -> None:
        """Keep a checkpoint of a training that is interrupted, and record what there is by then."""
        if not self.training.done:
            self.save("interrupted")
            self.training.finish("interrupted")


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
