"""An activation with constants around it, as shaping puts it into a model."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainability.errors import ArgumentError, ArgumentTypeError, check_choice, check_number, check_real_tensor
from trainability.signal import Activation, as_activation

_CONSTANTS = ("negative_slope", "input_scale", "input_shift", "output_shift", "output_scale")


class ShapedActivation(nn.Module):
    """output_scale · (φ(input_scale · x + input_shift) + output_shift), elementwise.

    With a ``negative_slope`` φ is the leaky ReLU of that slope. The constants are part of ``state_dict``.

    Args:
        name: of φ, as in `trainability.signal`; or what to call it where ``function`` is given.
        constants: as `trainability.signal.solve` returns them.
        function: φ itself, where it has no name.

    >>> shaped = ShapedActivation("tanh", {"input_scale": 0.5, "output_scale": 2.0})
    >>> shaped(torch.tensor([0.0, 1.0])).tolist() == [0.0, 2 * math.tanh(0.5)]
    False
    >>> round(shaped(torch.tensor(1.0, dtype=torch.float64)).item() - 2 * math.tanh(0.5), 12)
    0.0
    """

    def __init__(
        self, name: str, constants: dict[str, float], function: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(name, str):
            raise ArgumentTypeError(f"the name of an activation is a word, not {name!r}", code="wrong-type")
        self.name = name
        self.constants = _checked(constants)
        self._function = (function,)  # in a tuple, so that a module there is not a layer of its own

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor of any shape to one of the same shape."""
        c = self.constants
        shift, gain = c.get("output_shift", 0.0), c.get("output_scale", 1.0)
        scale, move = c.get("input_scale", 1.0), c.get("input_shift", 0.0)
        if scale != 1:
            x = x * scale
        if move:
            x = x + move
        if "negative_slope" in c:
            y = F.leaky_relu(x, c["negative_slope"])
        else:
            y = self.function(x) if self.function is not None else as_activation(self.name).function(x)
        return (y + shift) * gain if shift else y * gain

    @property
    def function(self) -> Callable[[Tensor], Tensor] | None:
        """φ itself, where it has no name."""
        return self._function[0]

    @property
    def activation(self) -> Activation:
        """The function in double precision, for kernels."""
        name = "leaky_relu" if "negative_slope" in self.constants else self.name
        base = as_activation(name if self.function is None else self.function, name)
        return base.shaped(self.constants)

    def extra_repr(self) -> str:
        """Name and constants."""
        return ", ".join([self.name, *(f"{key}={value:.6g}" for key, value in self.constants.items())])

    def get_extra_state(self) -> Tensor:
        """The constants as a tensor, so that a state can be written without pickling anything."""
        return torch.tensor([self.constants.get(key, math.nan) for key in _CONSTANTS], dtype=torch.float64)

    def set_extra_state(self, state: Any) -> None:
        """Take the constants of a state; NaN for those that there are not."""
        check_real_tensor("the state of a shaped activation", state)
        if state.shape != (len(_CONSTANTS),):
            raise ArgumentError(f"a state of a shaped activation holds {len(_CONSTANTS)} numbers", code="state-shape")
        values = dict(zip(_CONSTANTS, state.tolist(), strict=True))
        self.constants = _checked({key: value for key, value in values.items() if not math.isnan(value)})


def _checked(constants: Any) -> dict[str, float]:
    if not isinstance(constants, dict):
        raise ArgumentTypeError(f"constants is a dictionary of numbers by name, not {constants!r}", code="wrong-type")
    for key, value in constants.items():
        check_choice("a constant", key, _CONSTANTS)
        check_number(key, value)
    return dict(constants)
