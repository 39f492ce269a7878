"""Figures of what the layers of a network hold: the signal, dependence, and what dropout does to it."""

from html import escape
from itertools import product
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from trainability.dependence.dropout import correlation_after_dropout, information_after_dropout
from trainability.report.figures import PALETTE, Arms, style
from trainability.training.history import History


def _add_run(
    figure: go.Figure, name: str, run: History, color: str, x: list[int], y: list[float], *, legend: bool, **place: Any
) -> None:
    """One line over layers; the runs of a remedy share a color and a legend entry."""
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines" if len(x) > 12 else "lines+markers",
        line={"color": color, "width": 1.8},
        marker={"size": 5},
        opacity=0.8,
        name=escape(name),
        legendgroup=name,
        showlegend=legend,
        hovertemplate=f"{escape(name)}, seed {run.seed}<br>layer %{{x}}: %{{y:.4g}}<extra></extra>",
        **place,
    )


def independence_figure(arms: Arms, palette: dict[str, str]) -> go.Figure | None:
    """Correlation and information of pairs of neurons that weight layers receive, at the start and at the end."""
    known = {
        name: [run for run in runs if run.independence and run.independence[0].layers] for name, runs in arms.items()
    }
    if not any(known.values()):
        return None
    measures = {"correlation": "mean |correlation|", "knn": "mutual information, nats"}
    titles = [f"{words}, {when}" for words in measures.values() for when in ("start", "end")]
    figure = make_subplots(
        rows=2, cols=2, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04, vertical_spacing=0.14
    )
    for name, runs in known.items():
        for (number, run), (row, measure), column in product(enumerate(runs), enumerate(measures, 1), (1, 2)):
            layers = run.independence[0 if column == 1 else -1].layers
            x, y = [layer.number for layer in layers], [getattr(layer.measured, measure) for layer in layers]
            first = number == 0 and row == column == 1
            _add_run(figure, name, run, palette[name], x, y, legend=first, row=row, col=column)
    figure.update_xaxes(tickformat="d", nticks=8)
    figure.update_xaxes(title="weight layer", row=2)
    return style(figure, 560).update_layout(legend={"y": 1.07}, margin={"t": 90})


def dropout_figure(arms: Arms) -> go.Figure | None:
    """Effects of dropout on two neurons of an IC layer, beside the theorem's factors."""
    found = next((run.dropout for runs in arms.values() for run in runs if run.dropout), None)
    if found is None:
        return None
    titles = ["correlation, after over before", "mutual information, after over before"]
    figure = make_subplots(rows=1, cols=2, subplot_titles=titles, horizontal_spacing=0.06)
    keeps = [i / 100 for i in range(30, 101)]
    means = sorted({effect.mean for effect in found.effects})
    for color, mean in zip(PALETTE, means, strict=False):
        effects = [effect for effect in found.effects if effect.mean == mean]
        expected = {
            1: [correlation_after_dropout(1.0, keep, mean) for keep in keeps],
            2: [information_after_dropout(1.0, keep) for keep in keeps],
        }
        for column, measure in ((1, "correlation"), (2, "information")):
            shared = {"legendgroup": str(mean), "row": 1, "col": column}
            line = {"color": color, "dash": "dash", "width": 1.2}
            figure.add_scatter(x=keeps, y=expected[column], mode="lines", line=line, showlegend=False, **shared)
            if measure == "information":
                figure.add_scatter(
                    x=[effect.keep for effect in effects],
                    y=[effect.mixture for effect in effects],
                    mode="markers",
                    marker={"color": color, "size": 9, "symbol": "circle-open"},
                    showlegend=False,
                    hovertemplate="keep %{x}: %{y:.4f}, mask unknown<extra></extra>",
                    **shared,
                )
            figure.add_scatter(
                x=[effect.keep for effect in effects],
                y=[getattr(effect, measure) for effect in effects],
                error_y={"type": "data", "array": [2 * getattr(effect, f"{measure}_error") for effect in effects]},
                mode="markers",
                marker={"color": color, "size": 8},
                name=f"mean {mean:g}",
                showlegend=column == 1,
                hovertemplate="keep %{x}: %{y:.4f}<extra></extra>",
                **shared,
            )
    figure.update_xaxes(title="keep probability")
    return style(figure, 400).update_layout(legend={"y": 1.12}, margin={"t": 80})


def signal_figure(arms: Arms, palette: dict[str, str]) -> go.Figure | None:
    """q and c after every layer, at the start and at the end; dashed what the weights predict for the start."""
    known = {name: [run for run in runs if run.signal and run.signal[0].q] for name, runs in arms.items()}
    if not any(known.values()):
        return None
    titles = ["q at the start", "q at the end", "c at the start", "c at the end"]
    figure = make_subplots(
        rows=2, cols=2, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04, vertical_spacing=0.12
    )
    for name, runs in known.items():
        for number, run in enumerate(runs):
            for row, column in product((1, 2), (1, 2)):
                point = run.signal[0 if column == 1 else -1]
                y = point.q if row == 1 else point.c
                first = number == 0 and row == column == 1
                x = list(range(1, len(y) + 1))
                _add_run(figure, name, run, palette[name], x, y, legend=first, row=row, col=column)
        predicted = runs[0].predicted if runs else None
        for row, values in enumerate((predicted.q, predicted.c) if predicted else (), 1):
            figure.add_scatter(
                x=list(range(1, len(values) + 1)),
                y=values,
                mode="lines",
                line={"color": palette[name], "width": 1.1, "dash": "dash"},
                legendgroup=name,
                showlegend=False,
                hovertemplate=f"{escape(name)}, predicted<br>layer %{{x}}: %{{y:.4g}}<extra></extra>",
                row=row,
                col=1,
            )
    figure.update_xaxes(title="hidden layer", row=2)
    figure.update_yaxes(type="log", exponentformat="power", title="mean square q", row=1, col=1)
    figure.update_yaxes(type="log", row=1, col=2)
    figure.update_yaxes(title="cosine c", row=2, col=1)
    figure.update_yaxes(range=[-0.15, 1.05], row=2)
    return style(figure, 620).update_layout(legend={"y": 1.06}, margin={"t": 90})
