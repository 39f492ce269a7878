"""Figures, drawn with plotly."""

from collections.abc import Callable, Iterable
from html import escape
from itertools import cycle
from math import isfinite
from statistics import median

import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from trainability.experiments.comparison import Comparison, Side
from trainability.report.answer import counted, part_of, score_of
from trainability.tasks import Loss, Metric, Task
from trainability.training.history import History

# Okabe and Ito's palette: told apart by color-blind readers too.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6b6b6b")
Arms = dict[str, list[History]]


def colors(names: Iterable[str]) -> dict[str, str]:
    """One color per remedy, the same in every figure."""
    names = list(names)
    return dict(zip(names, cycle(PALETTE if len(names) <= len(PALETTE) else qualitative.Dark24), strict=False))


def style(figure: go.Figure, height: int = 380) -> go.Figure:
    """The look that all figures share."""
    figure.update_layout(
        height=height,
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    return figure


def _lines(
    figure: go.Figure, arms: Arms, palette: dict[str, str], values: Callable[[History], dict[int, float]]
) -> None:
    """One line of values by step per seed; the seeds of a remedy share a color and a legend entry."""
    for name, runs in arms.items():
        for number, run in enumerate(runs):
            found = values(run)
            figure.add_scatter(
                x=list(found),
                y=list(found.values()),
                mode="lines+markers" if len(found) < 8 else "lines",
                line={"color": palette[name], "width": 1.6},
                opacity=0.8,
                name=escape(name),
                legendgroup=name,
                showlegend=number == 0,
                hovertemplate=f"{escape(name)}, seed {run.seed}<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
            )


def score_figure(arms: Arms, palette: dict[str, str], task: Task, chance: float | None) -> go.Figure:
    """Main metric over training, one line per seed."""
    figure = go.Figure()
    _lines(figure, arms, palette, lambda run: {point.step: score_of(point) for point in run.scores})
    if task.chance and chance is not None:
        figure.add_hline(
            y=chance,
            line={"dash": "dot", "color": "#888"},
            annotation_text=task.chance.label,
            annotation_position="top left",
        )
    figure.update_xaxes(title="training step")
    figure.update_yaxes(title=escape(f"{_part(arms)} {task.metric.label}"), range=task.metric.limits)
    return style(figure)


def _part(arms: Arms) -> str:
    return part_of(run for runs in arms.values() for run in runs)


def spread_figure(arms: Arms, palette: dict[str, str], metric: Metric) -> go.Figure:
    """Main metric of every seed at the end, with the median."""
    figure = go.Figure()
    for name, runs in arms.items():
        figure.add_box(
            y=[counted(run, metric) for run in runs],
            text=[f"seed {run.seed}" for run in runs],
            name=escape(name),
            boxpoints="all",
            jitter=0.5,
            pointpos=0,
            marker={"color": palette[name], "size": 8},
            line={"width": 1.5},
            fillcolor="rgba(0,0,0,0.04)",
            showlegend=False,
        )
    figure.update_yaxes(title=escape(f"{_part(arms)} {metric.label}"))
    return style(figure)


def loss_figure(arms: Arms, palette: dict[str, str], loss: Loss) -> go.Figure:
    """The loss, and the LBE term as a curve of its own."""
    with_term = {name: runs for name, runs in arms.items() if any(map(_terms, runs))}
    figure = make_subplots(
        rows=1,
        cols=2 if with_term else 1,
        subplot_titles=[escape(loss.name), escape(f"L_BE, where total = {loss.symbol} · (1 + L_BE)")][
            : 2 if with_term else 1
        ],
    )
    left, right = go.Figure(), go.Figure()
    _lines(left, arms, palette, lambda run: {point.step: point.loss for point in run.losses})
    _lines(right, with_term, palette, _terms)
    for trace in left.data:
        figure.add_trace(trace, row=1, col=1)
    for trace in right.data:
        trace.showlegend = False
        figure.add_trace(trace, row=1, col=2)
    figure.update_xaxes(title="training step")
    figure.update_yaxes(title=escape(loss.unit), row=1, col=1)
    if with_term:
        figure.update_yaxes(type="log", exponentformat="power", row=1, col=2)
    return style(figure).update_layout(legend={"y": 1.12}, margin={"t": 80})


def _terms(run: History) -> dict[int, float]:
    return {point.step: point.lbe for point in run.losses if point.lbe is not None}


def entropy_figure(arms: Arms) -> go.Figure | None:
    """Entropy of every layer of every run as a heatmap, with a slider over training steps; None without layers."""
    runs = [(f"{name}, seed {run.seed}", run) for name, group in arms.items() for run in group if _flows(run)]
    if not runs:
        return None
    labels = [escape(label) for label, _ in runs]
    depth = max(len(run.layers) for _, run in runs)
    steps = sorted({point.step for _, run in runs for point in run.flow})

    def grid(step: int) -> list[list[float | None]]:
        rows = []
        for _, run in runs:
            entropy = next((point.entropy for point in reversed(run.flow) if point.step <= step), [])
            rows.append([*_nats(entropy), *([None] * (depth - len(entropy)))])
        return rows

    top = max([1.0, *(e for _, run in runs for point in run.flow for e in point.entropy if isfinite(e))])

    heatmap = go.Heatmap(
        z=grid(steps[-1]),
        x=list(range(1, depth + 1)),
        y=labels,
        zmin=0,
        zmax=min(top, 3.0),
        colorscale="Viridis",
        colorbar={"title": "nats"},
        hovertemplate="%{y}<br>layer %{x}: %{z:.4f} nats<extra></extra>",
    )
    # A frame holds what changes alone, the values.
    frames = [go.Frame(data=[{"type": "heatmap", "z": grid(step)}], traces=[0], name=str(step)) for step in steps]
    figure = go.Figure(data=[heatmap], frames=frames)
    figure.update_xaxes(title="hidden layer")
    figure.update_yaxes(autorange="reversed")
    slider = {
        "active": len(steps) - 1,
        "currentvalue": {"prefix": "step "},
        "pad": {"t": 45},
        "steps": [
            {
                "label": str(s),
                "method": "animate",
                "args": [[str(s)], {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}],
            }
            for s in steps
        ],
    }
    figure.update_layout(sliders=[slider])
    style(figure, height=230 + 24 * len(runs))
    figure.update_yaxes(automargin=True)
    return figure.update_layout(margin={"l": 20, "b": 90})


def _nats(entropy: list[float]) -> list[float]:
    """What a color or a tooltip can show of them."""
    return [round(value, 4) for value in entropy]


def _flows(run: History) -> bool:
    return any(point.entropy for point in run.flow)


def history_figure(arms: Arms, metric: Metric) -> go.Figure | None:
    """Entropy over steps and layers, one heatmap per remedy, of the run of median score; None without layers."""
    seen = {name: sorted(filter(_flows, runs), key=lambda run: counted(run, metric)) for name, runs in arms.items()}
    chosen = {name: runs[len(runs) // 2] for name, runs in seen.items() if runs}
    if not chosen:
        return None
    titles = [f"{escape(name)}, seed {run.seed}" for name, run in chosen.items()]
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=titles,
        shared_yaxes=True,
        horizontal_spacing=0.02,
        vertical_spacing=0.28 / rows,
    )
    for number, run in enumerate(chosen.values()):
        figure.add_trace(
            go.Heatmap(
                z=list(zip(*(_nats(point.entropy) for point in run.flow), strict=True)),
                x=[str(point.step) for point in run.flow],
                y=list(range(1, len(run.layers) + 1)),
                coloraxis="coloraxis",
                hovertemplate="step %{x}, layer %{y}: %{z:.4f} nats<extra></extra>",
            ),
            row=number // columns + 1,
            col=number % columns + 1,
        )
    figure.update_xaxes(type="category", nticks=6)
    figure.update_xaxes(title="step", row=rows)
    figure.update_yaxes(title="hidden layer", col=1)
    figure.update_layout(coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": 3, "colorbar": {"title": "nats"}})
    return style(figure, 100 + 260 * rows)


def alpha_figure(arms: Arms, palette: dict[str, str]) -> go.Figure | None:
    """The learned alpha of every layer beside the entropy at the end; None where no run used LBE."""
    figure = go.Figure()
    for name, runs in arms.items():
        for number, run in enumerate(r for r in runs if r.alpha):
            figure.add_scatter(
                x=list(range(1, len(run.alpha) + 1)),
                y=[abs(a) for a in run.alpha],
                mode="lines+markers",
                line={"color": palette[name], "width": 1.4},
                marker={"size": 4},
                name=f"{escape(name)}",
                legendgroup=name,
                showlegend=number == 0,
                hovertemplate=f"{escape(name)}, seed {run.seed}<br>layer %{{x}}: %{{y:.3f}}<extra></extra>",
            )
    if not figure.data:
        return None
    figure.update_xaxes(title="hidden layer")
    figure.update_yaxes(title="|alpha| learned, nats")
    return style(figure)


def neuron_figure(arms: Arms) -> go.Figure | None:
    """Histogram of one neuron before its nonlinearity in some layers, before and after training; None without them."""
    runs = {name: group[0] for name, group in arms.items() if group[0].neurons}
    layers = sorted({hist.number for run in runs.values() for point in run.neurons for hist in point.layers})
    if not layers:
        return None
    figure = make_subplots(
        rows=len(runs),
        cols=len(layers),
        subplot_titles=[f"{escape(name)}, layer {layer}" for name in runs for layer in layers],
        vertical_spacing=0.28 / max(len(runs), 1),
        horizontal_spacing=0.06,
    )
    for row, run in enumerate(runs.values(), 1):
        looks = (("before training", "#9aa5b1"), ("after training", "#D55E00"))
        for point, (when, color) in zip(run.neurons, looks, strict=False):
            for hist in point.layers:
                count = len(hist.counts)
                width = (hist.high - hist.low) / count
                total = sum(hist.counts) or 1
                figure.add_trace(
                    go.Bar(
                        x0=hist.low + 0.5 * width,
                        dx=width,
                        y=[round(c / total, 4) for c in hist.counts],
                        width=width,
                        marker={"color": color, "line": {"width": 0}},
                        opacity=0.65,
                        name=when,
                        legendgroup=when,
                        showlegend=row == 1 and hist.number == layers[0],
                        hovertemplate=f"{when}: {hist.entropy:.3g} nats<extra></extra>",
                    ),
                    row=row,
                    col=layers.index(hist.number) + 1,
                )
    figure.update_layout(barmode="overlay", bargap=0)
    figure.update_annotations(font={"size": 12})
    rows = max(len(runs), 1)
    return style(figure, 110 + 210 * rows).update_layout(legend={"y": 1 + 0.2 / rows}, margin={"t": 90})


def versus_figure(comparison: Comparison, palette: dict[str, str], by: str) -> go.Figure:
    """Main metric against a setting that varies, per remedy: every seed, and a line through the medians."""
    figure, metric = go.Figure(), comparison.task.metric
    others = {repr(_others(side, by)): _others(side, by) for side in comparison.sides}
    for name, color in palette.items():
        for dash, (key, fixed) in zip(cycle(("solid", "dash", "dot", "dashdot")), others.items(), strict=False):
            points = [
                (side.cell.values[by], scores)
                for side in comparison.sides
                if comparison.name_of(side) == name and repr(_others(side, by)) == key
                if (scores := sorted(counted(h, metric) for h in side.histories if h.scores))
            ]
            if not points:
                continue
            shown = "".join(f", {other} {value}" for other, value in fixed.items()) if len(others) > 1 else ""
            label = escape(name + shown)
            figure.add_scatter(
                x=[x for x, _ in points],
                y=[median(v) for _, v in points],
                mode="lines",
                name=label,
                legendgroup=label,
                line={"color": color, "dash": dash},
            )
            figure.add_scatter(
                x=[x for x, values in points for _ in values],
                y=[v for _, values in points for v in values],
                mode="markers",
                marker={"color": color, "size": 7},
                opacity=0.7,
                legendgroup=label,
                showlegend=False,
                name=label,
            )
    figure.update_xaxes(title=escape(by), type="log" if by == "optimizer.lr" else "linear")
    figure.update_yaxes(title=escape(f"{part_of(comparison.histories)} {metric.label}"), range=metric.limits)
    return style(figure)


def _others(side: Side, by: str) -> dict[str, object]:
    """The values of a side apart from that of one setting."""
    return {name: value for name, value in side.cell.values.items() if name != by and not name.startswith("remedies.")}
