"""Databases that another version, or another program, has written."""

import json
import sqlite3
from pathlib import Path

import pytest

from recipes_for_tests import SWEEP, write
from refusals import codes_of
from trainability import cli


def sweep(tmp_path: Path) -> tuple[Path, list[str]]:
    file = write(tmp_path / "s.yaml", sweep=SWEEP, epochs=1)
    return tmp_path / "out/study.db", ["sweep", str(file), "--out", str(tmp_path / "out")]


DAMAGE = [
    "delete from trial_user_attributes where key = 'runs' and trial_id = 1",
    "update trial_user_attributes set value_json = '5' where key = 'runs' and trial_id = 1",
    "update trial_user_attributes set value_json = '[]' where key = 'runs' and trial_id = 1",
    "update trial_user_attributes set value_json = '[{}, {}]' where key = 'runs' and trial_id = 1",
    """update trial_user_attributes set value_json = '[{"status": 1, "val_accuracy": "x", "test_accuracy": []}]'
    where key = 'runs' and trial_id = 1""",
    "update trial_params set param_name = 'model.depth' where trial_id = 1",
    "delete from trial_params where trial_id = 1",
    "delete from trial_values where trial_id = 1",
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_trial_of_another_version_is_left_out_by_its_number(tmp_path, capsys, damage):
    database, call = sweep(tmp_path)
    assert cli.run(call) == 0
    with sqlite3.connect(database) as connection:
        connection.execute(damage)
    connection.close()
    capsys.readouterr()
    code = cli.run([*call, "--json", "--resume"])
    said = capsys.readouterr()
    assert {run["trial"] for run in json.loads(said.out)["results"]} == {1}
    assert code == 1
    assert "Trial 0 is left out" in said.err
    assert "Left out, since their records are damaged" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    "damage",
    [
        "update trial_user_attributes set value_json = '{' where key = 'runs'",
        "update trial_params set distribution_json = '{}'",
        "update study_directions set direction = 'MINIMIZE'",
        "update alembic_version set version_num = 'x'",
    ],
)
def test_a_database_that_is_not_ours_is_a_sentence(tmp_path, capsys, monkeypatch, damage):
    database, call = sweep(tmp_path)
    assert cli.run(call) == 0
    with sqlite3.connect(database) as connection:
        connection.execute(damage)
    connection.close()
    capsys.readouterr()
    codes = codes_of(monkeypatch)
    assert cli.run([*call, "--resume"]) == 2
    assert codes in (["storage"], ["study-foreign"])
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
