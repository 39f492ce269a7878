"""Tables of an experiment, as it goes and at its end, within 80 columns."""

import time
from collections.abc import Sequence
from statistics import median

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainability.cli.terminal import duration
from trainability.experiments.comparison import Comparison, Section
from trainability.experiments.study import Row
from trainability.report.answer import Answer
from trainability.report.sweep import plain
from trainability.report.table import Line
from trainability.tasks import Metric
from trainability.training.history import History

_MOST_ROWS = 12
_NAME = 36  # characters of the longest name that is not folded


class Watch:
    """The table of an experiment as it goes, drawn a few times a second at most; in a log, a line an epoch."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begin = time.monotonic()
        self._drawn = 0.0
        self._first: int | None = None
        self._line: tuple[int, ...] | None = None
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
        """One line per epoch, with the middle of the networks."""
        found = [history for history in comparison.histories if history.scores]
        epochs = {history.epochs for history in found}
        beginning = epochs == {1} and any(history.status == "waiting" for history in comparison.histories)
        if len(epochs) != 1 or beginning or self._line == (line := (len(found), *epochs)):
            return
        self._line = line
        part, values = "validation", [h.val for h in found if h.val is not None]
        if not values:
            part, values = "test", [h.test for h in found if h.test is not None]
        self._console.print(f"epoch {found[0].epochs}: median {part} score {median(values):.2f}")


def histories(comparison: Comparison) -> Table:
    """One row per network; of many those that train now."""
    grid = Table(box=None, pad_edge=False, title_justify="left")
    several = len(comparison.sides) > 1
    for heading in (*(["remedy"] if several else []), "seed"):
        grid.add_column(heading, no_wrap=True)
    for heading in ("lr", "status", "epoch", "val", "test", "loss", "last nats", "ms"):
        grid.add_column(heading, justify="right", no_wrap=True)
    rows = [(comparison.name_of(side), history) for side in comparison.sides for history in side.histories]
    started = [row for row in rows if row[1].status != "waiting"]
    for name, history in started[-max(_MOST_ROWS, len(comparison.sides)) :]:
        cells = [str(history.seed), f"{history.lr:g}", history.status, str(history.epochs), *_numbers(history)]
        grid.add_row(*([name] if several else []), *cells)
    return grid


def _numbers(history: History) -> list[str]:
    result = history.result()
    last = history.losses[-1].loss if history.losses else None
    values = (history.val, history.test, last, result["entropy_last"], history.step_ms)
    return [
        "" if value is None else format(value, form)
        for value, form in zip(values, (".2f", ".2f", ".3f", ".3g", ".1f"), strict=True)
    ]


def remedies(section: Section, rows: Sequence[Line], found: Answer, over: str | None, metric: Metric) -> Table:
    """One row per remedy, the strongest first."""
    grid = Table(
        title=escape(f"{section.title}: {found.part} {metric.label}"),
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
    )
    grid.add_column("remedy", overflow="fold", min_width=min(_NAME, max(map(cell_len, section.histories))))
    for heading in ("median", "range", *([f"over {over}"] if over else []), "ms"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        gain = [""] if row.margin is None else [metric.number(row.margin.gain, "brief", "+")]
        grid.add_row(
            escape(row.remedy),
            metric.number(row.median),
            f"{metric.number(row.low, 'brief')} to {metric.number(row.high, 'brief')}",
            *(gain if over else []),
            "" if row.step_ms is None else f"{row.step_ms:.1f}",
        )
    return grid


def trials(found: Sequence[Row], metric: Metric, most: int = 10) -> Table:
    """The best trials by validation score; the test score is shown for the one that was chosen."""
    title = f"Finished trials: {len(found)}; the best by validation {metric.name} (mean over seeds)"
    grid = Table(title=escape(title), title_justify="left", box=box.SIMPLE, pad_edge=False)
    names = list(found[0].params) if found else []
    for name in ("trial", *_short(names), *(f"{part} {metric.unit}".rstrip() for part in ("val", "test"))):
        grid.add_column(escape(name), justify="right", overflow="fold")
    for place, row in enumerate(found[:most]):
        values = [escape(plain(row.params[name])) for name in names]
        grid.add_row(str(row.number), *values, metric.number(row.val), metric.number(row.test) if place == 0 else "")
    return grid


def _short(names: Sequence[str]) -> list[str]:
    """The last words of names, and more of them where these are not told apart.

    >>> _short(["remedies.lbe.beta", "optimizer.lr"]), _short(["remedies.lbe.alpha", "remedies.other.alpha"])
    (['beta', 'lr'], ['lbe.alpha', 'other.alpha'])
    """
    parts = [name.split(".") for name in names]
    most = max(map(len, parts), default=0)
    tried = ([".".join(part[-count:]) for part in parts] for count in range(1, most))
    return next((short for short in tried if len(set(short)) == len(names)), list(names))
