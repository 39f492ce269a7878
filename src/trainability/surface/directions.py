"""Random directions in the space of a model's weights, as long as the weights are."""

from typing import Literal

import torch
from torch import Tensor, nn

from trainability.errors import UnsupportedModelError
from trainability.introspect.norms import NORMS
from trainability.introspect.weight_layers import weight_layout

Direction = dict[str, Tensor]
"""A step for every trained parameter, by its name."""

_LEAST = 1e-10  # added to the norm that is divided by, as in the published code


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training moves, by name.

    Raises:
        UnsupportedModelError: there are none.
    """
    found = {n: p for n, p in model.named_parameters() if p.requires_grad and p.is_floating_point() and p.numel()}
    if not found:
        raise UnsupportedModelError(
            "", "it has no parameters that are trained, so no weights to vary", code="no-parameters"
        )
    return found


def random_directions(model: nn.Module, norm: Literal["filter", "tensor"], seed: int) -> list[Direction]:
    """Draw two Gaussian directions.

    With ``"filter"`` each filter d_j of a weight gets the norm of the filter w_j of the weights, d_j ||w_j|| / ||d_j||,
    and what has no filters, as biases and the parameters of normalizations, stays as it is. A filter is all that leads
    to one output: a row of a linear layer. With ``"tensor"`` each parameter's d gets the norm of the parameter, biases
    included.

    Reference: Li et al. (2018), section 4; the published code of Peer et al. (2022) for ``"tensor"``.

    Raises:
        UnsupportedModelError: no parameter would move.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = trained_parameters(model)
    scaled = _like_filters if norm == "filter" else _like_tensor
    found = []
    for _ in range(2):
        drawn = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in parameters.items()}
        found.append({name: scaled(model, name, d).to(parameters[name]) for name, d in drawn.items()})
    if not any(d.any() for d in found[0].values()):
        raise UnsupportedModelError(
            "",
            f"with directions={norm!r} no weight moves: all are zero, or belong to no filter; take another word, or "
            "weights that are not zero",
            code="no-direction",
        )
    return found


def _like_tensor(model: nn.Module, name: str, d: Tensor) -> Tensor:
    weight = model.get_parameter(name).detach().to("cpu", torch.float64)
    scaled: Tensor = d * (weight.norm() / (d.norm() + _LEAST))
    return scaled


def _like_filters(model: nn.Module, name: str, d: Tensor) -> Tensor:
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    if d.dim() < 2 or isinstance(module, NORMS):
        return torch.zeros_like(d)
    layout = weight_layout(module) if own == "weight" else None
    groups, axis = (layout.groups, layout.output_axis) if layout else (1, 0)
    parts = d.unflatten(0, (groups, -1))
    weight = model.get_parameter(name).detach().to("cpu", torch.float64).unflatten(0, (groups, -1))
    within = [dim for dim in range(1, parts.dim()) if dim != 1 + axis]
    size, length = (torch.linalg.vector_norm(t, dim=within, keepdim=True) for t in (weight, parts))
    scaled: Tensor = parts * (size / (length + _LEAST))
    return scaled.flatten(0, 1)
