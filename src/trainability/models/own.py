"""A user's own model, by a reference to the function or class that makes it."""

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainability._references import load
from trainability.errors import ConfigError
from trainability.models.registry import Architecture

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class OwnModel(Architecture):
    """The model that a function or class of the user's own makes.

    Args:
        reference: file.py:name or package.module:name
        options: arguments of it
    """

    reference: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The reference."""
        return self.reference

    def to_dict(self) -> dict[str, Any]:
        """The reference as a name, and the options."""
        return {"name": self.reference, "options": dict(self.options)}

    def build(self, shape: tuple[int, ...], outputs: int) -> "nn.Module":
        """The model, for whatever inputs it is made."""
        return self.built_by(load(self.reference))

    def built_by(self, make: Any) -> "nn.Module":
        """The model that a function makes.

        Raises:
            ConfigError: it returns something else.
        """
        from torch import nn

        if isinstance(make, nn.Module):
            raise ConfigError(
                f"{self.reference} is a model; name a function that returns a new one, since every seed needs its own",
                code="not-a-function",
            )
        model = make(**self.options)
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"{self.reference} returns {type(model).__name__}; it should return a torch.nn.Module",
                code="not-a-module",
            )
        return _alone(model)


def _alone(model: "nn.Module") -> "nn.Module":
    """A copy, which shares no weights with a model that is returned again, or with a module that several contain."""
    try:
        return copy.deepcopy(model)
    except Exception:  # what cannot be copied, such as weights that were computed, is taken as it is
        return model
