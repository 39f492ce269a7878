"""What is looked at while a network trains: the kernel after each layer, and single neurons before and after."""

from typing import Any

import torch
from torch import Tensor, nn

from trainability.errors import UnsupportedModelError
from trainability.kernels import measured, predict
from trainability.observe import observing
from trainability.taps import Taps


class _Kept:
    """A reader of taps that keeps the first activation of every layer."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def begin(self, model: nn.Module) -> None:
        """Nothing is to be done."""

    def read(self, path: str, call: int, activation: Tensor | None) -> None:
        """Keep it."""
        if activation is not None and call == 1:
            self.seen[path] = activation.clone()

    def recompute(self, path: str, activation: Tensor | None) -> None:
        """Nothing is kept of a recomputation."""


def neuron_histograms(model: nn.Module, inputs: Tensor, when: str, bins: int = 40) -> dict[str, Any]:
    """Histograms of one neuron before the nonlinearity of the first, a middle and the last hidden layer.

    The neuron is that of median variance, so neither the liveliest nor a dead one.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][:-1]
    chosen = {index: linear[index] for index in sorted({0, len(linear) // 2, len(linear) - 1})} if linear else {}
    kept = _Kept()
    with observing(model), torch.no_grad(), Taps(model, chosen.values(), kept):
        model(inputs)
    rows = []
    for index, name in chosen.items():
        if name not in kept.seen:  # used for its weight alone, as in torch's attention
            continue
        activation = kept.seen[name].flatten(1)
        variance = activation.var(0)
        values = activation[:, variance.argsort()[len(variance) // 2]]
        if not bool(values.isfinite().all()):
            continue
        low, high = float(values.min()), float(values.max())
        pad = max(1e-3, 0.05 * (high - low))
        counts = torch.histc(values, bins=bins, min=low - pad, max=high + pad)
        entropy = float(0.5 * torch.log1p(2 * torch.pi * torch.e * values.var()))
        row = {"layer": index + 1, "name": name, "low": low - pad, "high": high + pad}
        rows.append({**row, "counts": counts.tolist(), "entropy": entropy})
    return {"when": when, "rows": rows}


def kernel_values(model: nn.Module, inputs: Tensor, layers: list[str]) -> tuple[list[float], list[float]]:
    """Mean square q and mean cosine c between two inputs after each layer, over 128 inputs at the most."""
    seen = {path: (q, c) for path, q, c in measured(model, inputs[:128], [p for p in layers if "#" not in p])}
    return [seen[p][0] for p in layers if p in seen], [seen[p][1] for p in layers if p in seen]


def predicted_kernel(model: nn.Module, inputs: Tensor, layers: list[str]) -> tuple[list[float], list[float]] | None:
    """The same as the scale of the weights predicts it; None where the model has no kernel, as with BatchNorm."""
    try:
        values = {v.path: v for v in predict(model, inputs[:128]) if v.kind == "nonlinear"}
    except UnsupportedModelError:
        return None
    known = [values[path] for path in layers if path in values]
    return ([v.q for v in known], [v.c for v in known]) if len(known) == len(layers) else None
