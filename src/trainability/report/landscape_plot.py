"""Loss surfaces, drawn with plotly, which is loaded when one is asked for."""

import math
from html import escape
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from trainability.errors import MissingExtraError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from trainability.surface.result import Landscape

_DECADES = 1.5  # a quantity that spans more is drawn by its logarithm
_PATH = "#D55E00"


def landscape_figure(
    landscape: "Landscape", name: str, values: Tensor, kind: Literal["contour", "surface"]
) -> "Figure":
    """Draw values on the plane, and the path; where they span many powers of ten, by their logarithm."""
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise MissingExtraError(
            "plot() needs plotly: pip install 'trainability[experiments]'", code="missing-extra"
        ) from error
    good = values[values.isfinite()]
    least = float(good.min()) if len(good) else 0.0
    powers = least > 0 and math.log10(float(good.max()) / least) > _DECADES
    heights = (values.log10() if powers else values).T  # rows of a figure lie along b
    shown = [[value if math.isfinite(value) else None for value in row] for row in heights.tolist()]
    label = escape(f"log₁₀ {name}" if powers else name)
    grid = {"x": landscape.a.tolist(), "y": landscape.b.tolist(), "z": shown, "colorscale": "Viridis"}
    bar = {"title": label}
    figure = go.Figure()
    if kind == "contour":
        figure.add_contour(
            **grid,
            colorbar=bar,
            ncontours=24,
            line={"width": 0.6},
            hovertemplate="a %{x:.3g}, b %{y:.3g}: %{z:.4g}<extra></extra>",
        )
        if landscape.path:
            figure.add_scatter(
                x=[point.a for point in landscape.path],
                y=[point.b for point in landscape.path],
                text=[f"point {n}, {point.explained:.1%} in the plane" for n, point in enumerate(landscape.path)],
                mode="lines+markers",
                line={"color": _PATH},
                marker={"size": 6},
                hovertemplate="a %{x:.3g}, b %{y:.3g}: %{text}<extra></extra>",
            )
        figure.add_scatter(
            x=[0], y=[0], mode="markers", marker={"symbol": "x", "size": 9, "color": "white"}, hoverinfo="skip"
        )
        figure.update_xaxes(title="a", constrain="domain")
        figure.update_yaxes(title="b", scaleanchor="x")
    else:
        figure.add_surface(**grid, colorbar=bar)
        figure.update_layout(scene={"xaxis_title": "a", "yaxis_title": "b", "zaxis_title": label})
    return figure.update_layout(template="plotly_white", height=520, showlegend=False)
