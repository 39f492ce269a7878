"""What a pass of a stack gives, its gradients too, beside what its members give by themselves."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainability.introspect.hooks import tensors_in
from trainability.introspect.run import call, observing
from trainability.stack.apart import gradients
from trainability.stack.inputs import Inputs, map_inputs
from trainability.stack.members import silence_
from trainability.stack.module import Stack

# By so many times their precision the gradients of two ways of computing may differ, measured by the largest of all.
_ROUNDING = 1e4


class Results(NamedTuple):
    """What a pass returns, and the gradients of its parameters."""

    outputs: list[Tensor]
    gradients: list[Tensor | None]

    def of(self, member: int) -> "Results":
        """Those of one member, of the stacked ones."""
        return Results([t[member] for t in self.outputs], [_dense(g, member) for g in self.gradients])


def _results(outputs: Any, parameters: Iterable[nn.Parameter]) -> Results:
    found = list(tensors_in(outputs))
    directions = [t.detach().cos() if t.requires_grad else None for t in found]
    reached = gradients(found, directions, [p for p in parameters if p.requires_grad])
    return Results([t.detach() for t in found], reached)


def of_stack(stack: Stack, inputs: Inputs, training: bool) -> Results:
    """The results of all members, whose dropouts drop nothing."""
    with observing(stack.module), torch.enable_grad():
        stack.module.train(training)
        silence_(stack.module)
        return _results(stack(map_inputs(Tensor.clone, inputs)).outputs, stack.module.parameters())


def of_members(stack: Stack, each: Sequence[Any]) -> list[Results]:
    """The same of each member as the module that was given."""
    found = []
    for number, (model, inputs) in enumerate(zip(stack.models, each, strict=True)):
        with observing(model), torch.enable_grad():
            model.train()
            silence_(model)
            torch.manual_seed(number)
            found.append(_results(call(model, map_inputs(Tensor.clone, inputs)), model.parameters()))
    return found


def agree(found: Results, expected: Results) -> bool:
    """Return True for results of two ways of computing the same."""
    if not all(close(a, b) for a, b in zip(found.outputs, expected.outputs, strict=True)):
        return False
    reached = [g for g in map(_dense, expected.gradients) if g is not None]
    # A gradient that is zero, as of a bias in front of a BatchNorm, is rounding of what is about as large as others.
    noise = max((min(_ROUNDING * torch.finfo(g.dtype).eps, 0.1) * _largest(g) for g in reached), default=0.0)
    pairs = zip(map(_dense, found.gradients), map(_dense, expected.gradients), strict=True)
    return all(_reached_alike(own, theirs, noise) for own, theirs in pairs)


def _reached_alike(a: Tensor | None, b: Tensor | None, noise: float) -> bool:
    """Agreement of two gradients; none, as of a member that does not reach a parameter, is as good as zero."""
    if a is None or b is None:
        return not any(t.any() for t in (a, b) if t is not None)
    return close(a, b, noise)


def _dense(gradient: Tensor | None, member: int | None = None) -> Tensor | None:
    """A gradient, or that of a member, in the usual layout."""
    if gradient is None:
        return None
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    return dense if member is None else dense[member]


def close(a: Tensor, b: Tensor, least: float = 0.0) -> bool:
    """Return True for tensors as close as two ways of computing them come, measured by the largest entry."""
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    rtol = max(1e-3, 4 * torch.finfo(a.dtype).eps)
    return a.shape == b.shape and torch.allclose(
        a, b, rtol=rtol, atol=max(least, 0.1 * rtol * _largest(a)), equal_nan=True
    )


def _largest(t: Tensor) -> float:
    """The absolute value of the largest finite entry."""
    return float(t.abs().nan_to_num(0.0, 0.0, 0.0).max()) if t.numel() else 0.0
