"""Residual networks of the CIFAR and the ImageNet family, whose shortcuts and normalization can be left out."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from trainability.errors import ArgumentError, check_choice, check_keep
from trainability.models.registry import Architecture, check_sizes, register
from trainability.nn.names import Scale, check_nonlinearity

if TYPE_CHECKING:
    from torch import nn

Unit = Literal["baseline", "relu-ic-conv", "ic-conv-relu", "conv-relu-ic"]

_IMAGENET: dict[int, tuple[int, ...]] = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@register("resnet")
@dataclass(frozen=True)
class ResNet(Architecture):
    """A residual network of the CIFAR family.

    Args:
        depth: weight layers, shortcuts apart: 6n + 2, or 9n + 2 with three convolutions to a block
        width: channels of the first stage
        nonlinearity: relu, leaky_relu, tanh, selu, elu, gelu, silu, softplus or sigmoid
        batchnorm: BatchNorm, which the units with IC layers have in any case
        residual: shortcuts
        unit: of what a block is made: baseline, or relu-ic-conv, ic-conv-relu, conv-relu-ic
        scale: of a branch: identity, rezero, skipinit or fixup
        convolutions: in each block, 2 or 3
        keep: of the IC layers, the probability of keeping an entry
    """

    depth: int = 26
    width: int = 16
    nonlinearity: str = "relu"
    batchnorm: bool = False
    residual: bool = True
    unit: Unit = "baseline"
    scale: Scale = "identity"
    convolutions: Literal[2, 3] = 2
    keep: float = 0.95

    def __post_init__(self) -> None:
        check_sizes(width=self.width)
        check_nonlinearity(self.nonlinearity)
        check_depth(self.depth, self.convolutions)
        check_sizes(depth=self.depth)
        norm = self.batchnorm or self.unit != "baseline"
        _check_options(self.unit, self.keep, norm=norm, preactivation=False, shortcuts=self.residual, scale=self.scale)

    def built_in(self) -> list[str]:
        """The remedies that these settings amount to, apart from plain shortcuts, which every ResNet has."""
        norm = ["batchnorm"] * self.batchnorm if self.unit == "baseline" else [self.unit]
        return norm + [self.scale] * (self.scale != "identity")

    def build(self, shape: tuple[int, ...], outputs: int) -> "nn.Module":
        """The network for images of shape ``(channels, height, width)``."""
        return resnet(
            self.depth,
            outputs,
            in_channels=shape[0],
            width=self.width,
            nonlinearity=self.nonlinearity,
            shortcuts=self.residual,
            norm=self.batchnorm or self.unit != "baseline",
            unit=self.unit,
            keep=self.keep,
            scale=self.scale,
            convolutions=self.convolutions,
        )


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
) -> "nn.Sequential":
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
    from torch import nn

    from trainability.nn.ic import ICLayer
    from trainability.nn.nonlinearity import nonlinearity_of
    from trainability.nn.residual_stages import Block, Blocks
    from trainability.nn.shortcut import fixup_

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
    make = Blocks(nonlinearity, shortcuts, norm, preactivation, bottleneck, unit, keep, scale, sum(stages))
    layers: list[tuple[str, nn.Module]] = []
    size, stride = (3, 1) if family == "cifar" else (7, 2)
    layers.append(("stem", nn.Conv2d(in_channels, base, size, stride, size // 2, bias=not norm)))
    layers += make.after_conv("stem_", base)
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
        layers += make.before_conv("last_", channels)
    if unit == "relu-ic-conv":
        layers.append((f"last_{nonlinearity}", nonlinearity_of(nonlinearity)))
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
    check_choice("unit", unit, get_args(Unit))
    check_choice("scale", scale, get_args(Scale))
    if unit != "baseline" and (not norm or preactivation):
        raise ArgumentError(
            f"the unit {unit} has its own order and its own BatchNorm; leave out norm and preactivation",
            code="settings-conflict",
        )
    if scale != "identity" and not shortcuts:
        raise ArgumentError(
            f"scale={scale!r} is of branches beside a shortcut, and there are none", code="settings-conflict"
        )
