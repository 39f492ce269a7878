"""Outputs and targets of several numbers a sample, brought to one shape and to a precision in which sums are safe."""

from typing import TYPE_CHECKING, Any

from trainability.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor


def as_rows(outputs: "Tensor", targets: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Outputs and targets as ``(N, D)`` of one real type, float32 at the least.

    Their shapes are the same but for axes of 1 at the end: ``(N, 1)`` outputs meet ``(N,)`` targets sample by sample,
    where torch would compare every sample with every other one.

    Raises:
        ArgumentError: the shapes are others.

    >>> import torch
    >>> outputs, targets = as_rows(torch.zeros(3, 1), torch.tensor([1, 2, 3]))
    >>> outputs.shape, targets.tolist()
    (torch.Size([3, 1]), [[1.0], [2.0], [3.0]])
    """
    if _core(outputs) != _core(targets):
        labels = "" if targets.is_floating_point() else "; labels of classes are for task: classification"
        raise ArgumentError(
            f"outputs should have the shape of the targets, {tuple(targets.shape)}, and the model returns "
            f"{tuple(outputs.shape)}{labels}",
            code="outputs",
        )
    first, second = exact(outputs, targets)
    return first.reshape(len(first), -1), second.reshape(len(second), -1)


def exact(outputs: "Tensor", targets: "Tensor") -> tuple["Tensor", "Tensor"]:
    """The same numbers in float32, or in float64 where one of them is."""
    import torch

    both = torch.promote_types(torch.promote_types(outputs.dtype, targets.dtype), torch.float32)
    return outputs.to(both), targets.to(both)


def check_tensor(task: str, targets: Any) -> None:
    """Raise ArgumentError for targets that are no tensor."""
    from torch import Tensor

    if not isinstance(targets, Tensor):
        raise ArgumentError(f"{task} takes targets in one tensor, not in a {type(targets).__name__}", code="targets")


def _core(t: "Tensor") -> tuple[int, ...]:
    """The shape without axes of 1 at the end; the samples are an axis even if there is one alone."""
    shape = list(t.shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape.pop()
    return tuple(shape)
