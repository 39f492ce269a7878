"""Initialisations of the weights."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from trainability.activations import fan_in, is_weight_layer
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
        owners: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            owners.setdefault(id(parameter), []).append(name)
        planned = []
        for path in paths:
            module = model.get_submodule(path)
            weight = module._parameters.get("weight")
            inputs = fan_in(module)
            shared = [name for name in owners.get(id(weight), []) if name.rpartition(".")[0] != path]
            aliases = [name for name in shared if model.get_submodule(name.rpartition(".")[0]) is not module]
            if weight is None or inputs is None:
                skipped[path] = f"{type(module).__name__}: its fan-in cannot be read off its weight"
            elif aliases:
                skipped[path] = f"its weight is also {aliases[0]}"
            elif self.scheme == "default" and not hasattr(module, "reset_parameters"):
                skipped[path] = f"{type(module).__name__} has no reset_parameters()"
            else:
                after = math.sqrt(2 / inputs) if self.scheme == "he" else math.sqrt(1 / (3 * inputs))
                before = float(weight.detach().std(correction=0))
                why = f"{self.scheme}, fan-in {inputs}"
                planned.append(
                    (Change(path, f"std {before:.3g}", f"std {after:.3g}", why), self._setter(module, after))
                )
        known = {*(change.path for change, _ in planned), *skipped}
        for path, module in model.named_modules():
            if (
                where is None
                and path not in known
                and any(p.dim() >= 2 for p in module._parameters.values() if p is not None)
            ):
                skipped[path] = f"{type(module).__name__} has weights of another kind"
        return planned, skipped

    def _setter(self, module: nn.Module, std: float) -> Callable[[], None]:
        def he() -> None:
            weight, bias = module.weight, getattr(module, "bias", None)
            assert isinstance(weight, Tensor)
            nn.init.normal_(weight, std=std)
            if isinstance(bias, Tensor):
                nn.init.zeros_(bias)

        def default() -> None:
            module.reset_parameters()  # type: ignore[operator]

        return he if self.scheme == "he" else default
