"""Recording the operations of one call of a model, without computing anything or changing the model."""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from trainability.errors import UnsupportedModelError
from trainability.introspect.run import observing
from trainability.introspect.torch_private import tree_leaves


@dataclass(frozen=True)
class Recording:
    """The operations of one call.

    Attributes:
        module: runs them, on the tensors and inputs in the order of its placeholders.
        tensors: by placeholder, the tensors that the model holds, and None for inputs.
        names: of those that are parameters or buffers; one that has several names has the first.
        parameters: which of the names are of parameters.
        inputs: by placeholder, the tensors among the inputs of the call.
    """

    module: fx.GraphModule
    tensors: dict[str, Tensor | None]
    names: dict[str, str]
    parameters: frozenset[str]
    inputs: dict[str, Tensor]

    @property
    def graph(self) -> fx.Graph:
        """The operations."""
        return self.module.graph


def record(model: nn.Module, inputs: Any) -> Recording:
    """The operations of ``model(inputs)`` at evaluation.

    Raises:
        UnsupportedModelError: the model's code cannot be recorded, as where it decides on the values of activations.
    """
    from torch.export.graph_signature import InputKind  # takes a second to import

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    if isinstance(inputs, Mapping):
        kwargs = dict(inputs)
    else:
        args = tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)
    running: list[str] = [""]
    with observing(model), _following(model, running), _quiet(), torch.no_grad():
        model.eval()
        try:
            program = torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:  # the model's own code runs in there, on tensors without values
            raise _explained(error, running[-1]) from error
    tensors: dict[str, Tensor | None] = {}
    names: dict[str, str] = {}
    parameters: set[str] = set()
    first: dict[int, str] = {}
    given: dict[str, Tensor] = {}
    leaves = iter(tree_leaves(program.example_inputs))
    held = {**program.state_dict, **program.constants}
    for spec in program.graph_signature.input_specs:
        tensor = None if spec.kind == InputKind.USER_INPUT else held.get(str(spec.target))
        tensors[spec.arg.name] = tensor
        if spec.kind == InputKind.USER_INPUT and isinstance(value := next(leaves), Tensor):
            given[spec.arg.name] = value
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            names[spec.arg.name] = name = first.setdefault(id(tensor), str(spec.target))
            if spec.kind == InputKind.PARAMETER:
                parameters.add(name)
    return Recording(program.graph_module, tensors, names, frozenset(parameters), given)


def _explained(error: Exception, path: str) -> UnsupportedModelError:
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    if "data-dependent" in text or "data dependent" in text or "DataDependent" in type(error).__name__:
        return UnsupportedModelError(
            path,
            "its forward decides on the values of activations (dynamic control flow), so it is a different network for "
            "every input and has no graph; take the decision out of forward, or shape the parts on their own",
            code="dynamic-control-flow",
        )
    return UnsupportedModelError(
        path, f"its operations cannot be recorded ({type(error).__name__}: {text})", code="not-recordable"
    )


@contextmanager
def _following(model: nn.Module, running: list[str]) -> Iterator[None]:
    """Keep the path of the module that runs, innermost last; after an error it is the one that failed."""
    paths = {id(module): path for path, module in model.named_modules()}

    def enter(module: nn.Module, _args: Any) -> None:
        running.append(paths.get(id(module), running[-1]))

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        running.pop()

    everywhere = nn.modules.module
    with everywhere.register_module_forward_pre_hook(enter), everywhere.register_module_forward_hook(leave):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch logs and prints when a model cannot be recorded: warnings, tracebacks and dumps of graphs."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
