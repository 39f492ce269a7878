"""Tables of an experiment, as it goes and at its end, within 80 columns."""

import time
from collections.abc import Sequence
from statistics import median
from textwrap import shorten

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from trainability.cli.terminal import duration
from trainability.experiments.comparison import Comparison
from trainability.experiments.study import Row
from trainability.report.answer import score_of
from trainability.report.sweep import plain, short
from trainability.report.text import WIDTH, grid, shown
from trainability.tasks import Metric
from trainability.training.history import ScorePoint

_MOST_ROWS = 12


class Watch:
    """The table of an experiment as it goes, drawn a few times a second at most; in a log, a line an epoch."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begin = time.monotonic()
        self._drawn = 0.0
        self._first: int | None = None
        self._line = 0
        self._table = Table()

    def __call__(self, comparison: Comparison, done: int, total: int) -> Table:
        """The table after so many of all steps."""
        now = time.monotonic()
        if self._first is None:
            self._first = done
        if not self._console.is_terminal:
            self._log(comparison)
        if now - self._drawn > 0.25:
            self._drawn = now
            fresh = done - self._first
            left = (now - self._begin) / fresh * (total - done) if fresh else None
            self._table = histories(comparison)
            self._table.title = f"step {done} of {total}, {duration(left)} left"
        return self._table

    def _log(self, comparison: Comparison) -> None:
        """One line per epoch, with the median score of every remedy."""
        going = [history for history in comparison.histories if history.status != "diverged"]
        epochs = min((history.epochs for history in going), default=0)
        if epochs <= self._line:
            return
        self._line = epochs
        metric = comparison.task.metric
        scores = {
            f"{comparison.name_of(side)} {metric.number(median(values), 'brief')}": None
            for side in comparison.sides
            if (values := [_scored(h.scores[-1]) for h in side.histories if h.scores])
        }
        part = "validation" if any(h.val is not None for h in going) else "test"
        line = f"epoch {epochs}, {part} {metric.name}: {', '.join(scores)}"
        self._console.print(shorten(line, WIDTH, placeholder=" ..."), soft_wrap=True, markup=False)


def _scored(point: ScorePoint) -> float:
    """The validation score, or that on the test part where there is none."""
    return score_of(point) if point.val is None else point.val


def histories(comparison: Comparison) -> Table:
    """One row per network; of many those that train now."""
    rows = [(comparison.name_of(side), history) for side in comparison.sides for history in side.histories]
    started = [row for row in rows if row[1].status != "waiting"][-max(_MOST_ROWS, len(comparison.sides)) :]
    runs = [history for _, history in started]
    columns = {
        "remedy": [name for name, _ in started],
        "seed": [str(run.seed) for run in runs],
        "lr": [f"{run.lr:g}" for run in runs],
        "status": [run.status for run in runs],
        "epoch": [str(run.epochs) for run in runs],
        "val": [shown(run.val, ".2f") for run in runs],
        "test": [shown(run.test, ".2f") for run in runs],
        "loss": [shown(run.losses[-1].loss if run.losses else None, ".3f") for run in runs],
        "last nats": [shown(run.result()["entropy_last"], ".3g") for run in runs],
        "ms": [shown(run.step_ms, ".1f") for run in runs],
    }
    if len(comparison.sides) == 1:
        del columns["remedy"]
    return grid(columns, leave_out=("last nats", "lr", "loss", "ms", "epoch"), left=("remedy", "seed"), framed=False)


def trials(found: Sequence[Row], metric: Metric, most: int = 10) -> Group:
    """The best trials by validation score; the test score is shown for the one that was chosen."""
    title = f"Finished trials: {len(found)}; the best by validation {metric.name} (mean over seeds)"
    best, names = found[:most], list(found[0].params) if found else []
    settings = dict(zip(short(names), names, strict=True))
    columns = {
        "trial": [str(row.number) for row in best],
        **{heading: [plain(row.params[name]) for row in best] for heading, name in settings.items()},
        f"val {metric.unit}".rstrip(): [metric.number(row.val) for row in best],
        f"test {metric.unit}".rstrip(): [metric.number(row.test) if row is best[0] else "" for row in best],
    }
    return Group(Text(title), grid(columns, leave_out=list(settings)[::-1]))
