"""Two tests of a network: does its gradient see the labels, and do its weights explain how the signal shrinks."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainability.errors import ArgumentError
from trainability.introspect.activations import fan_in, is_nonlinearity, is_weight_layer
from trainability.introspect.hooks import Taps, activation_of
from trainability.introspect.run import call, observing
from trainability.moments import samples, statistics

_NORMALIZATION = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def label_dependence(
    model: nn.Module, inputs: Any, targets: Tensor, loss: Callable[[Any, Any], Tensor], permutations: int = 3
) -> float:
    """How much the gradient of the weights depends on which label belongs to which input.

    The root mean square over permutations of |g(y) − g(permuted y)| / |g(y)|, over all weight matrices. 0: the
    gradient sees only how often each class occurs. About 1 and more: the labels matter.

    >>> import torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> x, y = torch.randn(64, 8), torch.arange(64) % 2
    >>> label_dependence(nn.Linear(8, 2), x, y, nn.functional.cross_entropy) > 0.5
    True
    """
    if not isinstance(targets, Tensor) or targets.dim() == 0 or len(targets) < 2:
        raise ArgumentError(
            "the labels must be a tensor with one entry per sample along dimension 0, to be permuted",
            code="labels-not-permutable",
        )
    weights = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    if not weights:
        raise ArgumentError("no weight matrix requires a gradient; the model is frozen", code="model-frozen")

    def gradient(labels: Tensor) -> Tensor:
        # The random state is put back each time, so dropout is the same for all labels.
        with observing(model), torch.enable_grad():
            value = loss(call(model, inputs), labels)
            parts = torch.autograd.grad(value, weights, allow_unused=True)
        return torch.cat([g.double().flatten() for g in parts if g is not None])

    generator = torch.Generator().manual_seed(0)
    true = gradient(targets)
    size = true.norm().item()
    if not math.isfinite(size) or size == 0:
        raise ArgumentError(f"the gradient is {size}", code="gradient-zero-or-not-finite")
    squares = []
    for _ in range(permutations):
        order = torch.randperm(len(targets), generator=generator).to(targets.device)
        squares.append(((gradient(targets[order]) - true).norm().item() / size) ** 2)
    return math.sqrt(sum(squares) / len(squares))


def predict_std(model: nn.Module, inputs: Any) -> dict[str, float]:
    """Standard deviation over the batch of every nonlinearity's output, as the weights' variance predicts it.

    From one nonlinearity to the next, with fan-in n, weights of variance Var w and nonlinearity φ, differences
    between inputs grow by the factor sqrt(n Var w E[φ'(z)²]), z Gaussian with the mean and standard deviation measured
    before φ. Starts from the measured value of the first nonlinearity; stops where a layer is not one weight layer
    followed by one nonlinearity, since the factor of a normalization or of several layers is not of this form.

    Reference: Poole et al. (2016), eq. 7 (χ); Schoenholz et al. (2017).

    >>> import torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> deep = nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(512, 512), nn.ReLU())])
    >>> std = list(predict_std(deep, torch.randn(256, 512)).values())
    >>> round(std[1] / std[0], 2)  # PyTorch's default: Var w = 1/(3n), so sqrt(1/6)
    0.41
    """
    modules = dict(model.named_modules())
    watched = {
        path: module
        for path, module in modules.items()
        if is_weight_layer(module) or is_nonlinearity(module) or isinstance(module, _NORMALIZATION)
    }
    reader = _OrderReader()
    with observing(model), torch.no_grad(), Taps(model, watched, reader):
        call(model, inputs)
    predicted: dict[str, float] = {}
    previous: float | None = None
    between: list[str] = []
    for path, mean, std, spread in reader.readings:
        if not is_nonlinearity(modules[path]):
            between.append(path)
            before = (mean, spread)
            continue
        if previous is None and not predicted:
            previous = std
        elif previous is not None and len(between) == 1 and is_weight_layer(modules[between[0]]):
            with observing(modules[path]):  # its function is asked for at numbers of our own
                gain = _gain(modules[between[0]], modules[path], *before)
            if gain is None:
                break
            previous *= math.sqrt(gain)
        else:
            break
        predicted[path] = previous
        between = []
    return predicted


class _OrderReader:
    """Mean, standard deviation over the batch, and standard deviation of all values, in the order of execution."""

    def __init__(self) -> None:
        self.readings: list[tuple[str, float, float, float]] = []

    def begin(self, model: nn.Module) -> None:
        """Nothing is carried over."""

    def recompute(self, path: str, activation: Tensor | None) -> None:
        """Nothing: there is no backward pass."""

    def read(self, path: str, call: int, activation: Tensor | None) -> None:
        """Record one layer."""
        a = activation_of(activation)
        if a is not None and a.numel():
            _, variance = statistics(samples(a))
            values = a.float()
            self.readings.append((path, values.mean().item(), variance.mean().sqrt().item(), values.std().item()))


def _gain(weight_layer: nn.Module, nonlinearity: nn.Module, mean: float, spread: float) -> float | None:
    """The factor n Var w E[φ'(mean + spread z)²]; None where the fan-in of the layer is not known."""
    inputs = fan_in(weight_layer)
    weight = weight_layer._parameters.get("weight")
    if inputs is None or weight is None:
        return None
    return inputs * weight.detach().double().var(correction=0).item() * _slope_square(nonlinearity, mean, spread)


def _slope_square(nonlinearity: nn.Module, mean: float, spread: float) -> float:
    """E[φ'(mean + spread z)²] over the 2,000 midpoints of equal probability of a Gaussian z."""
    like = next(nonlinearity.parameters(), torch.empty(0))
    with torch.enable_grad():
        p = (torch.arange(2000, dtype=torch.float32, device=like.device) + 0.5) / 2000
        z = (mean + spread * torch.special.ndtri(p)).requires_grad_(True)
        (slope,) = torch.autograd.grad(nonlinearity(z + 0.0).sum(), z)
    return float(slope.double().square().mean())
