"""Weight layers: modules that multiply by a matrix or kernel of their own, each kind of them described once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from trainability.errors import ArgumentError, ArgumentTypeError, check_choice, check_whole
from trainability.introspect.torch_private import ConvNd, ConvTransposeNd


@dataclass(frozen=True)
class WeightLayout:
    """The layout of the parameter ``weight`` of a weight layer, beside which it may have a ``bias``.

    Attributes:
        inputs: neurons or channels that it takes.
        outputs: neurons or channels that it gives.
        axes: ``"oi"`` for a weight (outputs, inputs / groups, *kernel); ``"io"`` for (inputs, outputs / groups,
            *kernel).
        groups: parts that neither share inputs nor outputs.
        kernel: its size in every dimension of places, which come after the channels; () where features come last.
        stride: of a convolution, one number per dimension of places.
        transposed: whether one input reaches several places of the output, as in a transposed convolution.
        patchwise: whether the places of a convolution do not overlap, so that it is a matrix on patches.
    """

    inputs: int
    outputs: int
    axes: Literal["oi", "io"] = "oi"
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    transposed: bool = False
    patchwise: bool = False

    @property
    def output_axis(self) -> int:
        """The dimension of the weight along which its outputs lie."""
        return self.axes.index("o")


Describe: TypeAlias = Callable[[Any], WeightLayout]


def _linear(module: nn.Linear) -> WeightLayout:
    return WeightLayout(module.in_features, module.out_features)


def _convolution(module: ConvNd, transposed: bool = False) -> WeightLayout:
    kernel, stride = module.kernel_size, module.stride
    plain = all(d == 1 for d in module.dilation) and module.padding in (0, "valid", (0,) * len(kernel))
    return WeightLayout(
        module.in_channels,
        module.out_channels,
        "io" if transposed else "oi",
        module.groups,
        kernel,
        stride,
        transposed,
        plain and stride == kernel and math.prod(kernel) > 1,
    )


def _inputs_first(module: nn.Module) -> WeightLayout:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return WeightLayout(weight.shape[0], weight.shape[1], "io")


# By class, or by the full name of one whose library is not imported for it.
_KINDS: dict[type | str, Describe] = {
    nn.Linear: _linear,
    ConvNd: _convolution,
    ConvTransposeNd: partial(_convolution, transposed=True),
    "transformers.pytorch_utils.Conv1D": _inputs_first,
}


def register_weight_layer(*kinds: type[nn.Module] | str) -> Callable[[Describe], Describe]:
    """Register the layout of a kind of weight layer, so that all that is done to weight layers is done to it.

    Args:
        kinds: classes, whose subclasses count too; or the full name of a class, as ``"package.module.Class"``, which
            is then not imported.

    Returns:
        A decorator of a function from a module of that kind to its `WeightLayout`. The module keeps its matrix in a
        parameter ``weight``, and its bias, if any, in ``bias``.

    Raises:
        TypeError: something in ``kinds`` is neither a class of modules nor a string.
        ValueError: later, where a layout does not fit the weight of a module.

    >>> import torch
    >>> from trainability import Init, WeightLayout, apply_, register_weight_layer
    >>> class Dense(nn.Module):
    ...     def __init__(self, inputs, outputs):
    ...         super().__init__()
    ...         self.weight = nn.Parameter(torch.empty(inputs, outputs))
    ...     def forward(self, x):
    ...         return x @ self.weight
    >>> @register_weight_layer(Dense)
    ... def layout(module):
    ...     return WeightLayout(*module.weight.shape, axes="io")
    >>> apply_(nn.Sequential(Dense(50, 20), nn.ReLU()), Init("he")).changes[0].why
    'he, fan-in 50'
    """
    for kind in kinds:
        if not isinstance(kind, str) and not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise ArgumentTypeError(
                f"a kind of weight layer is a class of modules or its full name, not {kind!r}", code="wrong-type"
            )

    def register(describe: Describe) -> Describe:
        _KINDS.update(dict.fromkeys(kinds, partial(_checked, describe)))
        return describe

    return register


def _checked(describe: Describe, module: nn.Module) -> WeightLayout:
    """The layout of a module of a registered kind, which has to fit its weight."""
    name = type(module).__name__
    try:
        layout = describe(module)
    except Exception as error:  # code of the user's
        raise ArgumentError(
            f"the function registered for {name} fails ({type(error).__name__}: {error})", code="weight-layout"
        ) from error
    if not isinstance(layout, WeightLayout):
        raise ArgumentTypeError(
            f"the function registered for {name} must return a WeightLayout, not {layout!r}", code="wrong-type"
        )
    check_choice("axes", layout.axes, ("oi", "io"))
    check_whole("groups", layout.groups)
    sizes = [layout.outputs, layout.inputs] if layout.axes == "oi" else [layout.inputs, layout.outputs]
    sizes[1] //= layout.groups
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or list(weight.shape[:2]) != sizes:
        what = f"of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        raise ArgumentError(
            f"the layout registered for {name} says that its weight begins with the sizes {sizes}, but it is {what}",
            code="weight-layout",
        )
    return layout


def weight_layout(module: nn.Module) -> WeightLayout | None:
    """The layout of a weight layer's weight; None for a module of no known kind.

    >>> weight_layout(nn.Conv2d(4, 6, 3)).kernel, weight_layout(nn.Bilinear(2, 2, 2))
    ((3, 3), None)
    """
    for kind in type(module).__mro__:
        if describe := _KINDS.get(kind) or _KINDS.get(f"{kind.__module__}.{kind.__qualname__}"):
            return describe(module)
    return None


def is_weight_layer(module: nn.Module) -> bool:
    """True for a module that multiplies by a matrix or kernel of its own, be its layout known or not."""
    if weight_layout(module) is not None:  # whatever a remedy has put into it
        return True
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or any(True for _ in module.children()):
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() >= 2


def matrices(module: nn.Module) -> list[Tensor] | None:
    """Views (outputs, inputs, *kernel) of a weight, one per group; None where the layout or the weight is not known.

    >>> [tuple(view.shape) for view in matrices(nn.ConvTranspose2d(4, 6, 3, groups=2))]
    [(3, 2, 3, 3), (3, 2, 3, 3)]
    """
    layout, parameter = weight_layout(module), module._parameters.get("weight")
    if layout is None or parameter is None or parameter.dim() < 2:
        return None
    parts = parameter.detach().chunk(layout.groups)
    return [part.transpose(0, layout.output_axis) for part in parts]


def fan_in(module: nn.Module) -> int | None:
    """The number of inputs that meet in one output; None where the weight does not say it.

    It does not for a transposed convolution, whose outputs are reached by more or fewer taps according to their place.
    """
    layout, views = weight_layout(module), matrices(module)
    return None if layout is None or views is None or layout.transposed else views[0].shape[1:].numel()


def mean_fan_in(module: nn.Module) -> float:
    """The number of inputs that meet in one output, on average over places; of a weight layer of a known kind."""
    layout, views = weight_layout(module), matrices(module)
    assert layout is not None
    assert views is not None
    return views[0][0].numel() / (math.prod(layout.stride) if layout.transposed else 1)
