"""The optimizers of a stack: one for neighbors of the same settings, where that comes to the same, or one each."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from trainability.errors import ArgumentError
from trainability.stack.module import Stack
from trainability.training.config import Member, TrainingConfig
from trainability.training.optimizers import build
from trainability.training.restoring import as_kind, check_like
from trainability.training.sharding import gathered, load_optimizer

# Each entry's update depends on that entry alone, so a stacked tensor is updated as its slices would be.
ELEMENTWISE = {"adam", "adamw", "sgd"}


class KeptUpdates(TypedDict):
    """The kinds of what `Updates.state` returns."""

    optimizers: list[dict[str, Any]]
    schedulers: list[dict[str, Any] | None]


@dataclass
class _Part:
    """Members that one optimizer updates, and their parameters, in the order of the stacked ones."""

    members: range
    parameters: list[nn.Parameter]
    optimizer: Optimizer
    scheduler: LRScheduler | None


class Updates:
    """Updates the members of a stack, each with its own learning rate and weight decay, and its own state.

    Neighbors of the same settings share an optimizer over slices of the stacked tensors, which is several times faster
    than one for each.

    Args:
        stack: on its device, in its precision.
        alpha: LBE's targets ``(E, L)``, if there are any.
        members: their learning rates and weight decays; alpha has none of the latter.
        config: the optimizer, its schedule, and the metric by which a plateau is seen.
        steps_per_epoch: of the training.
    """

    def __init__(
        self,
        stack: Stack,
        alpha: nn.Parameter | None,
        members: Sequence[Member],
        config: TrainingConfig,
        steps_per_epoch: int,
    ) -> None:
        self._stacked = [*stack.module.parameters(), *([alpha] if alpha is not None else [])]
        self._config = config
        self._elementwise = config.optimizer.lower() in ELEMENTWISE
        self._sliced = self._elementwise and config.schedule.kind != "plateau"
        settings = [(member.lr, member.weight_decay) for member in members]
        self._frozen: dict[int, list[Tensor]] = {}
        self._rates_there: list[Tensor] = []  # on the device, for a recording
        self._rates_set: list[float] = []
        self._parts: list[_Part] = []
        for part in _neighbors(settings) if self._sliced else [range(e, e + 1) for e in range(len(stack))]:
            own = self._of(part, stack, alpha)
            rate, decay = settings[part.start]
            weights, targets = (own[:-1], own[-1:]) if alpha is not None else (own, [])
            optimizer = build(config.optimizer, weights, targets, lr=rate, weight_decay=decay, options=config.options)
            scheduler = config.schedule.of(optimizer, config.epochs, steps_per_epoch, config.task.metric.direction)
            self._parts.append(_Part(part, own, optimizer, scheduler))

    def _of(self, members: range, stack: Stack, alpha: nn.Parameter | None) -> list[nn.Parameter]:
        """The parameters of some members: the stacked ones, slices of them, or one member's own."""
        if len(members) == len(stack):
            return self._stacked
        if self._sliced:
            return [nn.Parameter(p.data[members.start : members.stop], p.requires_grad) for p in self._stacked]
        own = [owners[members.start] for _, owners in stack.owners]
        return [*own, nn.Parameter(alpha.data[members.start])] if alpha is not None else own

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those of all parts."""
        return [part.optimizer for part in self._parts]

    @property
    def sizes(self) -> list[int]:
        """Number of members that each optimizer updates."""
        return [len(part.members) for part in self._parts]

    @property
    def recordable(self) -> bool:
        """True if the updates can be recorded as a graph of the device, as those of torch's fused optimizers can.

        They count their steps on the device; others count in Python, or may.
        """
        return all(o.defaults.get("fused") for o in self.optimizers)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Around a recording: the optimizers read their learning rates from tensors, which `set_rates` fills."""
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
        for parameter in self._stacked:
            parameter.grad = None

    def freeze(self, member: int) -> None:
        """Keep a member as it is from now on."""
        if len(self._part_of(member).members) > 1:
            self._frozen[member] = [p.data[member].clone() for p in self._stacked]

    def apply(self, alive: Sequence[bool]) -> None:
        """Update the members that are alive from the gradients of the stacked parameters."""
        if len(self._parts) > 1:
            self._hand_gradients()
        for part in self._parts:
            if any(alive[e] for e in part.members):
                part.optimizer.step()
        # The others of the part were updated by the same operation as before, so that they do not notice, and this
        # one is put back.
        for member, values in self._frozen.items():
            for stacked, value in zip(self._stacked, values, strict=True):
                stacked.data[member].copy_(value)

    def advance(self, alive: Sequence[bool]) -> None:
        """Go on by one step in the schedules."""
        for part in self._parts:
            if part.scheduler is None or isinstance(part.scheduler, ReduceLROnPlateau):
                continue
            if any(alive[e] for e in part.members):
                part.scheduler.step()

    def plateau(self, member: int, score: float) -> None:
        """Give a member's schedule its validation score at the end of an epoch."""
        scheduler = self._part_of(member).scheduler
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(score)

    def state(self) -> dict[str, Any]:
        """Everything `load` needs."""
        return {
            "optimizers": [gathered(part.optimizer.state_dict()) for part in self._parts],
            "schedulers": [part.scheduler.state_dict() if part.scheduler else None for part in self._parts],
        }

    def check(self, state: KeptUpdates) -> None:
        """Raise ArgumentError for a state that is not one of these optimizers and schedules.

        What optimizers other than Adam, AdamW and SGD keep for a parameter is of their own shapes, not looked at here.
        """
        own = self.state()
        check_like(state["schedulers"], own["schedulers"], "schedulers")
        if len(state["optimizers"]) != len(self._parts):
            raise ArgumentError(
                f"the state is of {len(state['optimizers'])} optimizers, not {len(self._parts)}", code="state-damaged"
            )
        for part, found, mine in zip(self._parts, state["optimizers"], own["optimizers"], strict=True):
            as_kind(found.get("state"), dict[int, dict[str, Any]], "optimizers.state")
            as_kind(found.get("param_groups"), list[dict[str, Any]], "optimizers.param_groups")
            # Some add entries of their own at the first step.
            pairs = zip(found["param_groups"], mine["param_groups"], strict=False)
            known = [{key: value for key, value in group.items() if key in like} for group, like in pairs]
            check_like(known, mine["param_groups"], "optimizers.param_groups")
            parameters = [p for group in part.optimizer.param_groups for p in group["params"]]
            numbers = [number for group in found["param_groups"] for number in group["params"]]
            if numbers != list(range(len(parameters))) or not found["state"].keys() <= set(numbers):
                raise ArgumentError("the saved state of an optimizer is for other parameters", code="state-damaged")
            for number, values in found["state"].items() if self._elementwise else ():
                check_like(values, self._kept_for(parameters[number]), f"optimizers.state.{number}")

    def _kept_for(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """State of an optimizer for a parameter after its first step: numbers, and tensors of its shape."""
        one = nn.Parameter(torch.zeros(2))
        one.grad = torch.zeros(2)
        optimizer = build(self._config.optimizer, [one], [], lr=1.0, options=self._config.options)
        optimizer.step()
        like = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        return {name: like if value.dim() else value for name, value in optimizer.state[one].items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned.

        Raises:
            ArgumentError: an optimizer does not take it.
        """
        for part, optimizer, scheduler in zip(self._parts, state["optimizers"], state["schedulers"], strict=True):
            try:
                load_optimizer(part.optimizer, optimizer)
            except Exception as error:  # each of them reads it in its own way
                kind = type(part.optimizer).__name__
                raise ArgumentError(
                    f"the saved state does not fit the optimizer {kind}: {error}", code="state-damaged"
                ) from None
            if part.scheduler is not None:
                part.scheduler.load_state_dict(scheduler)

    def _hand_gradients(self) -> None:
        """Hand the gradients of the stacked parameters to those of the parts, as views."""
        sizes = self.sizes
        for number, stacked in enumerate(self._stacked):
            if stacked.grad is None:
                gradients: Sequence[Tensor | None] = [None] * len(self._parts)
            else:
                gradients = stacked.grad.split(sizes) if self._sliced else stacked.grad.unbind(0)
            for part, gradient in zip(self._parts, gradients, strict=True):
                part.parameters[number].grad = gradient

    def _part_of(self, member: int) -> _Part:
        return next(part for part in self._parts if member in part.members)

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]


def _neighbors(settings: Sequence[tuple[float, float]]) -> list[range]:
    """Runs of members next to one another whose settings are the same."""
    runs = groupby(range(len(settings)), key=lambda e: settings[e])
    found = [list(members) for _, members in runs]
    return [range(members[0], members[-1] + 1) for members in found]
