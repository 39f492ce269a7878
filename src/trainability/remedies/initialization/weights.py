"""Distributions that the matrices of weight layers are drawn from."""

import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor, nn

from trainability.errors import UnsupportedModelError
from trainability.introspect.weight_layers import matrices, weight_layout

Draw = Callable[[int, int], Tensor]  # (outputs, inputs) -> a matrix of that shape


def fill(module: nn.Module, draw: Draw) -> None:
    """Draw the whole weight, a kernel counting as further inputs, with no bias."""
    for view in matrices(module) or []:
        columns = view.shape[1:].numel()
        view.copy_(draw(view.shape[0], columns).view(view.shape))
    _zero_bias(module)


def fill_delta(module: nn.Module, draw: Draw) -> None:
    """Draw the matrix of the central tap and set the other taps to zero, with no bias.

    Where the taps do not overlap, because the stride is the kernel's size, the layer is a matrix on patches, which is
    drawn whole; a transposed convolution of that kind has one such matrix for every tap.
    """
    layout = weight_layout(module)
    assert layout is not None
    for view in matrices(module) or []:
        outputs, inputs, *kernel = view.shape
        if not kernel:
            view.copy_(draw(outputs, inputs))
        elif layout.patchwise and layout.transposed:
            for tap in product(*map(range, kernel)):
                _tap(view, tap).copy_(draw(outputs, inputs))
        elif layout.patchwise:
            view.copy_(draw(outputs, inputs * math.prod(kernel)).view(view.shape))
        else:
            view.zero_()
            _tap(view, tuple(size // 2 for size in kernel)).copy_(draw(outputs, inputs))
    _zero_bias(module)


def weight_std(weight: Tensor) -> str:
    """The standard deviation of a weight in words."""
    return (
        "no values" if weight.is_meta or weight.numel() == 0 else f"std {float(weight.detach().std(correction=0)):.3g}"
    )


def check_delta(path: str, module: nn.Module) -> None:
    """Raise UnsupportedModelError for a convolution that has no central tap through which every output is reached."""
    layout = weight_layout(module)
    if layout is None or layout.patchwise:
        return
    even = any(size % 2 == 0 for size in layout.kernel)
    strided = layout.transposed and any(s > 1 for s in layout.stride)
    if even or strided:
        what = "kernel of even size" if even else "stride above 1 in a transposed convolution"
        raise UnsupportedModelError(
            path,
            f"a {what} has no central tap, so it cannot be initialized as a delta; use a kernel of odd size or a "
            "stride equal to the kernel, or keep the weights with init=None",
            code="no-central-tap",
        )


def uniform_orthogonal(outputs: int, inputs: int, gain: float = 1.0) -> Tensor:
    """A matrix with orthonormal rows or columns, distributed uniformly over these."""
    return nn.init.orthogonal_(torch.empty(outputs, inputs, dtype=torch.float64), gain)


def scaled_uniform_orthogonal(outputs: int, inputs: int) -> Tensor:
    """SUO: uniformly orthogonal times max(√(outputs / inputs), 1), which keeps the mean square of a signal.

    Reference: Martens et al. (2021), appendix on parameter distributions.

    >>> w = scaled_uniform_orthogonal(8, 2)
    >>> torch.allclose(w.T @ w, 4 * torch.eye(2, dtype=w.dtype))
    True
    """
    return uniform_orthogonal(outputs, inputs, max(math.sqrt(outputs / inputs), 1.0))


def _tap(view: Tensor, index: tuple[int, ...]) -> Tensor:
    for position in index:
        view = view.select(2, position)
    return view


def _zero_bias(module: nn.Module) -> None:
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor):
        nn.init.zeros_(bias)
