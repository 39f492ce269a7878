"""One loop on every process: train a stack in its folder, with checkpoints, and stop between steps when asked."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from trainability.errors import ArgumentError, FolderError
from trainability.training.engine import Training
from trainability.training.folder import RunFolder
from trainability.training.loggers import Logger
from trainability.training.places import Existing

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_AGREE_EVERY = 5  # steps after which several processes ask one another whether to stop
_SECONDS = 5.0  # between checkpoints that nobody asked for


class Writer(Protocol):
    """What keeps the record of a run: a `RunFolder`, or nothing on the processes that follow the first."""

    def note(self, event: str, **values: Any) -> None:
        """Keep an event."""

    def save(self, state: Mapping[str, Any]) -> object:
        """Keep a checkpoint."""

    def write(self, name: str, content: Any) -> None:
        """Keep a file."""

    def newest(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest checkpoint that is whole, and the names of damaged ones."""
        ...

    def discard(self) -> None:
        """Take away what was kept of a run that has trained nothing."""

    def close(self) -> None:
        """Let go."""


class Silent:
    """The writer of the processes that follow the first: it takes the same calls and keeps nothing."""

    def note(self, event: str, **values: Any) -> None:
        """Do nothing."""

    def save(self, state: Mapping[str, Any]) -> None:
        """Do nothing; making the state took all processes."""

    def write(self, name: str, content: Any) -> None:
        """Do nothing."""

    def newest(self) -> tuple[None, list[str]]:
        """No checkpoint: the first process tells the others."""
        return None, []

    def discard(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def open_writer(
    path: Path, recipe: Mapping[str, Any], environment: Mapping[str, Any], existing: Existing, fabric: "Fabric"
) -> Writer:
    """The folder on the first process and a silent writer on the others; a refusal is told to all, or they would wait.

    Raises:
        FolderError: the folder cannot be used.
    """
    writer: Writer = Silent()
    refusal = None
    if fabric.is_global_zero:
        try:
            writer = RunFolder(path, recipe, environment, existing)
        except FolderError as error:
            refusal = str(error), error.code
        except OSError as error:
            refusal = f"{path} cannot be written to: {error.strerror}", "out-not-writable"
    if refusal := fabric.broadcast(refusal):
        message, code = refusal
        raise FolderError(message, code=code)
    return writer


class Run:
    """The training of one stack with its record.

    Args:
        training: the stack.
        writer: its folder, or a silent one.
        checkpoint_every: steps; None for an epoch, but not more often than every few seconds.
        loggers: are sent the metrics.
    """

    def __init__(
        self, training: Training, writer: Writer, checkpoint_every: int | None = None, loggers: Sequence[Logger] = ()
    ) -> None:
        self.training, self.writer, self._loggers = training, writer, loggers
        self._every = checkpoint_every
        self._kept_at = time.monotonic()
        training.tell = self._note

    def _note(self, event: str, **values: Any) -> None:
        self.writer.note(event, **values)
        names = [f"seed{member.seed}" for member in self.training.members]
        for logger in self._loggers:
            logger.log(metrics(values, names), values["step"])

    def begin(self, state: Mapping[str, Any] | None = None) -> None:
        """Prepare the training, or take it up from a checkpoint; the first process's choices are everybody's.

        Raises:
            FolderError: the checkpoint is of another run.
        """
        fabric, training = self.training.fabric, self.training
        state = fabric.broadcast(state)
        if state is not None:
            try:
                training.load(state)
            except ArgumentError as error:
                raise FolderError(
                    f"the newest checkpoint cannot be taken up: {error}; take it away to go on from the one before it",
                    code=error.code,
                ) from None
        elif training.shared_out:  # nothing is to be chosen, and the passes take all processes
            training.prepare()
        else:
            if fabric.is_global_zero:
                training.prepare()
            execution = fabric.broadcast(training.execution)
            if not fabric.is_global_zero:
                training.prepare(execution)
        self.writer.note("resumed" if state else "started", step=training.steps, execution=training.execution)
        if state is None:
            self.save()  # a run that is killed in its first epoch takes up the choices made here

    def epoch(self, interrupted: Callable[[Training], bool]) -> None:
        """Train to the end of the epoch.

        Raises:
            KeyboardInterrupt: it was asked for, between two steps.
        """
        training = self.training
        while not training.done:
            training.advance()
            ended = training.steps % training.batches.per_epoch == 0
            if not training.done and self._is_due(ended):
                self.save()
            if interrupted(training):
                raise KeyboardInterrupt
            if ended:
                return

    def _is_due(self, ended: bool) -> bool:
        if self._every is not None:
            return self.training.steps % self._every == 0
        late = time.monotonic() - self._kept_at > _SECONDS
        return ended and self.training.fabric.broadcast(late)

    def save(self) -> None:
        """Keep a checkpoint; all processes have to take part."""
        self.writer.save(self.training.state())
        self.writer.note("checkpoint", step=self.training.steps)
        self._kept_at = time.monotonic()

    def finish(self) -> None:
        """Record the end, with a last checkpoint."""
        self.training.finish("done")
        self.save()
        self.writer.note(
            "finished", step=self.training.steps, results=[history.result() for history in self.training.histories]
        )

    def stop(self) -> None:
        """Keep a checkpoint of a training that is interrupted, and record what there is by then."""
        if not self.training.done:
            self.save()
            self.writer.note("interrupted", step=self.training.steps)
            self.training.finish("interrupted")

    def close(self) -> None:
        """Let go of the loggers."""
        for logger in self._loggers:
            logger.close()


@contextmanager
def naming_the_dead() -> Iterator[None]:
    """Say in a sentence that another process of the run has died, where the network library says it at length."""
    try:
        yield
    except RuntimeError as error:
        if not any(library in str(error).lower() for library in ("gloo", "nccl")):
            raise
        raise FolderError(
            "the run stopped because one of its processes did; go on with --resume", code="process-died"
        ) from None


@contextmanager
def between_steps(fabric: "Fabric") -> Iterator[Callable[[Training], bool]]:
    """Make Ctrl-C and SIGTERM wait for the end of a step, whose half could not be taken up; a second one ends at once.

    What is on the disk by then is whole. Several processes ask one another every few steps, so that all end at the
    same one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: False
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    asked: list[int] = []

    def ask(number: int, _frame: object) -> None:
        asked.append(number)
        if len(asked) > 1:
            with suppress(OSError):
                os.write(2, b"\ntrainability: stopped at once; what was kept before is whole\n")
            os._exit(130)

    def interrupted(training: Training) -> bool:
        if fabric.world_size == 1:
            return bool(asked)
        if training.steps % _AGREE_EVERY:
            return False
        return bool(fabric.all_reduce(torch.tensor(float(len(asked)), device=fabric.device), reduce_op="sum"))

    for number in before:
        signal.signal(number, ask)
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def metrics(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """An event's lists, one number per member, as metrics named by member."""
    return {
        f"{name}/{member}": float(number)
        for name, numbers in values.items()
        if isinstance(numbers, list)
        for member, number in zip(names, numbers, strict=True)
    }
