"""The loss surface that was found."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from trainability.errors import check_choice
from trainability.surface.plane import PathPoint

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Landscape:
    """The loss, and whatever else was asked for, on a grid in a plane through a model's weights.

    Attributes:
        a: steps along the first direction, ``(size,)``, float64.
        b: steps along the second.
        values: ``(size, size)`` by name, ``"loss"`` first; ``values["loss"][i, j]`` is at ``a[i]`` and ``b[j]``.
        path: earlier weights, projected onto the plane.
        directions: the word that chose them.
        batchnorm: whether running statistics were ``"frozen"`` or ``"recalibrated"``.
        samples: of which each value is the mean.
        eigenvalues: of the Hessian along its eigenvectors, for ``directions="hessian"``.
        execution: how many points ran at once, and why it was one.
    """

    a: Tensor
    b: Tensor
    values: Mapping[str, Tensor]
    path: tuple[PathPoint, ...]
    directions: str
    batchnorm: str
    samples: int
    eigenvalues: tuple[float, float] | None
    execution: str

    def center(self, name: str = "loss") -> float:
        """The value of the model itself."""
        middle = len(self.a) // 2
        return float(self._named(name)[middle, middle])

    def minimum(self, name: str = "loss") -> tuple[float, float, float]:
        """The least finite value on the grid, and its a and b."""
        values = self._named(name)
        row, column = divmod(int(values.nan_to_num(float("inf"), float("inf"), float("inf")).argmin()), len(self.b))
        return float(values[row, column]), float(self.a[row]), float(self.b[column])

    def rim(self, name: str = "loss") -> Tensor:
        """The values along the edge of the grid, one after another."""
        values = self._named(name)
        edge = torch.ones(values.shape, dtype=torch.bool)
        edge[1:-1, 1:-1] = False
        return values[edge]

    def _named(self, name: str) -> Tensor:
        check_choice("name", name, tuple(self.values))
        return self.values[name]

    def plot(self, name: str | None = None, kind: Literal["contour", "surface"] = "contour") -> "Figure":
        """Draw one quantity with the path: level lines, or a surface in space (needs plotly).

        Args:
            name: of the quantity; the loss unless given.
            kind: ``"contour"`` or ``"surface"``.
        """
        from trainability.report.landscape_plot import landscape_figure

        check_choice("kind", kind, ("contour", "surface"))
        return landscape_figure(self, name or "loss", self._named(name or "loss"), kind)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts and numbers, ready for JSON, in which None stands for what is not finite."""
        from trainability.training.files import finite

        content: dict[str, Any] = finite(
            {
                "directions": self.directions,
                "batchnorm": self.batchnorm,
                "samples": self.samples,
                "a": self.a.tolist(),
                "b": self.b.tolist(),
                "values": {name: values.tolist() for name, values in self.values.items()},
                "path": [asdict(point) for point in self.path],
                "eigenvalues": list(self.eigenvalues) if self.eigenvalues else None,
                "execution": self.execution,
            }
        )
        return content

    def __repr__(self) -> str:
        size = len(self.a)
        return f"<Landscape of {', '.join(self.values)}: {size} × {size} points, directions {self.directions!r}>"

    def __str__(self) -> str:
        size, span = len(self.a), float(self.a[-1])
        lines = [
            f"{size} × {size} points, a and b within ±{span:g}, directions {self.directions!r}, BatchNorm "
            f"{self.batchnorm}, {self.samples} samples, {self.execution}"
        ]
        for name in self.values:
            least, a, b = self.minimum(name)
            center, rim = self.center(name), self.rim(name)
            good = rim[rim.isfinite()]
            lines.append(f"{name}: {center:.4g} at the center, minimum {least:.4g} at a = {a:.3g}, b = {b:.3g}")
            if len(good):
                low, middle, high = (float(t) - center for t in (good.min(), good.median(), good.max()))
                lines[-1] += f"; at the rim {low:+.3g} to {high:+.3g}, in the median {middle:+.3g}"
            if broken := int((~self.values[name].isfinite()).sum()):
                lines[-1] += f"; not finite at {broken} points"
        if self.eigenvalues:
            lines.append("eigenvalues of the Hessian: {:.4g} along a, {:.4g} along b".format(*self.eigenvalues))
        if self.path:
            shares = [point.explained for point in self.path]
            lines.append(
                f"path of {len(self.path)}: the plane holds {min(shares):.1%} to {max(shares):.1%} of their squared "
                "distance from the center"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"
