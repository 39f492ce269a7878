"""The report of a sweep: which values led where, by the validation score."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from pathlib import Path
from statistics import mean, median
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from trainability.experiments.axes import Range
from trainability.experiments.recipe import Recipe
from trainability.experiments.study import Row, value_of
from trainability.report.answer import Answer, Contender, weigh
from trainability.report.figures import style
from trainability.report.page import environment
from trainability.report.plots import Plot, plot
from trainability.report.words import facts
from trainability.tasks import Metric
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
    metric = recipe.task.task().metric
    best = answer_of_sweep(found, metric)
    tested = found[0].test if found and isfinite(found[0].test) else None
    first, *rest = narrate_sweep(found, len(recipe.seeds), metric)
    return (
        environment()
        .get_template("sweep.html")
        .render(
            recipe=recipe.resolved(),
            names=list(found[0].params) if found else [],
            briefs=short(list(found[0].params)) if found else [],
            rows=found,
            lost=lost,
            left_out=left_out,
            metric=metric,
            value_of=value_of,
            answer=best,
            headline=first,
            facts=facts(best, metric, kind="settings", tested=tested) if best else [],
            tested="" if tested is None else metric.number(tested),
            remarks=rest,
            figures=_figures(recipe, found, metric),
        )
    )


def answer_of_sweep(found: Sequence[Row], metric: Metric) -> Answer | None:
    """The best trial by the validation score; the others' test scores stay unseen, so margins are of validation."""
    trials = []
    for row in found:
        scores = {int(run.get("seed", place)): value_of(run, metric) for place, run in enumerate(row.runs)}
        times = [run["step_ms"] for run in row.runs if isinstance(run.get("step_ms"), int | float)]
        trials.append(Contender(trial_name(row), scores, scores, median(times) if times else None))
    return weigh(trials, metric, "validation", "validation", trials, middle="mean") if trials else None


def trial_name(row: Row) -> str:
    """The values of a trial.

    >>> trial_name(Row(3, {"optimizer.lr": 0.01, "model.depth": 30}, 90.0, 91.0, []))
    'lr = 0.01, depth = 30'
    """
    return ", ".join(
        f"{name} = {plain(value)}" for name, value in zip(short(list(row.params)), row.params.values(), strict=True)
    )


def short(names: Sequence[str]) -> list[str]:
    """The last words of names, and more of them where these are not told apart.

    >>> short(["remedies.lbe.beta", "optimizer.lr"]), short(["remedies.lbe.alpha", "remedies.other.alpha"])
    (['beta', 'lr'], ['lbe.alpha', 'other.alpha'])
    """
    parts = [name.split(".") for name in names]
    most = max(map(len, parts), default=0)
    tried = ([".".join(part[-count:]) for part in parts] for count in range(1, most))
    return next((found for found in tried if len(set(found)) == len(names)), list(names))


def narrate_sweep(found: Sequence[Row], seeds: int, metric: Metric) -> list[str]:
    """Return what the sweep says, in sentences: the choice first."""
    if not found:
        return ["No trial has finished yet."]
    best = found[0]
    sentences = [
        f"{trial_name(best)}: {metric.show(best.val)} validation {metric.name}, by which it was chosen"
        + (f", and {metric.show(best.test)} test {metric.name}." if isfinite(best.test) else ".")
    ]
    values = [value_of(run, metric) for run in best.runs]
    if seeds == 1:
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


def _figures(recipe: Recipe, found: Sequence[Row], metric: Metric) -> list[Plot]:
    if len(found) < 2:
        return []
    ranges = {n: v for n, v in recipe.sweep.parameters.items() if isinstance(v, Range)} if recipe.sweep else {}
    look = "A setting matters where its points form a slope; where they form a cloud, it does not."
    drawn = [plot("Every trial, by each of its settings", look, trials_figure(found, ranges, metric))]
    if pair := heatmap_pair(found):
        look = f"The bright end is the better one: mean validation {metric.name} over seeds and over other settings."
        drawn.append(plot(f"{pair[0]} × {pair[1]}", look, heatmap_figure(found, *pair, ranges, metric)))
    return drawn


def trials_figure(found: Sequence[Row], ranges: Mapping[str, Range], metric: Metric) -> go.Figure:
    """The validation score of every trial against each setting, a panel for each."""
    names = list(found[0].params)
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = make_subplots(
        rows=rows, cols=columns, shared_yaxes=True, horizontal_spacing=0.04, vertical_spacing=0.28 / rows
    )
    labels = [escape(f"trial {row.number}: {trial_name(row)}") for row in found]
    sizes = [12, *[8] * (len(found) - 1)]
    for number, name in enumerate(names):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        values = [row.params[name] for row in found]
        figure.add_scatter(
            x=values if _scale(values, ranges.get(name)) != "category" else [plain(value) for value in values],
            y=[row.val for row in found],
            text=labels,
            mode="markers",
            marker={"size": sizes, "color": ["#D55E00", *["#0072B2"] * (len(found) - 1)], "opacity": 0.75},
            showlegend=False,
            hovertemplate="%{text}<br>%{y:.5g}<extra></extra>",
            **place,
        )
        figure.update_xaxes(title=escape(name), type=_scale(values, ranges.get(name)), **place)
    figure.update_yaxes(title=escape(f"validation {metric.label}"), col=1)
    return style(figure, 120 + 260 * rows)


def _scale(values: Sequence[Any], searched: Range | None) -> str:
    """The kind of the axis of a setting: words are categories, and numbers that span much are logarithmic."""
    if searched is not None:
        return "log" if searched.log else "linear"
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return "category"
    return "log" if min(values) > 0 and max(values) / min(values) >= 20 else "linear"


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


def plain(value: Any) -> str:
    """A value of a setting as it is shown."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(value: Any) -> str:
    return escape(plain(value))
