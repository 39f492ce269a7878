"""What is measured at every point of a plane: the loss, and other quantities of outputs and targets."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from trainability.data.dataset import Part, Split
from trainability.errors import ArgumentError, ArgumentTypeError
from trainability.introspect.hooks import tensors_in
from trainability.introspect.outputs import in_dtype

Score = Callable[[Any, Any], Any]


_OF_TERM = ("L_BE", "total")


class Batches:
    """The samples as often as they are asked for, in the same batches: on a model's device, in its precision.

    Args:
        part: of data.
        size: samples in a batch, where the part lets one choose.
        like: a parameter of the model.
        room: bytes that may be kept of samples that are read or prepared anew otherwise.
    """

    def __init__(self, part: Part, size: int, like: Tensor, room: int) -> None:
        self._part, self._size, self._dtype = part.to(like.device), size, like.dtype
        self._kept: list[Split] | None = None if isinstance(part, Split) else self._keep(room)

    def __iter__(self) -> Iterator[Split]:
        if self._kept is not None:
            yield from self._kept
            return
        for chunk in self._part.chunks(self._size):
            yield Split(*(in_dtype(nest, self._dtype) for nest in (chunk.inputs, chunk.targets)))

    def _keep(self, room: int) -> list[Split] | None:
        """All batches, if there is room for them."""
        self._kept, kept = None, []
        for batch in self:
            room -= sum(
                t.numel() * t.element_size() for nest in (batch.inputs, batch.targets) for t in tensors_in(nest)
            )
            if room < 0:
                return None
            kept.append(batch)
        return kept


class Scores:
    """The loss and other functions of outputs and targets, as means over samples.

    Args:
        loss_fn: of outputs and targets to one number, the mean over the batch, or one for each sample.
        others: the same by name.
        with_term: whether there are also L_BE and the total, loss + |loss| L_BE.
    """

    def __init__(self, loss_fn: Score, others: Mapping[str, Score] | None, with_term: bool = False) -> None:
        if others is not None and not isinstance(others, Mapping):
            raise ArgumentTypeError(
                f"quantities is a mapping of names to functions, not {type(others).__name__}", code="wrong-type"
            )
        own = ("loss", *(_OF_TERM if with_term else ()))
        if taken := sorted(set(own) & set(others or ())):
            raise ArgumentError(f"quantities: {taken[0]!r} is measured anyway; take another name", code="duplicate")
        self._functions = {"loss": loss_fn, **(others or {})}
        for name, function in self._functions.items():
            if not isinstance(name, str):
                raise ArgumentTypeError(f"quantities: a name is a word, not {name!r}", code="wrong-type")
            if not callable(function):
                what = "loss_fn" if name == "loss" else f"quantities: {name}"
                raise ArgumentTypeError(
                    f"{what} is a function of outputs and targets, not {function!r}", code="wrong-type"
                )
        self.term: Callable[[], Tensor] | None = None  # L_BE of the latest pass, while it is read
        self.names = (*self._functions, *(_OF_TERM if with_term else ()))

    def sums(self, outputs: Any, batch: Split) -> Tensor:
        """The sums over the samples of a batch, one for each name, in float64."""
        each = [mean_of(name, f(outputs, batch.targets), len(batch)) for name, f in self._functions.items()]
        means = [mean.detach().double() for mean in each]
        if self.term is not None:
            term = self.term().to(means[0])
            means += [term, means[0] + means[0].abs() * term]
        return torch.stack(means) * len(batch)

    def mean_loss(self, outputs: Any, batch: Split) -> Tensor:
        """The mean loss of a batch, with its graph."""
        return mean_of("loss", self._functions["loss"](outputs, batch.targets), len(batch))


def mean_of(name: str, value: Any, count: int) -> Tensor:
    """The mean that one number is, or the mean of one number for each sample.

    Raises:
        ArgumentError: it is neither.
    """
    if isinstance(value, int | float):
        return torch.tensor(float(value), dtype=torch.float64)
    if isinstance(value, Tensor) and not value.is_complex():
        if value.numel() == 1:
            return value.reshape(())
        if value.dim() and len(value) == count:
            return (value if value.is_floating_point() else value.double()).mean()
    what = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise ArgumentError(
        f"{name} is {what} for {count} samples; it should be one number, or one for each sample",
        code="loss-not-a-number",
    )
