"""Blocks of residual networks, with or without shortcuts, normalization and independent-component layers."""

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from trainability.nn.ic import ICLayer
from trainability.nn.names import Scale
from trainability.nn.nonlinearity import nonlinearity_of
from trainability.nn.shortcut import shortcut


class Block(nn.Module):
    """A residual block: ``before`` what both ways share, ``branch``, ``shortcut``, and ``after`` their sum."""

    def __init__(
        self,
        before: nn.Module,
        branch: nn.Module,
        shortcut: nn.Module | None,
        after: nn.Module,
        add: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.before = before
        self.branch = branch
        self.shortcut = shortcut
        self.add = add if shortcut is not None else None
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
    """Makes the blocks of one network, of which there are ``count``."""

    nonlinearity: str
    shortcuts: bool
    norm: bool
    preactivation: bool
    bottleneck: bool
    unit: str
    keep: float
    scale: Scale
    count: int

    def after(self, prefix: str, channels: int) -> list[tuple[str, nn.Module]]:
        """Normalization and nonlinearity."""
        norm = [(f"{prefix}norm", nn.BatchNorm2d(channels))] if self.norm else []
        return [*norm, (f"{prefix}{self.nonlinearity}", nonlinearity_of(self.nonlinearity))]

    def conv(self, into: int, out: int, size: int, stride: int = 1) -> nn.Conv2d:
        """A convolution that keeps height and width, or divides them by the stride."""
        return nn.Conv2d(into, out, size, stride, size // 2, bias=not self.norm)

    def block(self, into: int, out: int, stride: int) -> Block:
        """A block from so many channels to so many others."""
        inner = out // 4 if self.bottleneck else out
        sizes = [(into, inner, 1, 1), (inner, inner, 3, stride), (inner, out, 1, 1)]
        convs = sizes if self.bottleneck else [(into, out, 3, stride), (out, out, 3, 1)]
        if self.unit != "baseline":
            return self.unit_block(convs, into, out, stride)
        changes = stride > 1 or into != out
        branch: list[tuple[str, nn.Module]] = []
        before: list[tuple[str, nn.Module]] = []
        after: list[tuple[str, nn.Module]] = []
        for number, (a, b, size, step) in enumerate(convs, 1):
            conv = (f"conv{number}", self.conv(a, b, size, step))
            if self.preactivation:
                # A projection takes what the first nonlinearity gives; an identity takes the input itself.
                (before if number == 1 and changes else branch).extend(self.after(f"{number}_", a))
                branch.append(conv)
            else:
                branch.append(conv)
                last = number == len(convs)
                norm = [(f"{number}_norm", nn.BatchNorm2d(b))] if self.norm else []
                branch += norm if last else self.after(f"{number}_", b)
                after = [(self.nonlinearity, nonlinearity_of(self.nonlinearity))] if last else []
        way = self._way(into, out, stride)
        return Block(_sequence(before), _sequence(branch), way, _sequence(after), shortcut(self.scale, self.count))

    def unit_block(self, convs: list[tuple[int, int, int, int]], into: int, out: int, stride: int) -> Block:
        """A block of one of the units with IC layers."""
        branch: list[tuple[str, nn.Module]] = []
        for number, (a, b, size, step) in enumerate(convs, 1):
            parts: dict[str, tuple[str, nn.Module]] = {
                "relu": (f"{number}_{self.nonlinearity}", nonlinearity_of(self.nonlinearity)),
                "ic": (f"{number}_ic", self.ic(b if self.unit == "conv-relu-ic" else a)),
                "conv": (f"conv{number}", self.conv(a, b, size, step)),
            }
            branch += [parts[name] for name in self.unit.split("-")]
        way: nn.Module | None = nn.Identity() if self.shortcuts else None
        if self.shortcuts and (stride > 1 or into != out):
            conv = ("conv", self.conv(into, out, 1, stride))
            last = self.unit == "conv-relu-ic"
            way = _sequence([conv, ("ic", self.ic(out))] if last else [("ic", self.ic(into)), conv])
        return Block(nn.Identity(), _sequence(branch), way, nn.Identity(), shortcut(self.scale, self.count))

    def after_stem(self, channels: int) -> list[tuple[str, nn.Module]]:
        """What comes between the stem and the first of the units with IC layers."""
        parts: dict[str, tuple[str, nn.Module]] = {
            "relu": (f"stem_{self.nonlinearity}", nonlinearity_of(self.nonlinearity)),
            "ic": ("stem_ic", self.ic(channels)),
        }
        return [parts[name] for name in self.unit.partition("conv")[2].split("-") if name]

    def ic(self, features: int) -> ICLayer:
        """An IC layer of this network."""
        return ICLayer(features, self.keep, kind="2d", place="of a residual unit")

    def _way(self, into: int, out: int, stride: int) -> nn.Module | None:
        if not self.shortcuts:
            return None
        if stride == 1 and into == out:
            return nn.Identity()
        projection: list[tuple[str, nn.Module]] = [("conv", self.conv(into, out, 1, stride))]
        if self.norm and not self.preactivation:
            projection.append(("norm", nn.BatchNorm2d(out)))
        return _sequence(projection)


def _sequence(layers: list[tuple[str, nn.Module]]) -> nn.Module:
    return nn.Sequential(OrderedDict(layers)) if layers else nn.Identity()
