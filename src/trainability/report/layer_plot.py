"""Plots of the library's own results, drawn with plotly, which is loaded when one is asked for."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from trainability.errors import MissingExtraError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def layer_figure(names: Sequence[str], panels: Sequence[tuple[str, Sequence[float | None], str]]) -> "Figure":
    """Draw numbers per layer side by side; a panel is a title, one number per layer, and the kind of its axis."""
    try:
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise MissingExtraError(
            "plot() needs plotly: pip install 'trainability[experiments]'", code="missing-extra"
        ) from error
    figure = make_subplots(rows=1, cols=len(panels), subplot_titles=[title for title, _, _ in panels])
    for column, (title, values, scale) in enumerate(panels, 1):
        labels = [escape(name) for name in names]
        figure.add_scatter(x=labels, y=values, mode="lines+markers", name=title, showlegend=False, row=1, col=column)
        figure.update_xaxes(title="layer", type="category", row=1, col=column)
        figure.update_yaxes(type=scale, exponentformat="power", row=1, col=column)
    return figure.update_layout(template="plotly_white", height=380)
