"""One training step of a stack: its batch, forward pass, LBE, backward pass and update."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainability.data.seeding import Generators, stream
from trainability.errors import StateError, UnsupportedModelError
from trainability.introspect.outputs import in_dtype
from trainability.lbe.stacked import StackLBE
from trainability.stack.cuda_graphs import CudaGraph
from trainability.stack.module import Passed, Stack
from trainability.tasks import Task
from trainability.training.batches import Batches
from trainability.training.python_state import python_state
from trainability.training.updates import Updates

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# In the first runs kernels are chosen and the state of the optimizers is made.
_REHEARSALS = 3


class Step:
    """Trains the members of a stack by one step at a time.

    What differs from step to step lies in tensors that stay where they are: the indices of the samples, the seeds of
    the noise, the learning rates. All else is the same operations on the same tensors, until a member is frozen. So a
    whole step, from the data to the update, can be recorded as a graph of the device and launched at once; where the
    optimizers cannot be recorded, all but their update is.

    Args:
        stack: on its device, in its precision.
        forward: runs the stack as the strategy of the processes wants it.
        lbe: the term, if any member has it.
        updates: the optimizers.
        batches: the data, and the seeds of the members.
        task: the loss.
        fabric: precision and processes.
        make_graph: makes a graph of work that draws from these generators; None where operations are launched one by
            one.

    Attributes:
        alive: which members are trained.
        not_recorded: why there is no recording although one was wanted.
    """

    def __init__(
        self,
        stack: Stack,
        forward: Callable[[Any], Passed],
        lbe: StackLBE | None,
        updates: Updates,
        batches: Batches,
        task: Task,
        fabric: "Fabric",
        make_graph: Callable[[Sequence[torch.Generator]], CudaGraph] | None = None,
    ) -> None:
        self._stack, self._forward, self._lbe, self._task = stack, forward, lbe, task
        self._updates, self._batches, self._fabric = updates, batches, fabric
        self._noise = Generators(batches.seeds, fabric.device)
        self._loss_seeds: list[int] | None = None
        self.alive = [True] * len(stack)
        self._frozen_buffers: list[tuple[Tensor, Tensor]] = []  # of frozen members, and what they hold
        self._inputs: Any = None
        self._graph = make_graph(self.generators) if make_graph else None
        self._rehearsed = 0
        self._recorded: tuple[Tensor, Tensor] | None = None
        self.not_recorded: str | None = None

    def __call__(self, number: int, look: Callable[[Tensor], None] | None = None) -> Tensor:
        """Train the step of this number, from 0, and return the losses ``(E,)`` without the term.

        ``look`` is given the losses with the term, ``(E,)``, and may freeze members. That is before the update where
        operations are launched one by one, and after it where it is part of a recording.

        Raises:
            UnsupportedModelError: the step cannot be recorded, though a pass of the stack could have been.
        """
        self._set(number)
        if self._graph is None:
            return self._one_by_one(look)
        if self._rehearsed < _REHEARSALS:
            self._rehearsed += 1
            return self._graph.rehearse(partial(self._one_by_one, look))
        if self._recorded is None:
            self._recorded = self._record(self._graph)
        self._graph.replay()
        losses, totals = self._recorded
        if look is not None:
            look(totals)
        if not self._updates.recordable:
            self._update()
        self._updates.advance(self.alive)
        return losses.clone()

    @property
    def generators(self) -> list[torch.Generator]:
        """All from which a step may draw, besides torch's own."""
        return [*self._noise.all, *self._batches.generators]

    def check(self, work: Callable[[], object]) -> None:
        """Find out by a pass of the stack whether it can be recorded, and say in ``not_recorded`` why not."""
        if self._graph is None:
            return
        try:
            if not self._batches.resident:
                raise StateError("its samples are read as they are needed", code="not-recordable")
            if not self._stack.recordable:
                raise StateError(
                    "its members draw random numbers by functions, each from a seed of its own", code="not-recordable"
                )
            before = python_state(self._stack.module, self._fabric.device)
            self._graph.check(work)
            after = python_state(self._stack.module, self._fabric.device)
            if moved := [name for name, value in after.items() if before.get(name) != value]:
                raise StateError(f"a pass changes {moved[0]}, which a recording would not", code="not-recordable")
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.not_recorded = str(error).partition("\n")[0]
            self._graph = None

    def inputs(self, number: int) -> Any:
        """The inputs of a step, ``(E, B, ...)``, with the noise set to what that step draws."""
        self._set(number)
        return self._batch()[0]

    def freeze(self, member: int) -> None:
        """Leave a member at the weights and statistics that it has; the others do not notice."""
        self.alive[member] = False
        self._updates.freeze(member)
        if len(self.alive) > 1:
            own = [buffer[member] for buffer in self._stack.module.buffers()]
            self._frozen_buffers += [(buffer, buffer.clone()) for buffer in own]
        self._recorded = None

    def _set(self, number: int) -> None:
        """Put what belongs to a step where the device looks for it."""
        self._batches.set(number)
        rank = self._fabric.global_rank
        if self._task.loss.by_member:
            self._loss_seeds = [stream(seed, "loss", rank, number) for seed in self._batches.seeds]
        self._stack.seed(
            self._noise.at("dropout", rank, number),
            [stream(seed, "dropout", rank, number) for seed in self._batches.seeds],
        )
        self._updates.set_rates()

    def _one_by_one(self, look: Callable[[Tensor], None] | None) -> Tensor:
        losses, totals = self._losses()
        if look is not None:
            look(totals.detach())
        if any(self.alive):
            self._backward(totals)
            self._update()
            self._updates.advance(self.alive)
        return losses

    def _record(self, graph: CudaGraph) -> tuple[Tensor, Tensor]:
        try:
            with self._updates.recording():
                return graph.record(self._whole)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise UnsupportedModelError(
                "", f"a step cannot be recorded as a CUDA graph ({reason}); take cuda_graph: off", code="not-recordable"
            ) from error

    def _whole(self) -> tuple[Tensor, Tensor]:
        """Run the part of a step that is recorded: nothing in it asks the device for a value."""
        losses, totals = self._losses()
        self._backward(totals)
        if self._updates.recordable:
            self._update()
        return losses, totals.detach()

    def _batch(self) -> tuple[Any, Any]:
        x, y = self._batches.current()
        return in_dtype(x, self._stack.dtype), in_dtype(y, self._stack.dtype)

    def _losses(self) -> tuple[Tensor, Tensor]:
        """The losses of the members without the term, and with it."""
        self._updates.zero_gradients()  # before the pass, which then has their memory
        x, y = self._batch()
        # The backward pass reads them on the streams of the members, which do not hold their memory.
        self._inputs = x
        with self._fabric.autocast():
            outputs, readings = self._forward(x)
            losses = self._task.losses(outputs, y, self._loss_seeds)
        return losses.detach(), self._lbe(losses, readings) if self._lbe else losses

    def _backward(self, totals: Tensor) -> None:
        # What a frozen member adds, NaN or not, goes into its own gradients alone.
        self._fabric.backward(totals.sum())
        self._inputs = None

    def _update(self) -> None:
        self._updates.apply(self.alive)
        for buffer, value in self._frozen_buffers:
            buffer.copy_(value)
