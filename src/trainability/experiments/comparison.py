"""The outcome of an experiment: the history of every network, side by side."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainability.experiments.recipe import Cell, Recipe
from trainability.remedies.registry import Combination
from trainability.tasks import Task
from trainability.training.files import finite, write_whole
from trainability.training.history import History

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from trainability.report.answer import Answer

_WORDS = {"model.depth": "{} layers", "optimizer.lr": "learning rate {:g}"}


@dataclass
class Side:
    """One remedy with one choice of values: its recipe, and a history for each seed."""

    cell: Cell
    histories: list[History]
    reports: list[dict[str, Any]] = field(default_factory=list)  # of each remedy that was applied

    @property
    def remedies(self) -> Combination:
        """The remedies of this side."""
        return self.cell.recipe.remedies


@dataclass(frozen=True)
class Section:
    """Remedies with the same values of everything else, of those that have a score."""

    title: str
    remedies: dict[str, Combination]
    histories: dict[str, list[History]]


@dataclass(repr=False)
class Comparison:
    """An experiment and what came of it, complete or interrupted; ``print`` shows its answer and its table."""

    recipe: Recipe
    data: dict[str, Any]
    environment: dict[str, Any]
    sides: list[Side]
    task: Task
    chance: float | None  # the main metric of the best answer that does not look at the input
    interrupted: bool = False
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)  # of checkpoints that were damaged, and of where it was resumed

    @property
    def histories(self) -> list[History]:
        """The history of every network."""
        return [history for side in self.sides for history in side.histories]

    def sections(self) -> Iterator[Section]:
        """Yield the sides that differ in remedies alone, together."""
        places = {repr(_shared(side.cell.values)): _shared(side.cell.values) for side in self.sides}
        for key, values in places.items():
            here = [side for side in self.sides if repr(_shared(side.cell.values)) == key]
            found: dict[str, list[History]] = {}
            remedies: dict[str, Combination] = {}
            for side in here:
                if scored := [history for history in side.histories if history.scores]:
                    name = self.name_of(side)
                    found[name], remedies[name] = scored, side.remedies
            yield Section(_title(here[0].cell.recipe, values), remedies, found)

    def name_of(self, side: Side) -> str:
        """The remedies of a side, and their own settings where a comparison varies them."""
        varied = self.recipe.compare.parameters if self.recipe.compare else {}
        own = [
            f"{name.removeprefix('remedies.')}={value}"
            for name, value in side.cell.values.items()
            if name.startswith("remedies.") and len(varied[name]) > 1
        ]
        return " ".join([side.remedies.name, *own])

    def answer(self) -> "Answer | None":
        """The remedy to take, by how much it is better than others, how sure that is, and what a step of it costs.

        It is chosen by the validation scores and told by the test scores; None where nothing has a score yet.
        """
        from trainability.report.answer import answer

        return answer(self)

    def report(self, path: str | Path = "report.html") -> Path:
        """Write the report as one HTML file that needs nothing else, and return its path."""
        from trainability.report.page import render

        path = Path(path)
        write_whole({path: render(self)})
        return path

    def plot(self) -> "Figure":
        """Draw the scores during training, of the first section where there are several."""
        from trainability.report import figures

        names = dict.fromkeys(map(self.name_of, self.sides))
        section = next((section for section in self.sections() if section.histories), None)
        arms = section.histories if section else {}
        return figures.score_figure(arms, figures.colors(names), self.task, self.chance)

    def __str__(self) -> str:
        from trainability.report.text import as_text

        return as_text(self)

    def __repr__(self) -> str:
        names = ", ".join(dict.fromkeys(map(self.name_of, self.sides)))
        done = sum(history.status == "done" for history in self.histories)
        return f"<Comparison of {names}: {done} of {len(self.histories)} runs done>"

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """Return the object of ``--json``: ``config``, and ``results``, one flat object for every network."""
        content: dict[str, Any] = finite(
            {
                "config": self.recipe.resolved(),
                "data": self.data,
                "environment": self.environment,
                "interrupted": self.interrupted,
                "seconds": round(self.seconds, 1),
                "results": [
                    {**history.result(), "settings": side.cell.values}
                    for side in self.sides
                    for history in side.histories
                ],
            }
        )
        return content


def _shared(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not name.startswith("remedies.")}


def _title(recipe: Recipe, values: dict[str, Any]) -> str:
    """``30 layers, learning rate 0.001``, and whatever else varies."""
    first = {"model.depth": getattr(recipe.model, "depth", None), "optimizer.lr": recipe.optimizer.lr}
    shown = {name: value for name, value in {**first, **values}.items() if value is not None}
    return ", ".join(_WORDS.get(name, name + " {}").format(value) for name, value in shown.items())
