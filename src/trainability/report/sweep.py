"""The report of a sweep: which values led where, by validation accuracy."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from math import log10
from pathlib import Path
from statistics import mean
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from trainability.experiments.recipe import Range, Recipe
from trainability.experiments.study import Row
from trainability.report.figures import style
from trainability.report.page import environment, figure_html
from trainability.training.files import write_whole

_COLORS = ["#440154", "#21918c", "#6ab043"]  # no yellow, which thin lines do not show on white


def write_sweep_report(
    recipe: Recipe,
    found: Sequence[Row],
    lost: Sequence[dict[str, Any]],
    results: dict[str, Any],
    out: Path,
    left_out: Sequence[int] = (),
) -> Path:
    """Write ``report.html`` and ``results.json`` into ``out``, both or neither; return the report's path."""
    html = render_sweep(recipe, found, lost, left_out)
    write_whole({out / "results.json": json.dumps(results), out / "report.html": html})
    return out / "report.html"


def render_sweep(
    recipe: Recipe, found: Sequence[Row], lost: Sequence[dict[str, Any]] = (), left_out: Sequence[int] = ()
) -> str:
    """Return the HTML; of trials without a result it tells the values, and of unreadable ones the numbers."""
    names = list(found[0].params) if found else []
    drawn = []
    if len(found) > 1:
        ranges = {n: v for n, v in recipe.sweep.parameters.items() if isinstance(v, Range)} if recipe.sweep else {}
        drawn.append(
            (
                "Every trial",
                "A line per trial, through its values to its validation accuracy; drag along an axis to pick lines.",
                parallel_figure(found, ranges),
            )
        )
        pair = heatmap_pair(found)
        if pair:
            caption = "Mean validation accuracy over seeds, and over the other settings where there are any."
            drawn.append((f"{pair[0]} × {pair[1]}", caption, heatmap_figure(found, *pair, ranges)))
    return (
        environment()
        .get_template("sweep.html")
        .render(
            recipe=recipe.resolved(),
            seeds=recipe.seeds,
            names=names,
            rows=found,
            lost=lost,
            left_out=left_out,
            words=narrate_sweep(found, len(recipe.seeds)),
            figures=[figure_html(*figure) for figure in drawn],
            plotly=Markup(get_plotlyjs()),
        )
    )


def narrate_sweep(found: Sequence[Row], seeds: int) -> list[str]:
    """What the sweep says, in sentences."""
    if not found:
        return ["No trial has finished yet."]
    best = found[0]
    chosen = ", ".join(f"{name} = {_short(value)}" for name, value in best.params.items())
    sentences = [
        f"Chosen by validation accuracy: {chosen}, with {best.val:.2f} % on the validation split and {best.test:.2f} % "
        "on the test split, which had no part in the choice."
    ]
    values = [0.0 if run["status"] == "diverged" else run["val_accuracy"] or 0.0 for run in best.runs]
    if seeds > 1:
        sentences.append(f"Its {seeds} seeds lie between {min(values):.2f} and {max(values):.2f} %.")
    else:
        sentences.append("Each trial is one seed, so near neighbors in this list may owe their order to chance.")
    close = [row for row in found[1:] if seeds > 1 and row.val >= min(values)]
    if close:
        others = "One other trial" if len(close) == 1 else f"{len(close)} other trials"
        sentences.append(f"{others} reached at least its lowest seed: so many seeds do not tell them apart.")
    if diverged := sum(run["status"] == "diverged" for row in found for run in row.runs):
        sentences.append(f"{diverged} of {sum(len(row.runs) for row in found)} runs diverged; they count as 0 %.")
    return sentences


def parallel_figure(found: Sequence[Row], ranges: Mapping[str, Range]) -> go.Figure:
    """Parallel coordinates of all trials."""
    dimensions = [_axis(name, [row.params[name] for row in found], ranges.get(name)) for name in found[0].params]
    accuracy = [row.val for row in found]
    dimensions.append({"label": "validation, %", "values": accuracy})
    line = {"color": accuracy, "colorscale": _COLORS, "showscale": True, "colorbar": {"title": "%"}}
    figure = go.Figure(go.Parcoords(dimensions=dimensions, line=line, labelangle=0))
    style(figure, 420)
    figure.update_layout(margin={"l": 90, "r": 60, "t": 70, "b": 40})
    return figure


def _axis(name: str, values: Sequence[Any], searched: Range | None) -> dict[str, Any]:
    """An axis: numbers as they are, on a logarithmic scale where they span it, and words as ticks."""
    if searched is not None:
        scale = log10 if searched.log else float
        ends = (searched.low, searched.high)
        ticks = {"tickvals": [scale(v) for v in ends], "ticktext": [_short(v) for v in ends]}
        return {"label": escape(name), "values": [scale(v) for v in values], "range": [scale(v) for v in ends], **ticks}
    distinct = sorted(set(values), key=lambda v: (isinstance(v, str), v))
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in distinct)
    if numbers and distinct[0] > 0 and distinct[-1] / distinct[0] >= 20:
        shown = distinct if len(distinct) <= 8 else [distinct[0], distinct[-1]]
        ticks = {"tickvals": [log10(v) for v in shown], "ticktext": [_short(v) for v in shown]}
        return {"label": escape(name), "values": [log10(v) for v in values], **ticks}
    if numbers:
        ticks = {"tickvals": distinct, "ticktext": [_short(v) for v in distinct]} if len(distinct) <= 8 else {}
        return {"label": escape(name), "values": list(values), **ticks}
    place = {value: number for number, value in enumerate(distinct)}
    ticks = {"tickvals": list(place.values()), "ticktext": [escape(str(v)) for v in distinct]}
    return {"label": escape(name), "values": [place[v] for v in values], **ticks}


def heatmap_pair(found: Sequence[Row]) -> tuple[str, str] | None:
    """The two settings to draw against each other: alpha and beta if both were varied, else the first two."""
    varied = [name for name in found[0].params if len({repr(row.params[name]) for row in found}) > 1]
    if {"lbe.alpha", "lbe.beta"} <= set(varied):
        return "lbe.alpha", "lbe.beta"
    return (varied[0], varied[1]) if len(varied) > 1 else None


def heatmap_figure(found: Sequence[Row], first: str, second: str, ranges: Mapping[str, Range]) -> go.Figure:
    """Mean validation accuracy over a pair of settings; trials of a continuous search are points."""
    cells: dict[tuple[Any, Any], list[float]] = defaultdict(list)
    for row in found:
        cells[row.params[first], row.params[second]].append(row.val)
    xs, ys = (sorted({pair[i] for pair in cells}, key=lambda v: (isinstance(v, str), v)) for i in (0, 1))
    axis = {"title": escape(first)}, {"title": escape(second)}
    if {first, second} & ranges.keys() or len(cells) < 0.5 * len(xs) * len(ys):  # not a grid
        pairs = list(cells)
        color = {"color": [mean(cells[p]) for p in pairs], "colorscale": _COLORS, "showscale": True, "size": 11}
        color["colorbar"] = {"title": "%"}
        figure = go.Figure(go.Scatter(x=[p[0] for p in pairs], y=[p[1] for p in pairs], mode="markers", marker=color))
        for update, name in ((figure.update_xaxes, first), (figure.update_yaxes, second)):
            if name in ranges and ranges[name].log:
                update(type="log")
    else:
        grid = [[mean(cells[x, y]) if (x, y) in cells else None for x in xs] for y in ys]
        text = [["" if value is None else f"{value:.1f}" for value in line] for line in grid]
        figure = go.Figure(
            go.Heatmap(
                x=[_short(x) for x in xs],
                y=[_short(y) for y in ys],
                z=grid,
                text=text,
                texttemplate="%{text}",
                colorscale=_COLORS,
                colorbar={"title": "%"},
            )
        )
        axis = ({**axis[0], "type": "category"}, {**axis[1], "type": "category"})
    style(figure, 420)
    figure.update_layout(xaxis=axis[0], yaxis=axis[1])
    return figure


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else escape(str(value))
