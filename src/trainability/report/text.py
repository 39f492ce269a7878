"""A comparison as text: its answer, its tables, and the words beside them, within 80 columns."""

import io
from collections.abc import Iterator, Sequence
from math import isfinite

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from trainability.experiments.comparison import Comparison, Section
from trainability.report.answer import Answer, answer
from trainability.report.narrative import narrate
from trainability.report.table import Line, reference, table
from trainability.report.words import headline
from trainability.tasks import Metric

WIDTH = 80


def as_text(comparison: Comparison) -> str:
    """The summary as plain text."""
    written = io.StringIO()
    console = Console(file=written, width=WIDTH, color_system=None, force_terminal=False)
    for part in summary(comparison):
        console.print(part)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def summary(comparison: Comparison) -> Iterator[RenderableType]:
    """Yield the notes, the answer, and for every section its table and words."""
    yield from map(Text, comparison.notes)
    words, metric = dict(narrate(comparison)), comparison.task.metric
    if len(words) > 1 and (overall := answer(comparison)):
        yield Text(f"{headline(overall, metric)} {overall.certainty}")
    for section in comparison.sections():
        if found := answer(comparison, section):
            if comparison.recipe.compare is not None:
                rows = table(section, comparison.task, comparison.chance, found)
                yield remedies(section, rows, found, reference(section, metric), metric)
            for sentence in words[section.title][: 2 if len(words) > 1 else None]:  # the report has the rest
                yield Text(f"- {sentence}")
    if all(history.status == "diverged" for history in comparison.histories):
        yield Text(
            "Every network diverged: try a lower learning rate, or a remedy, and look for data that are not finite."
        )


def remedies(section: Section, rows: Sequence[Line], found: Answer, over: str | None, metric: Metric) -> Group:
    """One row per remedy, the strongest first."""
    gains = [row.margin.gain if row.margin and isfinite(row.margin.gain) else None for row in rows]
    columns = {
        "remedy": [row.remedy for row in rows],
        "median": [metric.number(row.median) for row in rows],
        "range": [f"{metric.number(row.low, 'brief')} to {metric.number(row.high, 'brief')}" for row in rows],
        f"over {over}": ["" if gain is None else metric.number(gain, "brief", "+") for gain in gains],
        "ms": [shown(row.step_ms, ".1f") for row in rows],
    }
    if over is None:
        del columns["over None"]
    made = grid(columns, leave_out=("range", "ms"), left=("remedy",))
    return Group(Text(f"{section.title}: {found.part} {metric.label}"), made)


def grid(
    columns: dict[str, list[str]], *, leave_out: Sequence[str], left: Sequence[str] = (), framed: bool = True
) -> Table:
    """A table of cells by heading, without as many of those that may be left out as it takes to fit."""
    widths = {heading: max(map(cell_len, [heading, *cells])) + 2 for heading, cells in columns.items()}
    for heading in leave_out:
        if sum(widths.values()) > WIDTH:
            del widths[heading]
    made = Table(
        box=box.SIMPLE if framed else None,
        padding=(0, 1, 0, 0) if framed else (0, 1),
        pad_edge=False,
        title_justify="left",
    )
    for heading in widths:
        made.add_column(escape(heading), justify="left" if heading in left else "right", overflow="fold")
    for cells in zip(*(columns[heading] for heading in widths), strict=True):
        made.add_row(*map(escape, cells))
    return made


def shown(value: float | None, form: str) -> str:
    """A number in a form, and nothing for none."""
    return "" if value is None else format(value, form)
