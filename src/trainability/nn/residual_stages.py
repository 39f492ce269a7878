"""Blocks of residual networks, with or without shortcuts, normalization and independent-component layers."""

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from trainability.nn.ic import ICLayer
from trainability.nn.names import Scale
from trainability.nn.nonlinearity import nonlinearity_of
from trainability.nn.shortcut import shortcut

_Layers = list[tuple[str, nn.Module]]


class Block(nn.Module):
    """A residual block: ``before``, which both ways share, ``branch``, ``shortcut``, ``add``, ``after``."""

    def __init__(
        self, before: nn.Module, branch: nn.Module, shortcut: nn.Module | None, after: nn.Module, add: nn.Module | None
    ) -> None:
        super().__init__()
        self.before = before
        self.branch = branch
        self.shortcut = shortcut
        self.add = add
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels, H, W)`` to the same with other channels, height and width."""
        x = self.before(x)
        result = self.branch(x)
        if self.shortcut is not None and self.add is not None:
            result = self.add(self.shortcut(x), result)
        out: Tensor = self.after(result)
        return out


@dataclass(frozen=True)
class Blocks:
    """The maker of the blocks of one network, of which there are ``count``."""

    nonlinearity: str
    shortcuts: bool
    norm: bool
    preactivation: bool
    bottleneck: bool
    unit: str
    keep: float
    scale: Scale
    count: int

    @property
    def order(self) -> list[str]:
        """The parts that a unit is made of, in order."""
        plain = "norm-relu-conv" if self.preactivation else "conv-norm-relu"
        return (plain if self.unit == "baseline" else self.unit).split("-")

    def around(self, parts: list[str], prefix: str, channels: int) -> _Layers:
        """Layers of some parts of a unit that keep the number of channels."""
        made: _Layers = []
        for part in parts:
            if part == "ic":
                made.append((f"{prefix}ic", ICLayer(channels, self.keep, kind="2d", place="of a residual unit")))
            elif part == "relu":
                made.append((f"{prefix}{self.nonlinearity}", nonlinearity_of(self.nonlinearity)))
            elif self.norm:
                made.append((f"{prefix}norm", nn.BatchNorm2d(channels)))
        return made

    def before_conv(self, prefix: str, channels: int) -> _Layers:
        """Layers that stand before the convolution of a unit."""
        return self.around(self.order[: self.order.index("conv")], prefix, channels)

    def after_conv(self, prefix: str, channels: int) -> _Layers:
        """Layers that stand after the convolution of a unit."""
        return self.around(self.order[self.order.index("conv") + 1 :], prefix, channels)

    def conv(self, into: int, out: int, size: int, stride: int = 1) -> nn.Conv2d:
        """A convolution that keeps height and width, or divides them by the stride."""
        return nn.Conv2d(into, out, size, stride, size // 2, bias=not self.norm)

    def block(self, into: int, out: int, stride: int) -> Block:
        """A block from so many channels to so many others."""
        inner = out // 4
        plain = [(into, out, 3, stride), (out, out, 3, 1)]
        convs = [(into, inner, 1, 1), (inner, inner, 3, stride), (inner, out, 1, 1)] if self.bottleneck else plain
        before: _Layers = []
        branch: _Layers = []
        after: _Layers = []
        for number, (a, b, size, step) in enumerate(convs, 1):
            branch += self.before_conv(f"{number}_", a)
            if number == 1 and self.preactivation and (stride > 1 or into != out):
                # A projection takes what the first nonlinearity gives; an identity takes the input itself.
                before, branch = branch, []
            branch.append((f"conv{number}", self.conv(a, b, size, step)))
            branch += self.after_conv(f"{number}_", b)
        if self.unit == "baseline" and not self.preactivation:
            after = [(self.nonlinearity, branch.pop()[1])]
        way = self._way(into, out, stride) if self.shortcuts else None
        add = shortcut(self.scale, self.count) if self.shortcuts else None
        return Block(_sequence(before), _sequence(branch), way, _sequence(after), add)

    def _way(self, into: int, out: int, stride: int) -> nn.Module:
        """A shortcut: the identity, or a projection that normalizes where a unit does."""
        if stride == 1 and into == out:
            return nn.Identity()
        parts = [part for part in self.order if part != "relu" and not (self.preactivation and part == "norm")]
        at = parts.index("conv")
        conv = ("conv", self.conv(into, out, 1, stride))
        return _sequence([*self.around(parts[:at], "", into), conv, *self.around(parts[at + 1 :], "", out)])


def _sequence(layers: _Layers) -> nn.Module:
    return nn.Sequential(OrderedDict(layers)) if layers else nn.Identity()
