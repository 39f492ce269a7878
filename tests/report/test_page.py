"""The page: its numbers are those of the record, whatever they are, and it needs nothing else."""

import json
import re
from html.parser import HTMLParser
from math import nan
from statistics import median

import pytest
import torch

from comparisons import LOSS, compared
from recipes_for_tests import recipe
from trainability.experiments.comparison import Comparison
from trainability.experiments.run import run
from trainability.report import page as page_module
from trainability.report.page import render, write_report
from trainability.tasks import Loss, Task

SMALL = {"model": {"depth": 3, "width": 16}, "seeds": 3}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Comparison:
    torch.set_num_threads(1)
    section = {"remedies": ["default", "he", "he+lbe", "ic"]}
    return run(recipe(**SMALL, compare=section), tmp_path_factory.mktemp("small") / "run")


class Table(HTMLParser):
    """The numbers of the rows that name a remedy, and what the page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, dict[str, str]] = {}
        self.facts: dict[str, str] = {}
        self.outside: list[str] = []
        self._row, self._number, self._fact = "", "", ""

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.outside += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith(("data:", "#"))]
        self._row = found.get("data-remedy", self._row)
        self._fact = found.get("data-fact", self._fact)
        self._number = found.get("data-number", "") or ("fact" if found.get("class") == "value" else "")

    def handle_data(self, data):
        if self._number == "fact":
            self.facts[self._fact] = data
        elif self._number:
            self.rows.setdefault(self._row, {})[self._number] = data
        self._number = ""


def read(text: str) -> Table:
    table = Table()
    table.feed(re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))
    return table


def test_the_numbers_of_the_page_are_those_of_the_record(small, tmp_path):
    path = write_report(small, tmp_path)
    table, results = read(path.read_text()), json.loads((tmp_path / "results.json").read_text())["results"]
    scores: dict[str, dict[str, list[float]]] = {}
    for result in results:
        for key in ("test_accuracy", "val_accuracy", "step_ms"):
            scores.setdefault(result["remedy"], {}).setdefault(key, []).append(result[key])
    assert set(table.rows) == set(scores) == {"default", "he", "he+lbe", "ic"}
    for remedy, row in table.rows.items():
        assert row["median"] == f"{median(scores[remedy]['test_accuracy']):.2f}"
        assert row["step"] == f"{median(scores[remedy]['step_ms']):.1f}"
        if remedy != "default":
            pairs = zip(scores[remedy]["test_accuracy"], scores["default"]["test_accuracy"], strict=True)
            assert float(row["margin"]) == pytest.approx(sum(a - b for a, b in pairs) / 3, abs=0.051)
    best = table.facts["remedy"]
    assert median(scores[best]["val_accuracy"]) == max(median(found["val_accuracy"]) for found in scores.values())
    assert table.facts["score"] == f"{median(scores[best]['test_accuracy']):.1f} %"
    cost = median(scores[best]["step_ms"]) / median(scores["default"]["step_ms"])
    assert table.facts["cost"] == f"{cost:.2f} ×"


def test_a_page_needs_nothing_else_and_is_less_than_two_megabytes(small):
    text = render(small)
    assert read(text).outside == []
    assert text.count("* plotly.js") == 1
    assert len(text.encode()) < 2_000_000


def test_a_page_of_more_than_there_is_room_for_says_what_is_left_out(small, monkeypatch):
    monkeypatch.setattr(page_module, "_ROOM", -1)
    text = render(small)
    assert text.count('class="plot"') == 1
    assert "results.json has the numbers" in text


def test_what_is_shown_is_escaped(small, monkeypatch):
    bad = "</script><script>alert(1)</script>"
    change = {"path": bad, "before": bad, "after": bad, "why": bad}
    monkeypatch.setitem(small.data, "source", bad)
    report = {"remedy": {"name": bad}, "notes": [bad], "changes": [change], "skipped": {bad: bad}}
    monkeypatch.setattr(small.sides[0], "reports", [report])
    monkeypatch.setattr(Comparison, "name_of", lambda self, side: side.remedies.name + bad)
    assert "<script>alert(1)" not in render(small)


@pytest.mark.parametrize("test", [None, nan, 0.5])
def test_a_task_of_any_kind_with_little_to_show_has_a_page(test):
    """No chance, no unit, less is better, no layers, no test split, no times, one seed."""
    task = Task("squares", Loss(..., "squared error", "SE"), (LOSS,))
    text = render(compared({"he": [(0.4, test)], "default": [(0.7, test)]}, own=task, chance=None))
    table = read(text)
    assert table.facts["remedy"] == "he"
    assert set(table.rows) == {"he", "default"}
    assert table.rows["he"]["median"] == {None: "0.4", 0.5: "0.5"}.get(test, "inf")
    assert ("validation squared error" in text) == (test is None)
    assert "nan" not in "".join(value for row in table.rows.values() for value in row.values())


def test_a_run_alone_has_the_same_page(tmp_path):
    comparison = run(recipe(**SMALL, remedies="he"), tmp_path / "run")
    table = read((tmp_path / "run/report.html").read_text())
    values = [history.test for history in comparison.histories]
    assert table.facts["score"] == f"{median(values):.1f} %"
    assert table.rows["he"]["median"] == f"{median(values):.2f}"
    assert table.facts.keys() >= {"remedy", "score", "interval", "cost"}
