"""Small models, each with one trait that makes reading activations hard."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def mlp(depth: int = 3, width: int = 8, act: type[nn.Module] = nn.ReLU, **options: object) -> nn.Sequential:
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), act(**options))]
    return nn.Sequential(*layers, nn.Linear(width, 4))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.second(F.relu(self.first(x)))))


class Untraceable(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > -1e9 else x


class Reused(nn.Module):
    """One ReLU module, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out, self.relu = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.relu(self.b(self.relu(self.a(x)))))


class Overwritten(nn.Module):
    """The output of a linear layer, changed in place by what follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = self.b(F.relu_(h))
        h *= 2
        return self.out(F.relu_(h))


class Residual(nn.Module):
    """The same gradient tensor reaches a branch and its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.relu = nn.ReLU()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.a(x))
        h = h + self.relu2(self.b(h))
        return self.out(h)


@dataclass
class Answer:
    label: str
    hidden: Tensor


class Wrap(nn.Module):
    """Returns its ReLU's output within a structure."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind = nn.Linear(8, 8), kind

    def forward(self, x: Tensor) -> object:
        h = F.relu(self.linear(x))
        return {
            "tuple": (torch.arange(3), h),
            "dict": {"count": 3, "hidden": h},
            "dataclass": Answer("x", h),
            "integer": h.argmax(1),
            "empty": h[:, :0],
            "none": None,
        }[self.kind]


class Structured(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.wrap, self.out = Wrap(kind), nn.Linear(8, 4)
        self.relu = nn.ReLU()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        answer = self.wrap(x)
        if self.kind in ("integer", "empty", "none"):
            h = x
        else:
            h = {"tuple": lambda a: a[1], "dict": lambda a: a["hidden"], "dataclass": lambda a: a.hidden}[self.kind](
                answer
            )
        return self.out(self.relu(h))


class Checkpointed(nn.Module):
    def __init__(self, width: int, on: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()) for _ in range(3)
        )
        self.out, self.on = nn.Linear(width, 4), on

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.on else block(x)
        return self.out(x)
