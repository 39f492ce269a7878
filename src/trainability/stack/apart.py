"""Members that run as modules of their own, joined to the stacked parameters where their gradients belong."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainability.errors import UnsupportedModelError

# Runs the member of a number on tensors of its own, and returns all tensors that come of it.
Run = Callable[[int, Sequence[Tensor]], list[Tensor]]


def joined(
    run: Run, owners: Sequence[tuple[nn.Parameter, list[nn.Parameter]]], inputs: Sequence[Tensor], members: int
) -> list[Tensor]:
    """Run the members one after another, each with its own parameters, and stack what comes of them.

    The gradients of the stacked tensors go through the graphs of the members to the stacked parameters and inputs.

    Args:
        run: runs one member.
        owners: the stacked parameters, each with the members' own.
        inputs: stacked.
        members: their number.
    """
    if torch.is_grad_enabled():
        found: Any = _Joined.apply(run, [own for _, own in owners], members, *(p for p, _ in owners), *inputs)
        return list(found)
    return _stacked([run(member, [x[member] for x in inputs]) for member in range(members)])


class _Joined(torch.autograd.Function):
    """The outputs of all members as a function of what is stacked, with each member's graph within."""

    @staticmethod
    def forward(
        ctx: Any, run: Run, own: list[list[nn.Parameter]], members: int, *stacked: Tensor
    ) -> tuple[Tensor, ...]:
        inputs, wanted = stacked[len(own) :], ctx.needs_input_grad[3 + len(own) :]
        ctx.graphs = []
        for member in range(members):
            leaves = [x[member].detach().requires_grad_(w) for x, w in zip(inputs, wanted, strict=True)]
            with torch.enable_grad():  # a leaf cannot be changed in place, as the inputs may be
                outputs = run(member, [x.clone() if x.requires_grad else x for x in leaves])
            ctx.graphs.append((outputs, [parameters[member] for parameters in own] + leaves))
        results = _stacked([outputs for outputs, _ in ctx.graphs])
        reached = [any(outputs[n].requires_grad for outputs, _ in ctx.graphs) for n in range(len(results))]
        ctx.mark_non_differentiable(*(t for t, by in zip(results, reached, strict=True) if not by))
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        each = [
            gradients(outputs, [None if grad is None else grad[member] for grad in grads], leaves)
            for member, (outputs, leaves) in enumerate(ctx.graphs)
        ]
        return None, None, None, *(_stacked_gradients(found) for found in zip(*each, strict=True))


def gradients(
    outputs: Sequence[Tensor], grads: Sequence[Tensor | None], leaves: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the gradients of leaves, by a backward pass like any other, and leave their own as they were."""
    before = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad and g is not None]
    if pairs:
        torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
    found = [leaf.grad for leaf in leaves]
    for leaf, grad in zip(leaves, before, strict=True):
        leaf.grad = grad
    return found


def _stacked_gradients(each: Sequence[Tensor | None]) -> Tensor | None:
    like = next((grad for grad in each if grad is not None), None)
    if like is None:
        return None
    return torch.stack([torch.zeros_like(like) if grad is None else grad for grad in each])


def stack_alike(*each: Tensor) -> Tensor:
    """Stack what the members return at one place, ``(E, B, ...)``.

    Raises:
        UnsupportedModelError: it is of another shape for another member.
    """
    if any(t.shape != each[0].shape for t in each):
        shapes = ", ".join(str(tuple(t.shape)) for t in each[:3])
        raise UnsupportedModelError(
            "",
            f"the members of a stack return outputs of several shapes ({shapes}), since these depend on the data; "
            "return the same shape for every batch, or train them in stacks of one",
            code="outputs-differ",
        )
    return torch.stack(each)


def _stacked(each: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [stack_alike(*(t.detach() for t in same)) for same in zip(*each, strict=True)]
