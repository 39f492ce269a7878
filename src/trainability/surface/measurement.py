"""Measuring the loss surface around a model: `landscape`."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from trainability.errors import (
    ArgumentError,
    ArgumentTypeError,
    MissingExtraError,
    UnsupportedModelError,
    check_choice,
    check_number,
    check_whole,
)
from trainability.introspect.run import RandomState, unwrap

if TYPE_CHECKING:
    from trainability.lbe.module import LBE
    from trainability.surface.result import Landscape
    from trainability.surface.scores import Batches, Scores

_SHARE = 4  # of the free memory, this part may hold samples


def landscape(
    model: nn.Module,
    data: Any,
    loss_fn: Callable[[Any, Any], Any],
    *,
    directions: Literal["filter", "tensor", "hessian"] = "filter",
    size: int = 25,
    span: float = 1.0,
    quantities: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    batchnorm: Literal["frozen", "recalibrated"] = "frozen",
    path: Iterable[Any] = (),
    lbe: "LBE | None" = None,
    seed: int = 0,
    batch_size: int = 256,
    members: int | None = None,
) -> "Landscape":
    """Measure the loss on a plane through the weights of a model, L(w + a d₁ + b d₂).

    The model, which stays as it is, runs in evaluation. Points of the plane run at once as members of a stack, where
    that is possible. Only parameters that require gradients move.

    Args:
        model: any module.
        data: a pair ``(inputs, targets)`` of tensors or arrays, a map-style dataset, or a loader; inputs are given to
            the model as in `trainability.measure`. Every point is measured on all samples, so take a few thousand.
        loss_fn: of the model's outputs and the targets: one number, the mean over the batch, or one for each sample.
        directions: ``"filter"``, Gaussian with the norms of the filters of the weights, and none for biases and
            normalizations; ``"tensor"``, Gaussian with the norm of each parameter; ``"hessian"``, the two eigenvectors
            of the Hessian of the loss whose eigenvalues are largest in absolute value, of length 1.
        size: points along each direction, an odd number, so that the model itself is one.
        span: a and b go from ``-span`` to ``span``.
        quantities: other functions of outputs and targets by name, whose means over samples are measured too.
        batchnorm: ``"frozen"``: running statistics are those of the model at every point; ``"recalibrated"``: at every
            point the means of those of all batches.
        path: state dicts, or models, of earlier steps of training, which are projected onto the plane.
        lbe: the `trainability.LBE` of the model: ``"L_BE"`` with its layers, targets and strength, and ``"total"``,
            loss + |loss| · L_BE, are measured too, in evaluation, on batches of ``batch_size``. Then points are
            measured one after another.
        seed: of random directions, or of the start of the search for eigenvectors.
        batch_size: samples that run at once; a loader that cannot be read by number has its own.
        members: points that run at once; as many as are worth it and fit into memory unless given.

    Raises:
        UnsupportedModelError: the model has no parameters that are trained, is scripted, cannot be copied, or has no
            Hessian.
        ArgumentError: an argument cannot be used, or the loss of the model itself is not finite.
        DataError: the data have another form, or are empty.
        MissingExtraError: what comes with ``trainability[experiments]`` is not installed.

    Reference: Li et al. (2018), *Visualizing the loss landscape of neural nets*.

    >>> import torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(64, 4)
    >>> surface = landscape(nn.Linear(4, 1, bias=False), (x, x.sum(1, keepdim=True)), nn.functional.mse_loss, size=5)
    >>> surface
    <Landscape of loss: 5 × 5 points, directions 'filter'>
    >>> surface.values["loss"].shape, surface.center() == surface.values["loss"][2, 2]
    (torch.Size([5, 5]), tensor(True))
    """
    try:
        import numpy  # noqa: F401
        import psutil  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"landscape needs {error.name}, which comes with an extra: pip install 'trainability[experiments]'",
            code="missing-extra",
        ) from error
    from trainability.data.own import own_part
    from trainability.stack.memory import free_bytes
    from trainability.surface.directions import random_directions, trained_parameters
    from trainability.surface.plane import Plane
    from trainability.surface.points import OneByOne, Runner, means_at, runner_of
    from trainability.surface.result import Landscape
    from trainability.surface.scores import Batches, Scores

    check_choice("directions", directions, ("filter", "tensor", "hessian"))
    check_choice("batchnorm", batchnorm, ("frozen", "recalibrated"))
    _check_numbers(size, span, seed, batch_size, members)
    scores = Scores(loss_fn, quantities, lbe is not None)
    model = unwrap(model)
    parameters = trained_parameters(model)
    like = next(iter(parameters.values()))
    random_state = RandomState(model)
    try:
        twin, eigenvalues = _copied(model), None
        batches = Batches(own_part(data, "data"), batch_size, like, free_bytes(like.device) // _SHARE)
        if directions == "hessian":
            from trainability.surface.curvature import leading_eigenvectors

            steps, eigenvalues = leading_eigenvectors(twin, lambda: _mean_losses(twin, batches, scores), seed)
        else:
            steps = random_directions(model, directions, seed)
        plane = Plane(parameters, steps)
        places = tuple(plane.project(weights, f"path, number {n}") for n, weights in enumerate(path))
        recalibrated = batchnorm == "recalibrated"
        alone: Runner = OneByOne(twin)
        axis = torch.linspace(-span, span, size, dtype=torch.float64)
        axis[size // 2] = 0.0
        points = torch.cartesian_prod(axis, axis)
        with _read(lbe, twin, scores):
            center = means_at(alone, plane, torch.zeros(1, 2), batches, scores, recalibrated)
            _check_center(float(center[0, 0]))
            runner, why = alone, "as activations are read"
            if lbe is None:
                runner, why = runner_of(twin, plane, next(iter(batches)), len(points), members)
            means = means_at(runner, plane, points, batches, scores, recalibrated)
        values = means.T.unflatten(1, (size, size))
    finally:
        random_state.restore()
    return Landscape(
        axis,
        axis.clone(),
        dict(zip(scores.names, values, strict=True)),
        places,
        directions,
        batchnorm,
        sum(len(batch) for batch in batches),
        eigenvalues,
        f"{runner.members} points at once" if runner.members > 1 else f"one point after another ({why})",
    )


def _check_numbers(size: int, span: float, seed: int, batch_size: int, members: int | None) -> None:
    check_whole("size", size, least=3)
    if size % 2 == 0:
        raise ArgumentError(
            f"size is {size}, and the middle of the grid would lie between points; take {size + 1}", code="even-size"
        )
    check_number("span", span)
    if span <= 0:
        raise ArgumentError(f"span is {span}; it must be above 0", code="out-of-range")
    check_whole("seed", seed, least=0)
    check_whole("batch_size", batch_size)
    if members is not None:
        check_whole("members", members)


def _copied(model: nn.Module) -> nn.Module:
    """A copy that may be changed, in evaluation."""
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise UnsupportedModelError(
            "", "it is on the meta device and has no values; load its weights first", code="no-values"
        )
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:  # whatever a model holds may not be made to be copied
        raise UnsupportedModelError(
            "", f"it cannot be copied ({type(error).__name__}: {error})", code="not-copyable"
        ) from error


@contextmanager
def _read(lbe: "LBE | None", model: nn.Module, scores: "Scores") -> Iterator[None]:
    """Within it, the activations of a model are read for the term of an LBE, if there is one."""
    if lbe is None:
        yield
        return
    from trainability.lbe.module import LBE
    from trainability.surface.entropy_term import EntropyTerm

    if not isinstance(lbe, LBE):
        raise ArgumentTypeError(f"lbe is a trainability.LBE, not {type(lbe).__name__}", code="wrong-type")
    with EntropyTerm(lbe, model) as term:
        scores.term = term.value
        yield


def _mean_losses(model: nn.Module, batches: "Batches", scores: "Scores") -> Iterator[tuple[Tensor, float]]:
    """The mean loss of each batch, and its share of the samples."""
    from trainability.surface.points import OneByOne

    total = sum(len(batch) for batch in batches)
    for batch in batches:
        yield scores.mean_loss(OneByOne(model).run(batch.inputs), batch), len(batch) / total


def _check_center(loss: float) -> None:
    if not math.isfinite(loss):
        raise ArgumentError(
            f"the loss of the model itself is {loss}; look for NaN in its weights and in the data", code="nan"
        )
