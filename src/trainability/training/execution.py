"""The choice of how a stack runs: its members' way, compiled or not, and recorded as a device graph or not."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainability.errors import UnsupportedModelError
from trainability.stack import ways
from trainability.stack.cuda_graphs import CudaGraph, seconds
from trainability.stack.module import Stack
from trainability.training.config import TrainingConfig
from trainability.training.step import Step

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Compiling takes about this long for a deep network, so a shorter training is not worth the attempt.
_WORTH_COMPILING_S = 180.0


class Execution:
    """Chooses by measurement how the members of a stack run, or repeats a choice.

    Args:
        stack: on its device, in its precision.
        step: its training step.
        config: what the members share, and so what is to be chosen.
        fabric: precision and processes.
        make_graph: makes a graph of work that draws from these generators; None where nothing is recorded.

    Attributes:
        chosen: the choice, and what it rests on, of plain values.
    """

    def __init__(
        self,
        stack: Stack,
        step: Step,
        config: TrainingConfig,
        fabric: "Fabric",
        make_graph: Callable[[Sequence[torch.Generator]], CudaGraph] | None,
    ) -> None:
        self._stack, self._step, self._config, self._fabric = stack, step, config, fabric
        self._make_graph = make_graph
        self.chosen: dict[str, Any] = {}

    def choose(self, total_steps: int) -> None:
        """Measure and choose for a training of so many steps; the first of several processes chooses for all.

        Raises:
            UnsupportedModelError: the networks cannot run as the configuration wants them.
        """
        alone = self._stack.sharded or self._fabric.global_rank == 0  # sharded, they can only choose alike
        if alone:
            self._choose(total_steps)
        chosen = self._fabric.broadcast(self.chosen)
        if not alone:
            self.repeat(chosen)

    def _choose(self, total_steps: int) -> None:
        x = self._learned()
        wanted, stack = self._config.members, self._stack
        if wanted == "auto":
            self.chosen["seconds"] = ways.choose(stack, x, self.seconds)
        elif len(stack) > 1:
            if wanted == "direct" and stack.way != "direct":
                raise UnsupportedModelError(
                    "", "its layers cannot run directly as a stack; take members: auto", code="not-stackable"
                )
            stack.way = wanted
        self.chosen["compiled"] = self._config.compile == "on" or (
            self._config.compile == "auto" and not self._stack.sharded and self._compiling_pays(x, total_steps)
        )
        self.chosen["members"], self.chosen["channels_last"] = stack.way, stack.channels_last
        self._set_up(x)

    def repeat(self, chosen: Mapping[str, Any]) -> None:
        """Take the choice of an earlier part of this training, or of another process."""
        x = self._learned()
        self.chosen = dict(chosen)
        if self.chosen["members"] != "direct":  # which the stack has found out for itself
            self._stack.way = self.chosen["members"]
        self._stack.channels_last = self.chosen["channels_last"]
        self._set_up(x)

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds that work takes as it will run: in the training's precision, and as a graph if it can be one."""
        work = partial(self._in_precision, work)
        if self._make_graph is not None and self._stack.recordable:
            try:
                return seconds(work, self._fabric.device, self._make_graph(self._step.generators))
            except RuntimeError:  # it cannot be recorded, or cannot run at all
                pass
        return seconds(work, self._fabric.device)

    def _learned(self) -> Any:
        """Inputs of the first step, from which the stack has learned what it needs to know."""
        x = self._step.inputs(0)
        ways.prepare(self._stack, x)
        return x

    def _set_up(self, x: Tensor) -> None:
        if self.chosen["compiled"]:
            self._stack.compile()
        with ways.rehearsing(self._stack, x) as work:
            self._step.check(partial(self._in_precision, work))
        if reason := self._step.not_recorded:
            if self._config.cuda_graph == "on":
                raise UnsupportedModelError(
                    "", f"a step cannot be recorded ({reason}); take cuda_graph: auto", code="not-recordable"
                )
            self.chosen["not_recorded"] = reason

    def _compiling_pays(self, x: Tensor, total_steps: int) -> bool:
        with ways.rehearsing(self._stack, x) as work:
            eager = self.seconds(work)
        if eager * total_steps < _WORTH_COMPILING_S:
            return False
        self._stack.compile()
        try:
            with ways.rehearsing(self._stack, x) as work:
                compiled = self.seconds(work)
        except Exception as error:  # the compiler has many ways to fail, and none may stop a training
            self.chosen["not compiled"] = f"{type(error).__name__}: {error}".partition("\n")[0]
            return False
        finally:
            self._stack.eager()
        self.chosen |= {"seconds eager": eager, "seconds compiled": compiled}
        return compiled < 0.97 * eager

    def _in_precision(self, work: Callable[[], object]) -> None:
        with self._fabric.autocast():
            work()
