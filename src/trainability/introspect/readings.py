"""Reading the activations of one call of a model."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from trainability.introspect.hooks import Place, Taps
from trainability.introspect.run import call, observing

T = TypeVar("T")


@dataclass(frozen=True)
class Reading(Generic[T]):
    """The value made of the activation at one place, the ``call``-th time that the model came by."""

    name: str
    call: int
    value: T


class OneCall:
    """The base of readers for one call of a model, which carry nothing over and wait for no recomputation."""

    def begin(self, model: nn.Module) -> None:
        """Do nothing, as the call begins."""

    def recompute(self, path: str, activation: Tensor | None) -> None:
        """Do nothing, as the activation was read in the forward pass."""


def read_activations(
    model: nn.Module, inputs: Any, places: Iterable[str | Place], reduce: Callable[[Tensor], T | None]
) -> list[Reading[T]]:
    """Run a model once, unobserved and without gradients, and reduce the activations that it comes by.

    Args:
        model: any module, in the mode that it is in.
        inputs: a batch, as in `trainability.measure`.
        places: paths of modules, or other places.
        reduce: what to make of an activation; None leaves it out. One that keeps it has to copy it, since the model
            may change it in place.

    Returns:
        The readings in order of execution. A place without a floating-point tensor is left out.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    >>> read_activations(model, torch.randn(2, 4), ["1"], lambda a: tuple(a.shape))
    [Reading(name='1', call=1, value=(2, 8))]
    """
    reader = _Reader(reduce)
    with observing(model), torch.no_grad(), Taps(model, places, reader):
        call(model, inputs)
    return reader.readings


class _Reader(OneCall, Generic[T]):
    def __init__(self, reduce: Callable[[Tensor], T | None]) -> None:
        self.reduce = reduce
        self.readings: list[Reading[T]] = []

    def read(self, path: str, call: int, activation: Tensor | None) -> None:
        value = None if activation is None else self.reduce(activation)
        if value is not None:
            self.readings.append(Reading(path, call, value))
