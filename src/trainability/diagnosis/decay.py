"""Predicting how the spread over the batch shrinks or grows, from the variance of the weights."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from trainability.introspect.activations import is_nonlinearity
from trainability.introspect.norms import NORMS
from trainability.introspect.readings import read_activations
from trainability.introspect.run import observing
from trainability.introspect.weight_layers import fan_in, is_weight_layer
from trainability.moments import samples, statistics


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
    watched = [
        path
        for path, module in modules.items()
        if is_weight_layer(module) or is_nonlinearity(module) or isinstance(module, NORMS)
    ]
    predicted: dict[str, float] = {}
    previous: float | None = None
    between: list[str] = []
    for reading in read_activations(model, inputs, watched, _spread):
        path, (mean, std, spread) = reading.name, reading.value
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


def _spread(a: Tensor) -> tuple[float, float, float] | None:
    """Mean of all values, their standard deviation over the batch, and that of all of them together."""
    if not a.numel():
        return None
    _, variance = statistics(samples(a))
    values = a.float()
    return values.mean().item(), variance.mean().sqrt().item(), values.std().item()


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
