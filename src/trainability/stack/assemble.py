"""Making one module of several networks, or saying why they are not of one architecture."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from trainability.errors import UnsupportedModelError
from trainability.stack.members import Turn, stand_in


def assemble(models: list[nn.Module], turn: Turn) -> nn.Module:
    """A copy of the first model with the parameters and buffers of all, stacked, and with stand-ins where needed."""
    _check_alike(models)
    try:
        module = copy.deepcopy(models[0])
    except Exception as error:  # whatever a model holds may not be made to be copied
        raise UnsupportedModelError(
            "", f"it cannot be copied, as a stack has to ({type(error).__name__}: {error})", code="not-copyable"
        ) from error
    _stack_tensors(module, models)
    like = next(iter(models[0].parameters()), torch.empty(0))
    substitutes: dict[int, nn.Module | None] = {}
    for path, own in models[0].named_modules(remove_duplicate=False):
        if id(own) not in substitutes:  # what is shared stays shared
            substitutes[id(own)] = stand_in(path, [m.get_submodule(path) for m in models], turn, like)
        substitute = substitutes[id(own)]
        if substitute is not None:
            substitute.train(own.training)
            if not path:
                return substitute
            module.set_submodule(path, substitute)
    return module


def _stack_tensors(module: nn.Module, models: list[nn.Module]) -> None:
    """Put the stacked parameters and buffers of the models into a copy of one of them; what was shared stays shared."""
    parameters = [dict(m.named_parameters()) for m in models]
    buffers = [dict(m.named_buffers()) for m in models]
    stacked: dict[int, Any] = {}
    for name, parameter in module.named_parameters():
        values = torch.stack([own[name].detach() for own in parameters])
        stacked[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
    for name, buffer in module.named_buffers():
        stacked[id(buffer)] = torch.stack([own[name] for own in buffers])
    for holder in module.modules():
        for tensors in (holder._parameters, holder._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = stacked[id(tensor)]


def _check_alike(models: list[nn.Module]) -> None:
    """Raise UnsupportedModelError where a model is not of the first one's architecture."""
    first = dict(models[0].named_modules())
    shapes = _shapes(models[0])
    for number, model in enumerate(models[1:], 1):
        modules = dict(model.named_modules())
        for path, own in first.items():
            other = modules.get(path)
            if other is None or type_before_parametrizations(other) is not type_before_parametrizations(own):
                what = "nothing" if other is None else type(other).__name__
                raise UnsupportedModelError(
                    path, f"member 0 has {type(own).__name__} here and member {number} {what}", code="not-alike"
                )
        if extra := sorted(modules.keys() - first.keys()):
            raise UnsupportedModelError(extra[0], f"member {number} has it and member 0 has not", code="not-alike")
        found = _shapes(model)
        for name in sorted(shapes.keys() | found.keys()):
            if shapes.get(name) != found.get(name):
                path = name.rpartition(".")[0]
                raise UnsupportedModelError(
                    path,
                    f"{name} is {_say(shapes, name)} in member 0, {_say(found, name)} in {number}",
                    code="not-alike",
                )


def _shapes(model: nn.Module) -> dict[str, Any]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: (tuple(t.shape), t.dtype, "trained" if t.requires_grad else "not trained") for name, t in tensors}


def _say(shapes: dict[str, Any], name: str) -> str:
    return " ".join(map(str, shapes[name])) if name in shapes else "absent"
