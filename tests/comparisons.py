"""Comparisons made by hand, of which every number is known."""

from collections.abc import Mapping, Sequence

from recipes_for_tests import recipe
from trainability.experiments.comparison import Comparison, Side
from trainability.experiments.recipe import Recipe
from trainability.tasks import Metric, Task, task
from trainability.training.history import History, ScorePoint

LOSS = Metric("squared error", "min", ..., worst=float("inf"))


def history(remedy: str, seed: int, val: float | None, test: float | None, **more: object) -> History:
    points = [] if val is None and test is None else [ScorePoint(10, val, test)]
    return History(remedy, 2, 1e-3, seed, status="done", scores=points, steps=10, epochs=1, **more)


def compared(
    scores: Mapping[str, Sequence[tuple[float | None, float | None]]],
    *,
    own: Task | None = None,
    chance: float | None = 10.0,
    step_ms: Mapping[str, float] | None = None,
    parameters: Mapping[str, object] | None = None,
) -> Comparison:
    """A comparison by remedy of one (validation, test) for every seed, the same at all parameters."""
    section = {"remedies": list(scores), **({"parameters": parameters} if parameters else {})}
    asked: Recipe = recipe(compare=section)
    sides = [
        Side(
            cell,
            [
                history(
                    cell.recipe.remedies.name, seed, *values, step_ms=(step_ms or {}).get(cell.recipe.remedies.name)
                )
                for seed, values in enumerate(scores[cell.recipe.remedies.name])
            ],
        )
        for cell in asked.cells()
    ]
    environment = {"data": {}}
    data = {"name": "digits", "source": "here", "train": 100}
    return Comparison(asked, data, environment, sides, own or task("classification"), chance)
