"""A report as one HTML file that needs nothing else."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from trainability.experiments.comparison import Comparison, Section
from trainability.experiments.recipe import Recipe
from trainability.report import figures, plots, words
from trainability.report.answer import Answer, answer
from trainability.report.gallery import first_picture, gallery
from trainability.report.narrative import remarks
from trainability.report.plots import Plot, plot
from trainability.report.table import Line, reference, table
from trainability.training.files import finite, write_whole

_ROOM = 3_000_000  # characters of figures, for a page of less than 6 MB


@dataclass(frozen=True)
class Part:
    """A section of the page: remedies with the same values of everything else."""

    anchor: str
    title: str
    answer: Answer
    headline: str
    rows: Sequence[Line]
    reference: str | None
    remarks: Sequence[str]
    picture: Plot
    figures: Sequence[Plot]


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
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("trainability.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(words=words, script=plots.script, zip=zip)
    return made


def render(comparison: Comparison) -> str:
    """Return the HTML."""
    metric = comparison.task.metric
    names = dict.fromkeys(comparison.name_of(side) for side in comparison.sides)
    palette = figures.colors(names)
    parts = _parts(comparison, palette)
    found, recipe = answer(comparison), comparison.recipe
    overview = [
        plot(
            f"{metric.name.capitalize()} against {name}",
            "One point per seed, and a line through the medians: look for the line that stays up.",
            figures.versus_figure(comparison, palette, name),
        )
        for name in _numbers(recipe)
        if found
    ]
    return (
        environment()
        .get_template("experiment.html")
        .render(
            comparison=comparison,
            recipe=recipe.resolved(),
            metric=metric,
            names=list(names),
            answer=found,
            headline=words.headline(found, metric) if found else "",
            facts=words.facts(found, metric) if found else [],
            overview=overview,
            parts=parts,
            changed={comparison.name_of(side): side.reports for side in comparison.sides if side.reports},
        )
    )


def _parts(comparison: Comparison, palette: dict[str, str]) -> list[Part]:
    """The sections, with all figures for as many of them as a page has room for."""
    parts: list[Part] = []
    for section in comparison.sections():
        if found := answer(comparison, section):
            room = sum(len(figure.json) for part in parts for figure in part.figures) < _ROOM
            parts.append(_part(len(parts) + 1, section, found, comparison, palette, room=room))
    return parts


def _part(
    number: int, section: Section, found: Answer, comparison: Comparison, palette: dict[str, str], *, room: bool
) -> Part:
    metric, arms = comparison.task.metric, section.histories
    return Part(
        anchor=f"part-{number}",
        title=section.title,
        answer=found,
        headline=words.headline(found, metric),
        rows=table(section, comparison.task, comparison.chance, found),
        reference=reference(section, metric),
        remarks=remarks(section, comparison),
        picture=first_picture(arms, palette, comparison),
        figures=gallery(arms, palette, comparison) if room else [],
    )


def _numbers(recipe: Recipe) -> list[str]:
    """The settings of a comparison that take several numbers."""
    return [
        name
        for name, values in (recipe.compare.parameters if recipe.compare else {}).items()
        if len(values) > 1 and not name.startswith("remedies.") and all(isinstance(v, int | float) for v in values)
    ]
