"""The remedies that `compare` knows by name, alone or joined by ``+``."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from trainability.errors import ArgumentError
from trainability.remedies import DKS, EOC, IC, SELU, TAT, Init, Normalize, Remedy, Residual


@dataclass(frozen=True)
class Part:
    """One remedy: options of the model, something for `apply_`, or LBE in the loss.

    ``does`` is what only one part of an arm can do. ``order`` is when it is applied: shortcuts, then weights and
    activations, then what stands between the layers. ``against`` is what it is compared with by itself,
    and ``claim`` what its authors say of it.
    """

    what: str
    does: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    remedy: Remedy | None = None
    lbe: bool = False
    order: int = 0
    against: str = "default"
    claim: str = ""


_SHORTCUTS, _WEIGHTS, _NORMS = "shortcuts", "the weights", "normalization"


def _shortcuts(what: str, remedy: Residual) -> Part:
    return Part(what, _SHORTCUTS, model={"scale": remedy.scale}, remedy=remedy)


def _weights(what: str, remedy: Remedy) -> Part:
    return Part(what, _WEIGHTS, remedy=remedy, order=1)


def _norms(what: str, remedy: Remedy) -> Part:
    return Part(what, _NORMS, remedy=remedy, order=2)


_IC_CLAIM = "steadier training, faster convergence and a better end than with BatchNorm alone (Chen et al., 2019)"


def _unit(what: str, unit: str, claim: str) -> Part:
    return Part(what, _NORMS, model={"unit": unit}, against="batchnorm", claim=claim)


PARTS: dict[str, Part] = {
    "default": Part("PyTorch's default initialization", _WEIGHTS),
    "he": _weights("He initialization", Init("he")),
    "orthogonal": _weights("orthogonal initialization with the gain of ReLU", Init("orthogonal")),
    "eoc": _weights("weights and biases at the edge of chaos", EOC()),
    "dks": _weights("activations and weights shaped by DKS", DKS()),
    "tat": _weights("activations and weights shaped by TAT", TAT()),
    "selu": _weights("SELU, with weights of variance 1 / fan-in", SELU()),
    "lbe": Part("LBE in the loss", "the loss", lbe=True, order=3),
    "batchnorm": Part("BatchNorm before every nonlinearity", _NORMS, model={"norm": True}),
    "layernorm": _norms("LayerNorm before every nonlinearity", Normalize("layer")),
    "groupnorm": _norms("GroupNorm before every nonlinearity", Normalize("group")),
    "weightnorm": _norms("weight normalization", Normalize("weight")),
    "ic": replace(_norms("BatchNorm and Dropout before every weight layer", IC()), claim=_IC_CLAIM),
    "residual": _shortcuts("an identity shortcut around every layer", Residual()),
    "rezero": _shortcuts("a shortcut around every layer, whose scale is learned from 0 on", Residual("rezero")),
    "skipinit": _shortcuts(
        "a shortcut around every layer, whose scale is learned from a small one on", Residual("skipinit")
    ),
    "fixup": _shortcuts("a shortcut around every layer, with weights that begin at 0", Residual("fixup")),
    "relu-ic-conv": _unit(
        "residual units of ReLU, IC layer and convolution", "relu-ic-conv", _IC_CLAIM + "; the best of the units"
    ),
    "ic-conv-relu": _unit("residual units of IC layer, convolution and ReLU", "ic-conv-relu", _IC_CLAIM),
    "conv-relu-ic": _unit("residual units of convolution, ReLU and IC layer", "conv-relu-ic", _IC_CLAIM),
}

_UNITS = ("relu-ic-conv", "ic-conv-relu", "conv-relu-ic")

# Two parts that do different things and still do not go together.
_REFUSED: dict[frozenset[str], str] = {
    frozenset(pair): reason
    for shaping in ("tat", "dks", "eoc")
    for pair, reason in (
        *(((shaping, unit), "the BatchNorm of an IC layer undoes the shaping") for unit in _UNITS),
        ((shaping, "batchnorm"), "BatchNorm makes an output depend on the whole batch and undoes the shaping"),
        (
            (shaping, "ic"),
            "the BatchNorm of an IC layer undoes the shaping",
        ),
        ((shaping, "rezero"), "shaping takes sums of fixed weights, and the scale of a shortcut would be learned"),
        ((shaping, "skipinit"), "shaping takes sums of fixed weights, and the scale of a shortcut would be learned"),
    )
}


@dataclass(frozen=True)
class Arm:
    """One side of a comparison. ``base`` is the arm that it differs from in one thing, ``what`` that thing in words."""

    name: str
    what: str
    base: str | None
    model: Mapping[str, Any]
    remedies: tuple[Remedy, ...]
    lbe: bool
    claim: str = ""


@cache
def arm(name: str) -> Arm:
    """The arm of that name.

    Raises:
        ValueError: an unknown part, or parts that do not go together, with the reason.

    >>> arm("tat+lbe").base
    'tat'
    >>> arm("tat+he")
    Traceback (most recent call last):
    ...
    trainability.errors.ArgumentError: tat+he cannot be: tat and he both set the weights
    """
    names = [part.strip().lower() for part in name.split("+")]
    for part in names:
        if not part and len(names) > 1:
            raise ArgumentError(f"{name}: a name is missing beside +", code="empty")
        if part not in PARTS:
            near = difflib.get_close_matches(part, PARTS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ArgumentError(
                f"there is no remedy {part!r}; {hint}choose from {', '.join(PARTS)}, or join some by +",
                code="unknown-choice",
            )
    for number, second in enumerate(names):
        for first in names[:number]:
            if reason := _conflict(first, second):
                raise ArgumentError(f"{name} cannot be: {reason}", code="settings-conflict")
    parts = [PARTS[part] for part in names]
    rest = [*names[:-1], *(["batchnorm"] if names[-1] in _UNITS and len(names) > 1 else [])]
    base = "+".join(rest) or (None if name == "default" else parts[0].against)
    model = {key: value for part in parts for key, value in part.model.items()}
    remedies = tuple(part.remedy for part in sorted(parts, key=lambda part: part.order) if part.remedy)
    return Arm(name, parts[-1].what, base, model, remedies, any(part.lbe for part in parts), parts[-1].claim)


def _conflict(first: str, second: str) -> str | None:
    one, other = PARTS[first], PARTS[second]
    if first == second:
        return f"{first} is there twice"
    if {first, second} & {"fixup"} and _WEIGHTS in (one.does, other.does):
        return f"{first} and {second} both set the weights"
    if {first, second} == {"fixup", "weightnorm"}:
        return "weights that begin at 0 have no direction to normalize"
    if one.does == other.does:
        verb = {_SHORTCUTS: "bring shortcuts", _WEIGHTS: "set the weights", _NORMS: "normalize"}[one.does]
        return f"{first} and {second} both {verb}"
    if "default" in (first, second):
        return "default is the network without the others; leave it out"
    return _REFUSED.get(frozenset((first, second)))
