"""Running a recorded call, and measuring what its operations give."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from trainability.errors import UnsupportedModelError
from trainability.signal.recording import Recording

Moments = tuple[float, float, float]  # mean square, mean cosine of two samples, mean

_ROWS = 256  # samples that are compared with one another


def run(
    recording: Recording, wanted: Collection[fx.Node], inputs: Mapping[str, Tensor] | None = None
) -> dict[fx.Node, Moments]:
    """Run a recording on its own inputs, or on others of their shape, and measure what some operations give.

    Parameters are those of the model, with the values that they have now.
    """
    given = recording.inputs if inputs is None else {**recording.inputs, **inputs}
    args: list[Any] = []
    for node in recording.graph.nodes:
        if node.op == "placeholder":
            held = recording.tensors.get(node.name)
            args.append(given.get(node.name) if held is None else held)
    measuring = _Measuring(recording.module, wanted)
    try:
        with torch.no_grad():
            measuring.run(*args)
    except Exception as error:  # recorded without computing anything, it may not run all the same
        text = str(error).strip().partition("\n")[0]
        raise UnsupportedModelError(
            "", f"the operations recorded from it cannot be run ({type(error).__name__}: {text})", code="not-runnable"
        ) from error
    return measuring.found


class _Measuring(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, wanted: Collection[fx.Node]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.found: dict[fx.Node, Moments] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one operation."""
        value = super().run_node(n)
        if n in self.wanted:
            first = value[0] if isinstance(value, list | tuple) and value else value
            if isinstance(first, Tensor) and first.is_floating_point() and first.dim() > 1 and len(first) > 1:
                self.found[n] = moments_of(first)
        return value


def moments_of(values: Tensor) -> Moments:
    """Mean square, mean cosine of two different samples, and mean, of values ``(B, ...)``."""
    rows = values.detach()[:_ROWS].flatten(1).double()
    products = rows @ rows.T / rows.shape[1]
    sizes = products.diagonal()
    if not bool((sizes > 0).any()):
        return 0.0, 1.0, 0.0  # nothing is left, and so all inputs look alike
    cosines = products / (sizes.sqrt().outer(sizes.sqrt())).clamp(min=1e-300)
    count = len(rows)
    cosine = float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))
    return float(sizes.mean()), cosine, float(rows.mean())
