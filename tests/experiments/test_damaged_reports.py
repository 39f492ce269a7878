"""The record of what remedies changed, damaged: the rest of the report is shown without it."""

import json

import pytest

from trainability.experiments.recipe import Recipe
from trainability.experiments.run import run

CHANGE = {"path": "a", "before": "b", "after": "c", "why": "d"}
REPORT = {"remedy": {"name": "ic"}, "applied": True, "changes": [CHANGE], "skipped": {}, "notes": [], "check": None}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = Recipe(model={"name": "fnn", "depth": 1, "width": 4}, epochs=1, seeds=1, remedies="ic", probes=0)
    run(recipe, folder)
    return recipe, folder


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        *((json.dumps(value), False) for value in ([None], {}, 3, [[]], [{}], [REPORT | {"changes": [3]}])),
        *((json.dumps([REPORT | {name: None}]), False) for name in ("remedy", "changes", "skipped", "notes")),
        (json.dumps([REPORT | {"changes": [{"path": "a"}]}]), False),
        (json.dumps([REPORT | {"remedy": {"name": 3}}]), False),
        ("[" * 100_000, False),
        ("", False),
        (json.dumps([REPORT]), True),
    ],
)
def test_a_record_of_another_form_is_left_out(finished, content, kept):
    recipe, folder = finished
    (folder / "remedies.json").write_text(content)
    comparison = run(recipe, folder, existing="resume")
    assert [side.reports for side in comparison.sides] == [[REPORT] if kept else []]
    assert (folder / "report.html").read_text().rstrip().endswith("</html>")
