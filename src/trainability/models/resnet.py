"""Residual networks of the CIFAR and the ImageNet family, whose shortcuts and normalisation can be left out."""

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from trainability.models.parts import Add, activation, check_sizes

_IMAGENET: dict[int, tuple[int, ...]] = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def resnet(
    depth: int,
    classes: int,
    *,
    family: Literal["cifar", "imagenet"] = "cifar",
    in_channels: int = 3,
    width: int | None = None,
    nonlinearity: str = "relu",
    shortcut: bool = True,
    norm: bool = True,
    preactivation: bool = False,
) -> nn.Sequential:
    """Build a residual network, or what is left of it without shortcuts or normalisation.

    The CIFAR family has three stages of blocks of two 3 × 3 convolutions, (depth - 2) / 6 per stage, from 16 channels
    on; the ImageNet family four stages of bottlenecks of 1 × 1, 3 × 3 and 1 × 1 convolutions, from 64 channels on.
    Where the size changes the shortcut is a 1 × 1 convolution. Weights are PyTorch's default.

    Args:
        depth: weight layers, shortcuts apart: 6n + 2 (26, 74, 152, ...), or 50, 101 or 152.
        classes: outputs.
        family: ``"cifar"`` or ``"imagenet"``.
        in_channels: of the inputs.
        width: channels of the first stage, 16 or 64.
        nonlinearity: by name.
        shortcut: whether there are shortcuts.
        norm: whether there is BatchNorm; without it the convolutions have biases.
        preactivation: normalisation and nonlinearity before each convolution (version 2); otherwise after it, the last
            nonlinearity of a block being after the sum (version 1).

    Raises:
        ValueError: a depth that the family does not have, an unknown nonlinearity or family.

    Reference: He et al. (2016), "Deep residual learning" and "Identity mappings".

    >>> sum(p.numel() for p in resnet(26, classes=10).parameters())
    369690
    """
    if family == "cifar":
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"the CIFAR family has depths 6n + 2, such as 26, 74 or 152 (it is {depth})")
        stages: tuple[int, ...] = ((depth - 2) // 6,) * 3
        base, bottleneck = width or 16, False
    elif family == "imagenet":
        if depth not in _IMAGENET:
            raise ValueError(f"the ImageNet family has depths {', '.join(map(str, _IMAGENET))} (it is {depth})")
        stages = _IMAGENET[depth]
        base, bottleneck = width or 64, True
    else:
        raise ValueError(f"family is 'cifar' or 'imagenet', not {family!r}")
    check_sizes(classes=classes, in_channels=in_channels, width=base)
    make = _Blocks(nonlinearity, shortcut, norm, preactivation, bottleneck)
    layers: list[tuple[str, nn.Module]] = []
    size, stride = (3, 1) if family == "cifar" else (7, 2)
    layers.append(("stem", nn.Conv2d(in_channels, base, size, stride, size // 2, bias=not norm)))
    if not preactivation:
        layers += make.after("stem_", base)
    if family == "imagenet":
        layers.append(("pool", nn.MaxPool2d(3, 2, 1)))
    channels = base
    for stage, count in enumerate(stages):
        blocks = []
        for number in range(count):
            out = base * 2**stage * (4 if bottleneck else 1)
            blocks.append(make.block(channels, out, 2 if stage and not number else 1))
            channels = out
        layers.append((f"stage{stage + 1}", nn.Sequential(*blocks)))
    if preactivation:
        layers += make.after("last_", channels)
    layers += [
        ("mean", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("classifier", nn.Linear(channels, classes)),
    ]
    return nn.Sequential(OrderedDict(layers))


class Block(nn.Module):
    """A residual block: ``before`` what both ways share, ``branch``, ``shortcut``, and ``after`` their sum."""

    def __init__(self, before: nn.Module, branch: nn.Module, shortcut: nn.Module | None, after: nn.Module) -> None:
        super().__init__()
        self.before = before
        self.branch = branch
        self.shortcut = shortcut
        self.add = Add() if shortcut is not None else None
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels, H, W)`` to the same with other channels, height and width."""
        x = self.before(x)
        result = self.branch(x)
        if self.shortcut is not None and self.add is not None:
            result = self.add(self.shortcut(x), result)
        out: Tensor = self.after(result)
        return out


class _Blocks:
    """Makes the blocks of one network."""

    def __init__(self, nonlinearity: str, shortcut: bool, norm: bool, preactivation: bool, bottleneck: bool) -> None:
        self.nonlinearity = nonlinearity
        self.shortcut = shortcut
        self.norm = norm
        self.preactivation = preactivation
        self.bottleneck = bottleneck

    def after(self, prefix: str, channels: int) -> list[tuple[str, nn.Module]]:
        """Normalisation and nonlinearity."""
        norm = [(f"{prefix}norm", nn.BatchNorm2d(channels))] if self.norm else []
        return [*norm, (f"{prefix}{self.nonlinearity}", activation(self.nonlinearity))]

    def conv(self, into: int, out: int, size: int, stride: int = 1) -> nn.Conv2d:
        return nn.Conv2d(into, out, size, stride, size // 2, bias=not self.norm)

    def block(self, into: int, out: int, stride: int) -> Block:
        inner = out // 4 if self.bottleneck else out
        sizes = [(into, inner, 1, 1), (inner, inner, 3, stride), (inner, out, 1, 1)]
        convs = sizes if self.bottleneck else [(into, out, 3, stride), (out, out, 3, 1)]
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
                after = [(self.nonlinearity, activation(self.nonlinearity))] if last else []
        return Block(_sequence(before), _sequence(branch), self._way(into, out, stride), _sequence(after))

    def _way(self, into: int, out: int, stride: int) -> nn.Module | None:
        if not self.shortcut:
            return None
        if stride == 1 and into == out:
            return nn.Identity()
        projection: list[tuple[str, nn.Module]] = [("conv", self.conv(into, out, 1, stride))]
        if self.norm and not self.preactivation:
            projection.append(("norm", nn.BatchNorm2d(out)))
        return _sequence(projection)


def _sequence(layers: list[tuple[str, nn.Module]]) -> nn.Module:
    return nn.Sequential(OrderedDict(layers)) if layers else nn.Identity()
