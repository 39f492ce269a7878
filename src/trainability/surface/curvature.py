"""The leading eigenvectors of the Hessian of a loss, by products of the Hessian with vectors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainability.errors import ArgumentError, UnsupportedModelError
from trainability.surface.directions import Direction, trained_parameters

_SMALL = 24  # up to so many weights the Hessian is formed
_RESTARTS = 200


def leading_eigenvectors(
    model: nn.Module, mean_losses: Callable[[], Any], seed: int
) -> tuple[list[Direction], tuple[float, float]]:
    """The two eigenvectors whose eigenvalues are largest in absolute value, of length 1, and these eigenvalues.

    Found by the Lanczos method of ARPACK from a start that ``seed`` draws; the largest entry of each is positive.

    Args:
        model: with trained parameters.
        mean_losses: yields the mean loss of each batch of the data, with a graph, and the batch's share of the samples.
        seed: of the start.

    Raises:
        UnsupportedModelError: fewer than two weights, an operation that has no second derivative, a Hessian that is
            zero, or one whose eigenvectors are not found.
    """
    parameters = list(trained_parameters(model).values())
    count = sum(p.numel() for p in parameters)
    if count < 2:
        raise UnsupportedModelError("", "it has one weight, and a plane needs two directions", code="too-few")
    exact = torch.float64 if all(p.dtype == torch.float64 for p in parameters) else torch.float32
    dtype = np.float64 if exact == torch.float64 else np.float32

    def product(vector: Any) -> Any:
        steps = _split(torch.from_numpy(np.array(vector, dtype).reshape(-1)), parameters)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # others have no second derivative
            return _product(parameters, steps, mean_losses).to("cpu", exact).numpy()

    if count <= _SMALL:
        columns = [product(row) for row in np.eye(count, dtype=dtype)]
        values, vectors = np.linalg.eigh((np.stack(columns) + np.stack(columns, 1)) / 2)
    else:
        start = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        operator = LinearOperator((count, count), matvec=product, dtype=np.dtype(dtype))
        try:
            values, vectors = eigsh(
                operator,
                k=2,
                v0=start.numpy().astype(dtype),
                tol=1e-9 if exact == torch.float64 else 1e-4,
                maxiter=_RESTARTS,
            )
        except ArpackNoConvergence as error:
            raise UnsupportedModelError(
                "",
                "the leading eigenvectors of its Hessian were not found, as happens where many eigenvalues are alike; "
                "take directions='filter'",
                code="not-converged",
            ) from error
    order = np.argsort(-np.abs(values))[:2]
    if not np.isfinite(values).all() or not values[order[0]]:
        raise UnsupportedModelError(
            "", "the Hessian of its loss is zero or not finite; take directions='filter'", code="no-curvature"
        )
    found = []
    for column in order:
        vector = torch.from_numpy(np.ascontiguousarray(vectors[:, column]))
        vector = vector * vector[vector.abs().argmax()].sign() / vector.norm()
        steps = _split(vector, parameters)
        found.append(dict(zip(trained_parameters(model), steps, strict=True)))
    return found, (float(values[order[0]]), float(values[order[1]]))


def _product(parameters: list[nn.Parameter], steps: list[Tensor], mean_losses: Callable[[], Any]) -> Tensor:
    """The Hessian of the mean over all samples times a vector, flat."""
    total = [torch.zeros_like(p) for p in parameters]
    for loss, share in mean_losses():
        if not loss.requires_grad:
            raise ArgumentError(
                "the loss has no gradient, so no Hessian; loss_fn must be made of operations of torch that have one",
                code="no-gradient",
            )
        try:
            slopes = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
            pairs = [(g, s) for g, s in zip(slopes, steps, strict=True) if g is not None and g.requires_grad]
            if not pairs:  # the loss is linear
                continue
            reached = torch.autograd.grad(
                torch.stack([(g * s).sum() for g, s in pairs]).sum(), parameters, allow_unused=True
            )
        except RuntimeError as error:
            raise UnsupportedModelError(
                "",
                f"the loss cannot be differentiated twice ({error}); take directions='filter'",
                code="no-second-derivative",
            ) from error
        total = [t if part is None else t + share * part for t, part in zip(total, reached, strict=True)]
    return torch.cat([t.flatten() for t in total])


def _split(vector: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """A flat vector in the shapes of the parameters."""
    parts = vector.split([p.numel() for p in parameters])
    return [part.view(p.shape).to(p) for part, p in zip(parts, parameters, strict=True)]
