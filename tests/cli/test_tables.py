"""Tables in a terminal of 80 columns: no cell wraps, whatever remedies and settings are called."""

from io import StringIO

from rich.console import Console

from comparisons import compared
from trainability.cli import tables
from trainability.experiments.study import Row
from trainability.report import text
from trainability.report.answer import answer
from trainability.report.table import reference, table
from trainability.tasks import task

METRIC = task("classification").metric
LONG = ("default", "he+ic+lbe", "he+layernorm+lbe")


def printed(what: object) -> list[str]:
    console = Console(width=80, file=StringIO())
    console.print(what)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def long_names():
    made = compared(
        {name: [(100.0, 100.0), (7.78, 7.78), (55.5, 55.5)] for name in LONG},
        step_ms=dict.fromkeys(LONG, 1234.5),
        parameters={"remedies.lbe.alpha": [0.25, 0.5]},
    )
    for run in made.histories:
        run.status = "interrupted"
    return made


def test_a_comparison_of_long_names_has_one_line_for_each():
    made = long_names()
    (section,) = made.sections()
    assert "he+layernorm+lbe lbe.alpha=0.25" in section.histories
    found = answer(made, section)
    rows = table(section, made.task, made.chance, found)
    lines = printed(text.remedies(section, rows, found, reference(section, METRIC), METRIC))
    assert len(lines) == 3 + len(rows)
    for row in rows:
        (line,) = (line for line in lines if line.split("  ")[0].strip() == row.remedy)
        cells = ["55.50", "7.8 to 100.0", "1234.5", *(["+0.0"] if row.remedy != "default" else [])]
        assert all(cell in line for cell in cells)


def test_networks_of_long_names_have_one_line_for_each():
    made = long_names()
    lines = printed(tables.histories(made))
    assert len(lines) == 1 + min(len(made.histories), 12)
    assert all("interrupted" in line for line in lines[1:])
    assert any("he+layernorm+lbe lbe.alpha=0.5 " in line for line in lines)


def test_trials_of_many_settings_have_one_line_for_each():
    params = {"remedies.lbe.alpha": 0.123456, "remedies.lbe.beta": 0.05, "optimizer.lr": 1e-05, "model.depth": 100}
    params |= {"model.width": 1000, "batch_size": 128, "optimizer.weight_decay": 0.0001}
    found = [Row(number, params, 81.25, 80.5, []) for number in range(1000, 1012)]
    lines = printed(tables.trials(found, METRIC))
    assert len(lines) == 3 + 10
    assert all(str(row.number) in line for row, line in zip(found, lines[3:], strict=False))
    assert "0.123456" in lines[3]
    assert "80.50" in lines[3]
    assert not any("80.50" in line for line in lines[4:])
