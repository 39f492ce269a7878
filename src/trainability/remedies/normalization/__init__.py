"""Normalization of what the weight layers of a model return, or of their weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from trainability.errors import ArgumentError, check_choice, check_whole
from trainability.remedies.registry import BuiltIn, register

Kind = Literal["batch", "layer", "weight", "group"]


_norm = partial(register, sets="normalization", order=2)


@_norm("batchnorm", title="BatchNorm before every nonlinearity", preset={"kind": "batch", "groups": None})
@_norm("layernorm", title="LayerNorm before every nonlinearity", preset={"kind": "layer", "groups": None})
@_norm("groupnorm", title="GroupNorm before every nonlinearity", preset={"kind": "group"})
@_norm("weightnorm", title="weight normalization", preset={"kind": "weight", "groups": None})
@dataclass(frozen=True)
class Normalize(BuiltIn):
    """Normalize after each weight layer but the last, and so before each nonlinearity of a plain network.

    Each weight layer gets a child ``norm`` through which its outputs go; its own parameters keep their names. Under
    ``"weight"`` the weight is written as length times direction instead (`torch.nn.utils.parametrize`).

    Args:
        kind: ``"batch"``: over the batch, each feature by itself. ``"layer"``: over the features of a sample, and of a
            token; of maps over channels and positions. ``"group"``: the same within groups of channels.
            ``"weight"``: the length of each neuron's weight is learned apart from its direction.
        groups: of ``"group"``; by default as many as leave 16 features to each, or the nearest that divides them.

    A layer that a normalization follows already is left alone. With ``inputs`` the order is that of one call; without,
    that of definition.

    Reference: Ioffe and Szegedy (2015); Ba, Kiros and Hinton (2016); Salimans and Kingma (2016); Wu and He (2018).

    >>> from torch import nn
    >>> from trainability import apply_
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    >>> [change.after for change in apply_(model, Normalize("group")).changes]
    ['FeatureGroupNorm(2, 32)', 'FeatureGroupNorm(2, 32)']
    """

    kind: Kind = "batch"
    groups: int | None = None

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, get_args(Kind))
        if self.groups is None:
            return
        check_whole("groups", self.groups)
        if self.kind != "group":
            raise ArgumentError(f"groups belongs to kind 'group', not to {self.kind!r}", code="does-not-apply")

    def options(self, model: str) -> Mapping[str, Any] | None:
        """The BatchNorm of the package's own models, which have no other normalization."""
        return {"batchnorm": True} if model in ("fnn", "cnn", "resnet") and self.kind == "batch" else None
