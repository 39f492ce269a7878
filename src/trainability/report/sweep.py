"""The report of a sweep: which values led where, by the validation score."""

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

from trainability.experiments.axes import Range
from trainability.experiments.recipe import Recipe
from trainability.experiments.study import Row, value_of
from trainability.report.figures import style
from trainability.report.page import environment, figure_html
from trainability.tasks import Metric, task
from trainability.training.files import write_whole

_COLORS = ["#440154", "#21918c", "#6ab043"]  # no yellow, which thin lines do not show on white
_STRENGTHS = ("remedies.lbe.alpha", "remedies.lbe.beta")


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
    metric = task(recipe.task.name).metric
    drawn = []
    if len(found) > 1:
        ranges = {n: v for n, v in recipe.sweep.parameters.items() if isinstance(v, Range)} if recipe.sweep else {}
        drawn.append(
            (
                "Every trial",
                f"A line per trial, through its values to its validation {metric.name}; drag along an axis to pick "
                "lines.",
                parallel_figure(found, ranges, metric),
            )
        )
        pair = heatmap_pair(found)
        if pair:
            caption = f"Mean validation {metric.name} over seeds, and over the other settings where there are any."
            drawn.append((f"{pair[0]} × {pair[1]}", caption, heatmap_figure(found, *pair, ranges, metric)))
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
            metric=metric,
            value_of=value_of,
            words=narrate_sweep(found, len(recipe.seeds), metric),
            figures=[figure_html(*figure) for figure in drawn],
            plotly=Markup(get_plotlyjs()),
        )
    )


def narrate_sweep(found: Sequence[Row], seeds: int, metric: Metric) -> list[str]:
    """Return what the sweep says, in sentences."""
    if not found:
        return ["No trial has finished yet."]
    best = found[0]
    chosen = ", ".join(f"{name} = {_short(value)}" for name, value in best.params.items())
    sentences = [
        f"Chosen by validation {metric.name}: {chosen}, with {metric.show(best.val)} on the validation split and "
        f"{metric.show(best.test)} on the test split, which had no part in the choice."
    ]
    values = [value_of(run, metric) for run in best.runs]
    if seeds > 1:
        sentences.append(f"Its {seeds} seeds lie between {metric.number(min(values))} and {metric.show(max(values))}.")
    else:
        sentences.append("Each trial is one seed, so near neighbors in this list may owe their order to chance.")
    worst = min(values) if metric.direction == "max" else max(values)
    close = [row for row in found[1:] if seeds > 1 and metric.exceeds(row.val, worst)]
    if close:
        others = "One other trial" if len(close) == 1 else f"{len(close)} other trials"
        sentences.append(f"{others} did at least as well as its worst seed: so many seeds do not tell them apart.")
    if diverged := sum(run["status"] == "diverged" for row in found for run in row.runs):
        sentences.append(
            f"{diverged} of {sum(len(row.runs) for row in found)} runs diverged; they count as "
            f"{metric.show(metric.worst, 'rough')}."
        )
    return sentences


def parallel_figure(found: Sequence[Row], ranges: Mapping[str, Range], metric: Metric) -> go.Figure:
    """Parallel coordinates of all trials."""
    dimensions = [_axis(name, [row.params[name] for row in found], ranges.get(name)) for name in found[0].params]
    scores = [row.val for row in found]
    dimensions.append({"label": escape(f"validation {metric.label}"), "values": scores})
    bar = {"title": escape(metric.unit or metric.name)}
    line = {"color": scores, "colorscale": _colors(metric), "showscale": True, "colorbar": bar}
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
    if set(_STRENGTHS) <= set(varied):
        return _STRENGTHS
    return (varied[0], varied[1]) if len(varied) > 1 else None


def heatmap_figure(
    found: Sequence[Row], first: str, second: str, ranges: Mapping[str, Range], metric: Metric
) -> go.Figure:
    """Mean validation score over a pair of settings; trials of a continuous search are points."""
    cells: dict[tuple[Any, Any], list[float]] = defaultdict(list)
    for row in found:
        cells[row.params[first], row.params[second]].append(row.val)
    xs, ys = (sorted({pair[i] for pair in cells}, key=lambda v: (isinstance(v, str), v)) for i in (0, 1))
    axis = {"title": escape(first)}, {"title": escape(second)}
    bar = {"title": escape(metric.unit or metric.name)}
    if {first, second} & ranges.keys() or len(cells) < 0.5 * len(xs) * len(ys):  # not a grid
        pairs = list(cells)
        means = [mean(cells[p]) for p in pairs]
        color = {"color": means, "colorscale": _colors(metric), "showscale": True, "size": 11, "colorbar": bar}
        figure = go.Figure(go.Scatter(x=[p[0] for p in pairs], y=[p[1] for p in pairs], mode="markers", marker=color))
        for update, name in ((figure.update_xaxes, first), (figure.update_yaxes, second)):
            if name in ranges and ranges[name].log:
                update(type="log")
    else:
        grid = [[mean(cells[x, y]) if (x, y) in cells else None for x in xs] for y in ys]
        text = [["" if value is None else metric.number(value, "brief") for value in line] for line in grid]
        figure = go.Figure(
            go.Heatmap(
                x=[_short(x) for x in xs],
                y=[_short(y) for y in ys],
                z=grid,
                text=text,
                texttemplate="%{text}",
                colorscale=_colors(metric),
                colorbar=bar,
            )
        )
        axis = ({**axis[0], "type": "category"}, {**axis[1], "type": "category"})
    style(figure, 420)
    figure.update_layout(xaxis=axis[0], yaxis=axis[1])
    return figure


def _colors(metric: Metric) -> list[str]:
    """The scale of which the bright end is the good one."""
    return _COLORS if metric.direction == "max" else _COLORS[::-1]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else escape(str(value))
