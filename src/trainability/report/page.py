"""A report as one HTML file that needs nothing else: plotly's script is inside, once."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from trainability.experiments.comparison import Comparison, Section
from trainability.experiments.recipe import Recipe
from trainability.report import figures, layer_figures
from trainability.report.narrative import narrate
from trainability.tasks import Metric
from trainability.training.files import finite, write_whole


def write_report(comparison: Comparison, out: Path) -> Path:
    """Write ``report.html`` and ``results.json`` into ``out``, both or neither; return the report's path."""
    kept = {
        "histories": [history.to_dict() for history in comparison.histories],
        "remedies": {comparison.name_of(side): side.reports for side in comparison.sides},
    }
    results = json.dumps({**comparison.to_dict(), **finite(kept)})
    write_whole({out / "results.json": results, out / "report.html": render(comparison)})
    return out / "report.html"


def environment() -> jinja2.Environment:
    """The templates; everything put into them is escaped."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("trainability.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(comparison: Comparison) -> str:
    """Return the HTML."""
    metric = comparison.task.metric
    names = dict.fromkeys(comparison.name_of(side) for side in comparison.sides)
    palette = figures.colors(names)
    words = dict(narrate(comparison))
    drawn = [section for section in comparison.sections() if section.histories]
    sections = [
        {
            "title": section.title,
            "words": words[section.title],
            "rows": table(section, metric),
            "figures": _figures(section.histories, palette, comparison),
        }
        for section in drawn
    ]
    recipe = comparison.recipe
    overview = [
        figure_html(f"{metric.name.capitalize()} against {name}", "", figures.versus_figure(comparison, palette, name))
        for name in _numbers(recipe)
        if drawn
    ]
    changed = {comparison.name_of(side): side.reports for side in comparison.sides if side.reports}
    return (
        environment()
        .get_template("experiment.html")
        .render(
            comparison=comparison,
            names=list(names),
            recipe=recipe.resolved(),
            metric=metric,
            overview=overview,
            sections=sections,
            changed=changed,
            plotly=Markup(get_plotlyjs()),
        )
    )


def _numbers(recipe: Recipe) -> list[str]:
    """The settings of a comparison that take several numbers."""
    return [
        name
        for name, values in (recipe.compare.parameters if recipe.compare else {}).items()
        if len(values) > 1 and not name.startswith("remedies.") and all(isinstance(v, int | float) for v in values)
    ]


def table(section: Section, metric: Metric) -> list[dict[str, Any]]:
    """One row per remedy, the strongest first."""
    rows = []
    for name, runs in section.histories.items():
        side = section.remedies[name]
        values = sorted(run.scores[-1].test for run in runs)
        rows.append(
            {
                "remedy": name,
                "what": side.title + (f", otherwise as {side.baseline}" if side.baseline else ""),
                "seeds": [round(run.scores[-1].test, 2) for run in runs],
                "median": median(values),
                "low": values[0],
                "high": values[-1],
                "entropy": sum(run.flow[0].entropy[-1] for run in runs) / len(runs),
                "entropy_end": sum(run.flow[-1].entropy[-1] for run in runs) / len(runs),
                "step_ms": median(run.step_ms or 0.0 for run in runs),
            }
        )
    return sorted(rows, key=lambda row: float(row["median"]), reverse=metric.direction == "max")


def _figures(arms: figures.Arms, palette: dict[str, str], comparison: Comparison) -> list[dict[str, Any]]:
    task, images = comparison.task, int(comparison.data["train"])
    drawn = [
        (
            f"{task.metric.name.capitalize()} during training",
            "One line per seed.",
            figures.score_figure(arms, palette, task, comparison.chance),
        ),
        (
            "Spread over seeds",
            "Every point is one seed; the line in the box is the median.",
            figures.spread_figure(arms, palette, task.metric),
        ),
        (
            "Information in every layer, step by step",
            "Batch entropy of each hidden layer of each run; drag the slider. Dark: all inputs look alike.",
            figures.entropy_figure(arms),
        ),
        (
            "The same over the whole training",
            f"The run of median {task.metric.name} of each remedy. The steps lie denser at the start.",
            figures.history_figure(arms),
        ),
        (
            "The kernel of every layer: q and c",
            f"Mean square of the signal, and mean cosine over pairs of {min(128, images)} training images; one line "
            "per seed. Dashed: what theory predicts before training, from the scale of the weights of the first seed. "
            "Where c is 1 all inputs look alike.",
            layer_figures.signal_figure(arms, palette),
        ),
        (
            "Independence of what weight layers receive",
            f"Pairs of neurons of the inputs of evenly spaced weight layers, over {min(256, images)} training images "
            f"in training mode: mean |correlation| (about {0.8 / min(256, images) ** 0.5:.2f} where there is none), "
            "and mutual information by nearest neighbors, which scatters around 0 where there is none.",
            layer_figures.independence_figure(arms, palette),
        ),
        (
            "What the gates of an IC layer do",
            "The two most dependent neurons that the middle IC layer normalizes, after training: gates are drawn 16 "
            "times, and dots show what is left (bars: two standard errors). Dashed: the theorem, for neurons of mean "
            "zero, and what becomes of it when the mean is their standard deviation. Rings: an estimate that does not "
            "know of gates, and is off by some hundredths of a nat.",
            layer_figures.dropout_figure(arms),
        ),
        (
            f"{task.loss.name.capitalize()} and the LBE term",
            "Apart, since the total loss multiplies them.",
            figures.loss_figure(arms, palette, task.loss),
        ),
        (
            "Learned alpha",
            "The target each layer settled on; a target at alpha_min no longer learns.",
            figures.alpha_figure(arms, palette),
        ),
        (
            "Single neurons",
            f"One neuron of median variance before its nonlinearity, over {min(512, images)} training images, before "
            "(gray) and after training; first seed. A single line: it gives every input the same value.",
            figures.neuron_figure(arms),
        ),
    ]
    return [figure_html(title, caption, figure) for title, caption, figure in drawn if figure is not None]


def figure_html(title: str, caption: str, figure: Figure) -> dict[str, Any]:
    """A figure as the templates take it."""
    html = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        auto_play=False,
        config={"displaylogo": False, "responsive": True},
    )
    return {"title": title, "caption": caption, "html": Markup(html)}
