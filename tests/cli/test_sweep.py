"""`trainability sweep` as its user meets it: words, output, exit codes, files, and workers that die."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from refusals import codes_of
from sweeps import SWEEP, finished_once, recipe, url, write
from trainability import cli
from trainability.experiments.study import open_study, rows
from trainability.training.yaml_files import load_yaml

ONE = {"parameters": {"optimizer.lr": [0.1, 0.01]}}


def test_a_grid_is_trained_once_and_reported(tmp_path, capsys):
    file = write(tmp_path / "s.yaml")
    assert cli.run(["sweep", str(file), "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["results"]) == 8 * 2
    assert {"trial", "params", "seed", "val_accuracy", "test_accuracy"} <= found["results"][0].keys()
    study = open_study(recipe(), url(tmp_path / "out"))
    finished_once(rows(study, recipe()), 8)
    report = (tmp_path / "out/report.html").read_text()
    assert "remedies.lbe.alpha × remedies.lbe.beta" in report
    numbers = {row.number for row in rows(study, recipe())}
    assert cli.run(["sweep", str(file), "--out", str(tmp_path / "out"), "--resume"]) == 0  # there is nothing left to do
    assert {row.number for row in rows(study, recipe())} == numbers


def test_tpe_stops_at_its_budget(tmp_path):
    changes = {
        "sweep": {
            "method": "tpe",
            "trials": 5,
            "stack": 6,
            "parameters": {"remedies.lbe.beta": {"low": 0.01, "high": 1.0, "log": True}},
        }
    }
    file = write(tmp_path / "s.yaml", **changes)
    assert cli.run(["sweep", str(file), "--out", str(tmp_path / "out")]) == 0
    wanted = recipe(**changes)
    found = rows(open_study(wanted, url(tmp_path / "out")), wanted)
    finished_once(found, 5)
    assert all(0.01 <= row.params["remedies.lbe.beta"] <= 1 for row in found)


def test_killed_workers_lose_no_finished_trial_and_the_others_take_up_theirs(tmp_path):
    file = write(tmp_path / "s.yaml", epochs=12, engine={"threads": 1})
    wanted = recipe(epochs=12, engine={"threads": 1})
    storage = url(tmp_path / "out")
    study = open_study(wanted, storage)
    command = [sys.executable, "-m", "trainability", "sweep", str(file), "--out", str(tmp_path / "out")]
    command += ["--storage", storage]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([*command, "--worker", str(n)], env=environment, stderr=subprocess.DEVNULL) for n in (1, 2)
    ]
    while not any(t.user_attrs.get("claimed") for t in study.get_trials(deepcopy=False)):
        assert all(worker.poll() is None for worker in workers)
        time.sleep(0.05)
    workers[0].send_signal(signal.SIGKILL)
    workers[0].wait()
    before = {row.number: row.val for row in rows(study, wanted)}
    assert workers[1].wait(timeout=120) == 0
    found = rows(study, wanted)
    finished_once(found, 8)
    assert before.items() <= {row.number: row.val for row in found}.items()


@pytest.mark.filterwarnings("ignore:Heartbeat")
def test_a_worker_that_died_before_its_first_heartbeat_is_noticed(tmp_path):
    study = open_study(recipe(), url(tmp_path))
    study.ask()  # and no more is heard of it
    file = write(tmp_path / "s.yaml")
    assert cli.run(["sweep", str(file), "--out", str(tmp_path), "--storage", url(tmp_path)]) == 0
    finished_once(rows(study, recipe()), 8)


@pytest.mark.parametrize(
    ("changes", "args", "code", "names"),
    [
        ({"sweep": None}, [], "not-a-sweep", "sweep"),
        ({"sweep": {"parameters": {}}}, [], "out-of-range", "sweep.parameters"),
        ({"sweep": {"parameters": {"batch_size": [64, 5000]}}}, [], "batch-too-large", "1077"),
        ({"seeds": 10**6, "model": {"depth": 30, "width": 1000}, "sweep": ONE}, [], "memory", "GB"),
        ({"remedies": "tat", "sweep": ONE}, [], "eta-out-of-reach", "eta"),
        ({}, ["--resume"], "nothing-to-resume", "out"),
        ({}, ["--storage", "sqlite://"], "storage", "sqlite:///FILE"),
        ({}, ["--storage", "postgresql+psycopg://me@h:abc/x"], "storage", "h:abc/x"),
        ({}, ["--storage", "postgresql+psycopg://me:secret@127.0.0.1:1/none"], "storage", "127.0.0.1:1/none"),
        ({}, ["--storage", "sqlite:////nowhere/at/all.db"], "storage", "unable to open database file"),
        ({}, ["--storage", "nonsense"], "storage", "nonsense"),
        ({}, ["sweep.storage=nonsense"], "storage", "nonsense"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, capsys, monkeypatch, changes, args, code, names):
    file, codes = write(tmp_path / "s.yaml", **changes), codes_of(monkeypatch)
    assert cli.run(["sweep", str(file), "--out", str(tmp_path / "out"), *args]) == 2
    said = capsys.readouterr().err.strip()
    assert codes == [code]
    assert names in said
    assert "secret" not in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out/recipe.yaml").exists()


def test_a_worker_more_takes_its_part_and_the_printed_recipe_is_whole(tmp_path, capsys):
    file = write(tmp_path / "s.yaml", epochs=1)
    assert cli.run(["sweep", str(file), "optimizer.lr=0.01", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert load_yaml(printed, "it")["sweep"]["parameters"] == SWEEP["sweep"]["parameters"]
    (tmp_path / "printed.yaml").write_text(printed)
    assert cli.run(["sweep", str(tmp_path / "printed.yaml"), "--out", str(tmp_path / "out"), "--workers", "2"]) == 0
    wanted = recipe(epochs=1, optimizer={"lr": 0.01})
    finished_once(rows(open_study(wanted, url(tmp_path / "out")), wanted), 8)
    kept = json.loads((tmp_path / "out/results.json").read_text())
    assert kept["config"] == wanted.resolved()
    assert [(run["status"], run["remedy"]) for run in kept["results"]] == [("done", "he+lbe")] * 16


def test_what_was_finished_stays_when_a_sweep_goes_on_with_other_workers_settings(tmp_path):
    file = write(tmp_path / "s.yaml", epochs=1)
    assert cli.run(["sweep", str(file), "--out", str(tmp_path / "out")]) == 0
    before = (tmp_path / "out/results.json").read_bytes()
    more = ["--resume", "sweep.stack=2", "engine.threads=1", "sweep.retries=2"]
    assert cli.run(["sweep", str(file), "--out", str(tmp_path / "out"), *more]) == 0
    after = json.loads((tmp_path / "out/results.json").read_text())
    assert after["results"] == json.loads(before)["results"]
