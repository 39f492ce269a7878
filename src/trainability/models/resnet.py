"""Residual networks of the CIFAR and the ImageNet family, whose shortcuts and normalization can be left out."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from trainability.errors import ArgumentError, check_keep
from trainability.models.parts import activation, check_sizes
from trainability.nn.ic import ICLayer
from trainability.nn.shortcut import Scale, fixup_, shortcut

Unit = Literal["baseline", "relu-ic-conv", "ic-conv-relu", "conv-relu-ic"]

_IMAGENET: dict[int, tuple[int, ...]] = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def resnet(
    depth: int,
    classes: int,
    *,
    family: Literal["cifar", "imagenet"] = "cifar",
    in_channels: int = 3,
    width: int | None = None,
    nonlinearity: str = "relu",
    shortcuts: bool = True,
    norm: bool = True,
    preactivation: bool = False,
    unit: Unit = "baseline",
    keep: float = 0.95,
    scale: Scale = "identity",
    convolutions: Literal[2, 3] | None = None,
) -> nn.Sequential:
    """Build a residual network, or what is left of it without shortcuts or normalization.

    The CIFAR family has three stages of blocks of two 3 × 3 convolutions, (depth - 2) / 6 per stage, from 16 channels
    on; the ImageNet family four stages of bottlenecks of 1 × 1, 3 × 3 and 1 × 1 convolutions, from 64 channels on.
    Where the size changes the shortcut is a 1 × 1 convolution. Weights are PyTorch's default.

    The units with IC layers have BatchNorm and then Dropout before each convolution but the stem. Where an IC layer
    begins a unit one stands before the classifier, too, and where a nonlinearity begins it one before the mean. A
    projection has its IC layer on the side on which the branch has it. The number of parameters is nearly that of the
    baseline, since an IC layer has those of a BatchNorm: with 26 layers and 10 classes 369,690 (baseline and
    conv-relu-ic) and 369,594 (relu-ic-conv and ic-conv-relu); with three convolutions and 29 layers 313,114 and
    312,634.

    Args:
        depth: weight layers, shortcuts apart: 6n + 2 (26, 74, 152, ...), 9n + 2 (29, 164, ...) with three convolutions
            to a block, or 50, 101 or 152 of the ImageNet family.
        classes: outputs.
        family: ``"cifar"`` or ``"imagenet"``.
        in_channels: of the inputs.
        width: channels of the first stage, 16 or 64.
        nonlinearity: by name.
        shortcuts: whether there are any.
        norm: whether there is BatchNorm; without it the convolutions have biases.
        preactivation: normalization and nonlinearity before each convolution (version 2); otherwise after it, the last
            nonlinearity of a block being after the sum (version 1).
        unit: what a block is made of: ``"baseline"``, or ``"relu-ic-conv"``, ``"ic-conv-relu"`` or ``"conv-relu-ic"``.
        keep: of the IC layers, the probability of keeping an entry.
        scale: of the branches (`trainability.Residual`); ``"fixup"`` sets the weights.
        convolutions: in each block of the CIFAR family; three make a bottleneck. By default two.

    Raises:
        ValueError: a depth that the family does not have, an unknown nonlinearity, family or unit; a unit of another
            norm or preactivation than its own; a scale without shortcuts.

    Reference: He et al. (2016), "Deep residual learning" and "Identity mappings"; Chen et al. (2019), section 4.

    >>> sum(p.numel() for p in resnet(26, classes=10).parameters())
    369690
    """
    _check_options(unit, keep, norm=norm, preactivation=preactivation, shortcuts=shortcuts, scale=scale)
    if family == "cifar":
        bottleneck = convolutions == 3
        check_depth(depth, convolutions or 2)
        stages: tuple[int, ...] = ((depth - 2) // (3 * (convolutions or 2)),) * 3
        base = width or 16
    elif family == "imagenet":
        if depth not in _IMAGENET:
            raise ArgumentError(
                f"the ImageNet family has depths {', '.join(map(str, _IMAGENET))} (it is {depth})", code="depth"
            )
        stages = _IMAGENET[depth]
        base, bottleneck = width or 64, True
    else:
        raise ArgumentError(f"family is 'cifar' or 'imagenet', not {family!r}", code="unknown-choice")
    check_sizes(classes=classes, in_channels=in_channels, width=base)
    if convolutions is not None and family != "cifar":
        raise ArgumentError(
            "convolutions belongs to the CIFAR family; blocks of the ImageNet family have three", code="does-not-apply"
        )
    make = _Blocks(nonlinearity, shortcuts, norm, preactivation, bottleneck, unit, keep, scale, sum(stages))
    layers: list[tuple[str, nn.Module]] = []
    size, stride = (3, 1) if family == "cifar" else (7, 2)
    layers.append(("stem", nn.Conv2d(in_channels, base, size, stride, size // 2, bias=not norm)))
    if unit != "baseline":
        layers += make.after_stem(base)
    elif not preactivation:
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
    if unit == "relu-ic-conv":
        layers.append((f"last_{nonlinearity}", activation(nonlinearity)))
    layers += [("mean", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
    if unit in ("relu-ic-conv", "ic-conv-relu"):
        layers.append(("last_ic", ICLayer(channels, keep, place="before classifier")))
    layers.append(("classifier", nn.Linear(channels, classes)))
    model = nn.Sequential(OrderedDict(layers))
    if scale == "fixup":
        fixup_(model, [block.branch for block in model.modules() if isinstance(block, Block)])
    return model


def check_depth(depth: int, convolutions: int) -> None:
    """Raise ValueError for a depth that the CIFAR family does not have."""
    step = 3 * convolutions
    if depth < step + 2 or (depth - 2) % step:
        which = "9n + 2, such as 29, 56 or 164, with three convolutions to a block"
        which = which if convolutions == 3 else "6n + 2, such as 26, 74 or 152"
        raise ArgumentError(f"residual networks of the CIFAR family have depths {which} (it is {depth})", code="depth")


def _check_options(unit: Unit, keep: float, *, norm: bool, preactivation: bool, shortcuts: bool, scale: Scale) -> None:
    """Raise ValueError for options that do not go together."""
    check_keep(keep)
    if unit not in get_args(Unit):
        raise ArgumentError(
            f"unit is {unit!r}; choose from {', '.join(map(repr, get_args(Unit)))}", code="unknown-choice"
        )
    if scale not in get_args(Scale):
        raise ArgumentError(
            f"scale is {scale!r}; choose from {', '.join(map(repr, get_args(Scale)))}", code="unknown-choice"
        )
    if unit != "baseline" and (not norm or preactivation):
        raise ArgumentError(
            f"the unit {unit} has its own order and its own BatchNorm; leave out norm and preactivation",
            code="settings-conflict",
        )
    if scale != "identity" and not shortcuts:
        raise ArgumentError(
            f"scale={scale!r} is of branches beside a shortcut, and there are none", code="settings-conflict"
        )


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
class _Blocks:
    """Makes the blocks of one network, of which there are ``count``."""

    nonlinearity: str
    shortcuts: bool
    norm: bool
    preactivation: bool
    bottleneck: bool
    unit: Unit
    keep: float
    scale: Scale
    count: int

    def after(self, prefix: str, channels: int) -> list[tuple[str, nn.Module]]:
        """Normalization and nonlinearity."""
        norm = [(f"{prefix}norm", nn.BatchNorm2d(channels))] if self.norm else []
        return [*norm, (f"{prefix}{self.nonlinearity}", activation(self.nonlinearity))]

    def conv(self, into: int, out: int, size: int, stride: int = 1) -> nn.Conv2d:
        return nn.Conv2d(into, out, size, stride, size // 2, bias=not self.norm)

    def block(self, into: int, out: int, stride: int) -> Block:
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
                after = [(self.nonlinearity, activation(self.nonlinearity))] if last else []
        way = self._way(into, out, stride)
        return Block(_sequence(before), _sequence(branch), way, _sequence(after), shortcut(self.scale, self.count))

    def unit_block(self, convs: list[tuple[int, int, int, int]], into: int, out: int, stride: int) -> Block:
        """A block of one of the units with IC layers."""
        branch: list[tuple[str, nn.Module]] = []
        for number, (a, b, size, step) in enumerate(convs, 1):
            parts: dict[str, tuple[str, nn.Module]] = {
                "relu": (f"{number}_{self.nonlinearity}", activation(self.nonlinearity)),
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
            "relu": (f"stem_{self.nonlinearity}", activation(self.nonlinearity)),
            "ic": ("stem_ic", self.ic(channels)),
        }
        return [parts[name] for name in self.unit.partition("conv")[2].split("-") if name]

    def ic(self, features: int) -> ICLayer:
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
