"""Weights sharded over processes (FSDP), and the same gathered again."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from trainability.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from trainability.stack.module import Stack


def shard(stack: "Stack", mesh: "DeviceMesh") -> "Stack":
    """Shard the weights of a stack of one layer by layer, by PyTorch's ``fully_shard``.

    Raises:
        UnsupportedModelError: a parameter is a single number, which cannot be sharded; the message names it.
    """
    from torch.distributed.fsdp import fully_shard

    for name, parameter in stack.module.named_parameters():
        if parameter.dim() == 0:
            path, _, last = name.rpartition(".")
            raise UnsupportedModelError(
                path, f"its {last} is a single number, which fsdp cannot shard; take ddp", code="not-shareable"
            )
    layers: list[str] = []
    for path, module in stack.module.named_modules():
        if any(path.startswith(f"{layer}.") for layer in layers):  # what is within a layer goes with it
            continue
        if path and next(module.parameters(recurse=False), None) is not None:
            layers.append(path)
            fully_shard(module, mesh=mesh["data_parallel"])
    fully_shard(stack.module, mesh=mesh["data_parallel"])
    return stack


def gathered(state: Any) -> Any:
    """The same nest of dictionaries and lists with every tensor gathered. All processes take part."""
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, Mapping):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value) for value in state)
    return state


def sharded_like(value: Tensor, like: Tensor) -> Tensor:
    """A tensor sharded like another one of its shape; unchanged where that is not sharded."""
    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


def load_weights(module: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load gathered weights into a module whose own may be sharded."""
    own = module.state_dict()
    module.load_state_dict({name: sharded_like(value, own[name]) for name, value in weights.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the gathered state of an optimizer whose weights may be sharded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = {
        number: {k: sharded_like(v, parameters[number]) if isinstance(v, Tensor) else v for k, v in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": kept})
