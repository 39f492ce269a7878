"""Optimizers by name, one for every member of a stack."""

import difflib
import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from trainability.errors import ArgumentError

_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)  # on every device
# They need a closure, or gradients of another kind, or hold no state that could be written down.
_UNFIT = {"lbfgs", "sparseadam", "optimizer"}


def optimizer_class(name: str) -> type[Optimizer]:
    """Find an optimizer in torch.optim, or in the pytorch-optimizer package, by its name in any case.

    Raises:
        ValueError: there is none, or it cannot be used here; the message suggests the nearest name.

    >>> optimizer_class("AdamW")
    <class 'torch.optim.adamw.AdamW'>
    """
    key = name.lower().replace("-", "").replace("_", "")
    own = {n.lower(): c for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, Optimizer)}
    if key in _UNFIT:
        raise ArgumentError(f"{name} cannot be used: it needs a closure or sparse gradients", code="optimizer-unfit")
    # torch's Muon refuses biases; the package's takes them in groups of another kind.
    if key in own and key != "muon":
        return own[key]
    try:
        import pytorch_optimizer
    except ImportError:
        near = difflib.get_close_matches(key, own, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        more = "More names need: pip install 'trainability[optimizers]'"
        raise ArgumentError(f"torch.optim has no {name}; {hint}{more}", code="unknown-choice") from None
    known = [str(n).lower() for n in pytorch_optimizer.get_supported_optimizers()]
    if key not in known:
        near = difflib.get_close_matches(key, [*own, *known], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ArgumentError(f"there is no optimizer {name}{hint}", code="unknown-choice")
    found: type[Optimizer] = pytorch_optimizer.load_optimizer(key)
    return found


def build(
    name: str,
    weights: Sequence[nn.Parameter],
    alpha: Sequence[nn.Parameter],
    *,
    lr: float,
    weight_decay: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Optimizer:
    """Build an optimizer for the weights of one network and the targets of its LBE, which are never decayed.

    Raises:
        ValueError: an unknown name, or options that it does not take.
    """
    kind = optimizer_class(name)
    given = dict(options or {})
    accepted = inspect.signature(kind).parameters
    for option in given:
        if option not in accepted:
            near = difflib.get_close_matches(option, accepted, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ArgumentError(f"{kind.__name__} has no option {option}{hint}", code="unknown-setting")
    if "weight_decay" in accepted:
        given["weight_decay"] = weight_decay
    elif weight_decay:
        raise ArgumentError(f"{kind.__name__} has no weight_decay", code="unknown-setting")
    if kind in _FUSED and not {"fused", "foreach"} & given.keys():
        given["fused"] = True
    weights = [p for p in weights if p.requires_grad]
    groups: list[dict[str, Any]]
    if "muon" in kind.__name__.lower():
        matrices = [p for p in weights if p.dim() > 1][:-1]  # the classifier's is not among them
        chosen = {id(p) for p in matrices}
        rest = [p for p in weights if id(p) not in chosen]
        groups = [{"params": matrices, "use_muon": True}, {"params": [*rest, *alpha], "use_muon": False}]
    else:
        groups = [{"params": weights}]
        if alpha:
            groups.append({"params": list(alpha), **({"weight_decay": 0.0} if "weight_decay" in accepted else {})})
    try:
        make: Callable[..., Optimizer] = kind
        return make([g for g in groups if g["params"]], lr=lr, **given)
    except Exception as error:  # each of them checks in its own way
        raise ArgumentError(f"{kind.__name__} refuses these options: {error}", code="optimizer-options") from None


def check(name: str, *, lr: float, weight_decay: float, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an optimizer that cannot be made so, or that needs more than a gradient for a step."""
    weights = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]
    optimizer = build(name, weights, [nn.Parameter(torch.ones(3))], lr=lr, weight_decay=weight_decay, options=options)
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.ones_like(weight)
    try:
        optimizer.step()
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ArgumentError(
            f"{name} cannot be used: a step from gradients alone fails ({reason})", code="optimizer-unfit"
        ) from None
    kept = io.BytesIO()
    torch.save(optimizer.state_dict(), kept)
    kept.seek(0)
    try:
        torch.load(kept, weights_only=True)
    except Exception:  # it holds objects of its own
        raise ArgumentError(
            f"{name} cannot be used: reading its saved state back would run code from the file",
            code="optimizer-unfit",
        ) from None
