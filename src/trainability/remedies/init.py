"""Initialisations of the weights."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from trainability.activations import is_weight_layer
from trainability.layers import Where
from trainability.remedies.apply import Change, chosen


@dataclass(frozen=True)
class Init:
    """Initialise every weight layer anew.

    ``"he"``: Gaussian weights of variance 2 / fan-in and zero biases, which keeps the mean square of a ReLU
    network's signal from layer to layer. ``"default"``: what PyTorch does when a layer is made, uniform weights of
    variance 1 / (3 fan-in) and uniform biases, under which a ReLU network loses a factor 0.41 of its signal per layer.

    Reference: He et al. (2015), eq. 10.
    """

    scheme: Literal["he", "default"] = "he"

    def __post_init__(self) -> None:
        if self.scheme not in ("he", "default"):
            raise ValueError(f"Init has no scheme {self.scheme!r}; choose 'he' or 'default'")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"remedy": "init", **asdict(self)}

    def plan(
        self, model: nn.Module, where: Where | None
    ) -> tuple[list[tuple[Change, Callable[[], None]]], dict[str, str]]:
        """Plan one change per weight layer."""
        paths, skipped = chosen(model, where, is_weight_layer, "not a weight layer")
        planned = []
        for path in paths:
            module = model.get_submodule(path)
            weight = module.weight
            assert isinstance(weight, Tensor)
            if self.scheme == "default" and not hasattr(module, "reset_parameters"):
                skipped[path] = f"{type(module).__name__} has no reset_parameters()"
                continue
            fan_in = weight[0].numel()
            after = math.sqrt(2 / fan_in) if self.scheme == "he" else math.sqrt(1 / (3 * fan_in))
            change = Change(
                path,
                f"std {float(weight.detach().std(correction=0)):.3g}",
                f"std {after:.3g}",
                f"{self.scheme}, fan-in {fan_in}",
            )
            planned.append((change, self._setter(module)))
        return planned, skipped

    def _setter(self, module: nn.Module) -> Callable[[], None]:
        def he() -> None:
            weight, bias = module.weight, module.bias
            assert isinstance(weight, Tensor)
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
            if isinstance(bias, Tensor):
                nn.init.zeros_(bias)

        def default() -> None:
            module.reset_parameters()  # type: ignore[operator]

        return he if self.scheme == "he" else default
