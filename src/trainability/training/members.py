"""Modules whose settings differ between the members of a stack, or that draw random numbers for each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainability.errors import UnsupportedModelError

_DROPOUTS: dict[type[nn.Module], int] = {nn.Dropout: 0, nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}


class Noise:
    """Where the dropouts of a stack draw: one generator per member, or that of the member that runs alone now."""

    def __init__(self) -> None:
        self.generators: list[torch.Generator] = []
        self.alone: int | None = None


class StackedDropout(nn.Module):
    """Dropout with a generator and a probability for every member; the masks are those of `torch.nn.Dropout`.

    Args:
        probabilities: of setting an entry to zero, one per member.
        trailing: how many trailing dimensions share a mask entry (2 for maps whose channels are dropped whole).
    """

    def __init__(self, probabilities: Sequence[float], trailing: int, noise: Noise) -> None:
        super().__init__()
        self.keep = [1 - p for p in probabilities]
        self.trailing = trailing
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        """Map one member's ``(B, ...)`` to the same shape."""
        return x * _Mask.apply(x, self) if self.training else x  # type: ignore[no-untyped-call]

    def draw(self, member: int, like: Tensor) -> Tensor:
        """Zero, or one over the keep probability, for every entry that is dropped by itself."""
        shape = like.shape[: like.dim() - self.trailing] + (1,) * self.trailing
        keep = self.keep[member]
        mask = torch.empty(shape, dtype=like.dtype if self.trailing else torch.bool, device=like.device)
        mask.bernoulli_(keep, generator=self.noise.generators[member])
        return mask.to(like.dtype).mul_(1 / keep if keep else 0.0)


class _Mask(torch.autograd.Function):
    """The mask for one member or, mapped over the members, for all."""

    @staticmethod
    def forward(x: Tensor, dropout: StackedDropout) -> Tensor:
        return dropout.draw(dropout.noise.alone or 0, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None

    @staticmethod
    def vmap(_info: Any, in_dims: tuple[int | None, None], x: Tensor, dropout: StackedDropout) -> tuple[Tensor, int]:
        if in_dims[0] is None:
            masks = [dropout.draw(e, x) for e in range(len(dropout.keep))]
        else:
            masks = [dropout.draw(e, one) for e, one in enumerate(x.movedim(in_dims[0], 0))]
        return torch.stack(masks), 0


class StackedLeakyReLU(nn.Module):
    """Leaky ReLU with a slope for every member."""

    negative_slope: Tensor

    def __init__(self, slopes: Sequence[float], like: Tensor) -> None:
        super().__init__()
        self.register_buffer("negative_slope", torch.tensor(slopes, dtype=torch.float64, device=like.device), False)

    def forward(self, x: Tensor) -> Tensor:
        """Map one member's ``(B, ...)`` to the same shape; the slope is a number there."""
        return torch.where(x >= 0, x, x * self.negative_slope.to(x.dtype))


def stand_in(path: str, modules: Sequence[Any], noise: Noise, like: Tensor) -> nn.Module | None:
    """A module for all members in place of each one's own, or None where theirs serves for all.

    Raises:
        UnsupportedModelError: they differ in a setting for which there is no such module.
    """
    first = modules[0]
    if type(first) in _DROPOUTS:
        return StackedDropout([m.p for m in modules], _DROPOUTS[type(first)], noise)
    settings = {m.extra_repr() for m in modules}
    if len(settings) == 1:
        return None
    if type(first) is nn.LeakyReLU and not any(m.inplace for m in modules):
        return StackedLeakyReLU([m.negative_slope for m in modules], like)
    raise UnsupportedModelError(
        path,
        f"the members of a stack differ here ({'; '.join(sorted(settings)[:3])}); only the probability of a "
        "dropout and the slope of a leaky ReLU may differ, so put the others in stacks of their own",
    )


def is_drawing(module: nn.Module) -> bool:
    """Whether a module draws random numbers by itself in training, and is not one of those that `stand_in` knows."""
    return isinstance(module, nn.modules.dropout._DropoutNd | nn.RReLU) and type(module) not in _DROPOUTS
