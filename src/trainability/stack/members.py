"""Modules whose settings differ between the members of a stack, or that draw random numbers for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainability.errors import UnsupportedModelError

_DROPOUTS: dict[type[nn.Module], int] = {nn.Dropout: 0, nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}


Way = Literal["alone", "direct", "vmap", "loop", "streams"]


@dataclass
class Turn:
    """The way in which the members run now, whose turn it is where each runs by itself, and from what they draw."""

    way: Way
    member: int = 0
    generators: Sequence[torch.Generator] = ()
    seeds: Sequence[int] = ()  # of torch's own generator, for a member that runs by itself
    by_functions: bool = True  # whether such a member draws from torch's own, since the model calls F.dropout or so


class StackedDropout(nn.Module):
    """Dropout with a generator and a probability for every member; the masks are those of `torch.nn.Dropout`.

    Args:
        probabilities: of setting an entry to zero, one per member.
        trailing: how many trailing dimensions share a mask entry (2 for maps whose channels are dropped whole).
    """

    def __init__(self, probabilities: Sequence[float], trailing: int, turn: Turn) -> None:
        super().__init__()
        self.probabilities = list(probabilities)
        self.keep = [1 - p for p in probabilities]
        self.trailing = trailing
        self.turn = turn

    @property
    def p(self) -> float:
        """The probability of the member whose turn it is, for a model that hands it to a function."""
        if self.turn.way in ("vmap", "direct") and len(set(self.probabilities)) > 1:
            raise UnsupportedModelError(
                "",
                "it reads a dropout's probability, in which members differ; take members: loop",
                code="not-stackable",
            )
        return self.probabilities[self.turn.member]

    def forward(self, x: Tensor) -> Tensor:
        """Map one member's ``(B, ...)``, or all members' ``(E, B, ...)``, to the same shape."""
        if not self.training or min(self.keep) == 1:
            return x
        if self.turn.way == "direct":
            return x * self.draw_all(x)
        mask: Tensor = _Mask.apply(x, self)
        return x * mask

    def draw_all(self, like: Tensor) -> Tensor:
        """The masks for all members, ``(E, B, ...)``."""
        return torch.stack([self.draw(e, one) for e, one in enumerate(like)])

    def draw(self, member: int, like: Tensor) -> Tensor:
        """Zero, or one over the keep probability, for every entry that is dropped by itself."""
        shape = like.shape[: like.dim() - self.trailing] + (1,) * self.trailing
        keep = self.keep[member]
        if keep in (0, 1):  # for which torch draws nothing
            return torch.full(shape, float(keep), dtype=like.dtype, device=like.device)
        mask = torch.empty(shape, dtype=like.dtype if self.trailing else torch.bool, device=like.device)
        own = self.turn.way not in ("loop", "streams") or not self.turn.by_functions
        mask.bernoulli_(keep, generator=self.turn.generators[member] if own else None)
        return mask.to(like.dtype).mul_(1 / keep)


def silence_(module: nn.Module) -> None:
    """Let the dropouts in a module, a stack's or a member's, drop nothing."""
    for own in module.modules():
        if isinstance(own, StackedDropout):
            own.probabilities, own.keep = [0.0] * len(own.keep), [1.0] * len(own.keep)
        elif type(own) in _DROPOUTS:
            own.p = 0.0  # type: ignore[assignment]


class _Mask(torch.autograd.Function):
    """The mask for one member or, mapped over the members, for all."""

    @staticmethod
    def forward(x: Tensor, dropout: StackedDropout) -> Tensor:
        return dropout.draw(dropout.turn.member, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None

    @staticmethod
    def vmap(_info: Any, in_dims: tuple[int | None, None], x: Tensor, dropout: StackedDropout) -> tuple[Tensor, int]:
        stacked = x.expand(len(dropout.keep), *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
        return dropout.draw_all(stacked), 0


class StackedLeakyReLU(nn.Module):
    """Leaky ReLU with a slope for every member."""

    negative_slope: Tensor

    def __init__(self, slopes: Sequence[float], like: Tensor, turn: Turn) -> None:
        super().__init__()
        self.turn = turn
        self.register_buffer("negative_slope", torch.tensor(slopes, dtype=torch.float64, device=like.device), False)

    def forward(self, x: Tensor) -> Tensor:
        """Map one member's ``(B, ...)``, or all members' ``(E, B, ...)``, to the same shape."""
        slope = self.negative_slope.to(x.dtype)
        if self.turn.way == "direct":
            slope = slope.view(-1, *[1] * (x.dim() - 1))
        return torch.where(x >= 0, x, x * slope)


class PaddedEmbedding(nn.Embedding):
    """An embedding whose row for the padding has no gradient when it is mapped either, where torch's own has one."""

    padding_idx: int

    def forward(self, input: Tensor) -> Tensor:
        """Look up ``(B, ...)``, which gives ``(B, ..., n)``."""
        rows = F.embedding(input, self.weight)
        return torch.where((input == self.padding_idx).unsqueeze(-1), rows.detach(), rows)


def pad_(embedding: nn.Embedding) -> bool:
    """Let an embedding heed its padding where it is mapped; False for one with an option that mapping leaves out."""
    if embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse:
        return False
    if type(embedding) is nn.Embedding and embedding.padding_idx is not None:
        embedding.__class__ = PaddedEmbedding
    return embedding.padding_idx is None or isinstance(embedding, PaddedEmbedding)


def stand_in(path: str, modules: Sequence[Any], turn: Turn, like: Tensor) -> nn.Module | None:
    """A module for all members in place of each one's own, or None where theirs serves for all.

    Raises:
        UnsupportedModelError: they differ in a setting for which there is no such module.
    """
    first = modules[0]
    if type(first) in _DROPOUTS:
        return StackedDropout([m.p for m in modules], _DROPOUTS[type(first)], turn)
    settings = [_plain(m) for m in modules]
    differ = [name for name in settings[0] if len({repr(own.get(name)) for own in settings}) > 1]
    if not differ:
        return None
    if type(first) is nn.LeakyReLU and not any(m.inplace for m in modules):
        return StackedLeakyReLU([m.negative_slope for m in modules], like, turn)
    shown = ", ".join(repr(own.get(differ[0])) for own in settings[:3])
    raise UnsupportedModelError(
        path,
        f"the members of a stack differ in {differ[0]} ({shown}); only the probability of a dropout and the slope of a "
        "leaky ReLU may differ, so put the others in stacks of their own",
        code="not-alike",
    )


def _plain(module: nn.Module) -> dict[str, Any]:
    """A module's own settings: its attributes that are numbers, words, or collections of them."""
    return {k: v for k, v in vars(module).items() if _is_plain(v) and not k.startswith("_") and k != "training"}


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, int | float | str | bool | None)
