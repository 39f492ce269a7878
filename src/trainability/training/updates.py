"""The optimisers of a stack: one for every member, or one for all where that comes to the same."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from trainability.training.optimisers import Schedule, build
from trainability.training.shards import load_optimizer, whole
from trainability.training.stack import Stack

# Each entry's update depends on that entry alone, so a stacked tensor is updated as its slices would be.
ELEMENTWISE = {"adam", "adamw", "sgd"}


class Updates:
    """Updates the members of a stack, each with its own learning rate and weight decay, and its own state.

    Members of the same settings share an optimiser over the stacked tensors, which is several times faster than one
    for each.

    Args:
        stack: on its device, in its precision.
        alpha: LBE's targets ``(E, L)``, if there are any.
        rates: learning rate of each member.
        decays: weight decay of each member; alpha has none.
        name: of the optimiser.
        options: of the optimiser.
        schedule: of the learning rate.
        epochs: of the training.
        steps_per_epoch: of the training.
    """

    def __init__(
        self,
        stack: Stack,
        alpha: nn.Parameter | None,
        rates: Sequence[float],
        decays: Sequence[float],
        *,
        name: str,
        options: Mapping[str, Any],
        schedule: Schedule,
        epochs: int,
        steps_per_epoch: int,
    ) -> None:
        self._stack, self._alpha = stack, alpha
        self._rates, self._decays = list(rates), list(decays)
        self._name, self._options = name, options
        self._own_alpha = [nn.Parameter(row) for row in alpha.data.unbind(0)] if alpha is not None else []
        alike = len(set(zip(rates, decays, strict=True))) == 1
        self.shared = (
            len(stack) > 1 and alike and name.lower() in ELEMENTWISE and schedule.kind != "plateau" and not stack.frozen
        )
        self._frozen: dict[int, list[Tensor]] = {}
        self._rates_there: list[Tensor] = []  # on the device, for a recording
        self._rates_set: list[float] = []
        if self.shared:
            self.optimizers = [self._build(0, list(stack.module.parameters()), [alpha] if alpha is not None else [])]
        else:
            own = enumerate(stack.models)
            self.optimizers = [self._build(e, list(m.parameters()), self._own_alpha[e : e + 1]) for e, m in own]
        self.schedulers: list[LRScheduler | None] = [schedule.of(o, epochs, steps_per_epoch) for o in self.optimizers]

    def _build(self, member: int, weights: list[nn.Parameter], alpha: list[nn.Parameter]) -> Optimizer:
        return build(
            self._name,
            weights,
            alpha,
            lr=self._rates[member],
            weight_decay=self._decays[member],
            options=self._options,
        )

    @property
    def recordable(self) -> bool:
        """Whether the updates can be recorded as a graph of the device, as those of torch's fused optimisers can.

        They count their steps on the device; others count in Python, or may.
        """
        return all(o.defaults.get("fused") for o in self.optimizers)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Around a recording: the optimisers read their learning rates from tensors, which `set_rates` fills."""
        groups = self._groups()
        device = groups[0]["params"][0].device
        if not self._rates_there:
            self._rates_there = [torch.tensor(float(group["lr"]), device=device) for group in groups]
            self._rates_set = [group["lr"] for group in groups]
        before = [dict(group) for group in groups]
        for group, there in zip(groups, self._rates_there, strict=True):
            group["lr"] = there
            if "capturable" in group:  # by which Adam allows it; set before, it would warn that nothing is recorded
                group["capturable"] = True
        try:
            yield
        finally:
            for group, own in zip(groups, before, strict=True):
                group.update(own)

    def set_rates(self) -> None:
        """Send the learning rates to where a recording reads them."""
        for number, (group, there) in enumerate(zip(self._groups(), self._rates_there, strict=False)):
            if group["lr"] != self._rates_set[number]:
                there.fill_(group["lr"])
                self._rates_set[number] = group["lr"]

    def zero_gradients(self) -> None:
        """Drop all gradients."""
        self._stack.zero_gradients()
        if self._alpha is not None:
            self._alpha.grad = None

    def freeze(self, member: int) -> None:
        """Keep a member as it is from now on."""
        if self.shared:
            self._frozen[member] = [part.clone() for part in self._parts(member)]

    def apply(self, alive: Sequence[bool]) -> None:
        """Update the members that are alive from the gradients of the stacked parameters."""
        if not self.shared:
            self._stack.hand_gradients()
            if self._alpha is not None and self._alpha.grad is not None:
                for own, gradient in zip(self._own_alpha, self._alpha.grad.unbind(0), strict=True):
                    own.grad = gradient
        for number, optimizer in enumerate(self.optimizers):
            if self.shared or alive[number]:
                optimizer.step()
        # The others are updated by the same operation as before, so that they do not notice, and this one is put back.
        for member, values in self._frozen.items():
            for part, value in zip(self._parts(member), values, strict=True):
                part.copy_(value)

    def advance(self, alive: Sequence[bool]) -> None:
        """Go on by one step in the schedules."""
        for number, scheduler in enumerate(self.schedulers):
            if scheduler is None or isinstance(scheduler, ReduceLROnPlateau):
                continue
            if self.shared or alive[number]:
                scheduler.step()

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def _parts(self, member: int) -> Iterator[Tensor]:
        """A member's weights and targets, as views."""
        alphas = [self._alpha] if self._alpha is not None else []
        return (stacked.data[member] for stacked in (*self._stack.module.parameters(), *alphas))

    def plateau(self, member: int, accuracy: float) -> None:
        """Tell a member's schedule its validation accuracy at the end of an epoch."""
        scheduler = self.schedulers[0 if self.shared else member]
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(accuracy)

    def state(self) -> dict[str, Any]:
        """Everything `load` needs."""
        return {
            "optimizers": [whole(o.state_dict()) for o in self.optimizers],
            "schedulers": [s.state_dict() if s is not None else None for s in self.schedulers],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            load_optimizer(optimizer, kept)
        for scheduler, kept in zip(self.schedulers, state["schedulers"], strict=True):
            if scheduler is not None:
                scheduler.load_state_dict(kept)
