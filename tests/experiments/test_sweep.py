"""`trainability sweep`: workers that share a study, and die."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
import yaml

from refusals import codes_of
from trainability import cli
from trainability.data import load
from trainability.experiments.recipe import Recipe
from trainability.experiments.study import claim, given_up, grid, open_study, refill, rows
from trainability.experiments.sweep import work
from trainability.report.sweep import heatmap_pair, narrate_sweep, render_sweep
from trainability.training.devices import fabric_on

SWEEP = {
    "model": {"depth": 3, "width": 12},
    "init": "he",
    "lbe": {},
    "epochs": 2,
    "seeds": 2,
    "probes": 1,
    "sweep": {
        "parameters": {"lbe.alpha": [0.3, 0.6], "lbe.beta": [0.1, 0.2], "model.depth": [2, 3]},
        "stack": 4,
        "heartbeat": 1,
    },
}


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate({**SWEEP, **changes})


def write(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump({**SWEEP, **changes}))
    return path


def url(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'study.db'}"


def finished_once(found, expected: int) -> None:
    assert len(found) == expected
    assert max(Counter(repr(sorted(row.params.items())) for row in found).values()) == 1


def test_a_grid_is_trained_once_and_reported(tmp_path, capsys):
    file = write(tmp_path / "s.yaml")
    assert cli.run(["sweep", str(file), "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["results"]) == 8 * 2
    assert {"trial", "params", "seed", "val_accuracy", "test_accuracy"} <= found["results"][0].keys()
    study = open_study(recipe(), url(tmp_path / "out"))
    finished_once(rows(study, recipe()), 8)
    report = (tmp_path / "out/report.html").read_text()
    assert "lbe.alpha × lbe.beta" in report
    numbers = {row.number for row in rows(study, recipe())}
    assert cli.run(["sweep", str(file), "--out", str(tmp_path / "out")]) == 0  # there is nothing left to do
    assert {row.number for row in rows(study, recipe())} == numbers


def test_members_of_a_stack_score_as_trials_alone(tmp_path):
    together, alone = recipe(), recipe(sweep={**SWEEP["sweep"], "stack": 1})
    scores = []
    for number, one in enumerate((together, alone)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(yaml.safe_dump(one.resolved()))
        assert cli.run(["sweep", str(file), "--out", str(tmp_path / str(number))]) == 0
        found = rows(open_study(one, url(tmp_path / str(number))), one)
        scores.append({repr(sorted(row.params.items())): row.val for row in found})
    assert scores[0] == pytest.approx(scores[1], abs=0.3)  # one sample of the split, at most


def test_the_best_is_chosen_on_the_validation_split(tmp_path):
    study = open_study(recipe(), url(tmp_path))
    for val, test in ((50.0, 99.0), (60.0, 10.0)):
        trial = claim(study, recipe(), 1)[0]
        run = {"test_accuracy": test, "val_accuracy": val, "status": "done"}
        trial.set_user_attr("runs", [run, run])
        study.tell(trial, val)
    assert [row.test for row in rows(study, recipe())] == [10.0, 99.0]
    assert "60.00 % on the validation split and 10.00 % on the test split" in narrate_sweep(rows(study, recipe()), 2)[0]


def test_two_workers_never_hold_the_same_trial(tmp_path):
    first, second = (open_study(recipe(), url(tmp_path)) for _ in (1, 2))
    taken = [t.params for _ in range(4) for study in (first, second) for t in claim(study, recipe(), 1)]
    assert sorted(repr(sorted(p.items())) for p in taken) == sorted(repr(sorted(p.items())) for p in grid(recipe()))
    assert claim(first, recipe(), 1) == []
    refill(second, recipe())
    assert claim(second, recipe(), 1) == []


def test_a_trial_that_was_queued_twice_is_run_once(tmp_path):
    study = open_study(recipe(), url(tmp_path))
    study.enqueue_trial(grid(recipe())[0])
    assert len(claim(study, recipe(), 100)) == 8


def test_tpe_stops_at_its_budget(tmp_path):
    changes = {
        "sweep": {
            "method": "tpe",
            "trials": 5,
            "stack": 6,
            "parameters": {"lbe.beta": {"low": 0.01, "high": 1.0, "log": True}},
        }
    }
    file = write(tmp_path / "s.yaml", **changes)
    assert cli.run(["sweep", str(file), "--out", str(tmp_path / "out")]) == 0
    wanted = recipe(**changes)
    found = rows(open_study(wanted, url(tmp_path / "out")), wanted)
    finished_once(found, 5)
    assert all(0.01 <= row.params["lbe.beta"] <= 1 for row in found)


def test_killed_workers_lose_no_finished_trial_and_the_others_take_up_theirs(tmp_path):
    file = write(tmp_path / "s.yaml", epochs=12, engine={"threads": 1})
    wanted = recipe(epochs=12, engine={"threads": 1})
    storage = url(tmp_path / "out")
    study = open_study(wanted, storage)
    command = [
        sys.executable,
        "-m",
        "trainability",
        "sweep",
        str(file),
        "--out",
        str(tmp_path / "out"),
        "--storage",
        storage,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([*command, "--worker", str(n)], env=environment, stderr=subprocess.DEVNULL) for n in (1, 2)
    ]
    while not any(t.state == optuna.trial.TrialState.RUNNING for t in study.get_trials(deepcopy=False)):
        time.sleep(0.05)
    time.sleep(0.3)
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
    time.sleep(3.2)
    file = write(tmp_path / "s.yaml")
    assert cli.run(["sweep", str(file), "--out", str(tmp_path), "--storage", url(tmp_path)]) == 0
    finished_once(rows(study, recipe()), 8)


def test_a_trial_that_always_dies_is_given_up_and_one_that_was_returned_is_not(tmp_path):
    wanted = recipe(sweep={"parameters": {"lbe.alpha": [0.3, 0.6]}, "retries": 1})
    study = open_study(wanted, url(tmp_path))
    first, second = claim(study, wanted, 2)
    for _ in range(2):
        study.tell(first, state=optuna.trial.TrialState.FAIL)
        second.set_user_attr("returned", True)
        study.tell(second, state=optuna.trial.TrialState.FAIL)
        refill(study, wanted)
        again = {t.params["lbe.alpha"]: t for t in claim(study, wanted, 9)}
        first, second = again.get(0.3), again[0.6]
    assert first is None
    assert given_up(study, wanted) == [{"lbe.alpha": 0.3}]


def test_an_interrupted_worker_returns_its_trials(tmp_path):
    study = open_study(recipe(), url(tmp_path))

    def interrupt(training):
        if training.steps == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(recipe(), study, load("digits"), fabric_on(), progress=interrupt)
    assert not any(t.state.name == "RUNNING" for t in study.trials)
    work(recipe(), study, load("digits"), fabric_on())
    finished_once(rows(study, recipe()), 8)


def test_a_worker_that_was_taken_for_dead_leaves_its_trials_to_others(tmp_path):
    study = open_study(recipe(), url(tmp_path))
    stolen = []

    def steal(training):
        if training is not None and training.steps == 3 and not stolen:
            for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
                study._storage.set_trial_state_values(trial._trial_id, state=optuna.trial.TrialState.FAIL)
                stolen.append(trial.number)

    work(recipe(), study, load("digits"), fabric_on(), progress=steal)
    assert stolen
    finished_once(rows(study, recipe()), 8)
    assert not set(stolen) & {row.number for row in rows(study, recipe())}


def test_workers_that_make_a_study_at_the_same_moment_all_get_it(tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from test_sweep import recipe
from trainability.experiments.study import open_study
open_study(recipe(), {url(tmp_path)!r})
"""
    workers = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(4)]
    said = [worker.communicate()[1].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4, said
    assert len(claim(open_study(recipe(), url(tmp_path)), recipe(), 99)) == 8


@pytest.mark.parametrize(
    ("changes", "args", "code", "names"),
    [
        ({"sweep": None}, [], "not-a-sweep", "sweep"),
        ({"sweep": {"parameters": {}}}, [], "out-of-range", "sweep.parameters"),
        ({"sweep": {"parameters": {"lbe.alpa": [1]}}}, [], "unknown-setting", "lbe.alpha"),
        ({"sweep": {"parameters": {"model.depth": [0]}}}, [], "out-of-range", "model.depth"),
        (
            {"sweep": {"parameters": {"lbe.beta": {"low": 1, "high": 2}}}},
            [],
            "needs-a-list",
            "lbe.beta",
        ),
        ({"sweep": {"method": "tpe", "parameters": {"lbe.beta": [1]}}}, [], "missing-setting", "trials"),
        (
            {"sweep": {"method": "tpe", "trials": 2, "parameters": {"lbe.beta": {"low": 2, "high": 1}}}},
            [],
            "out-of-range",
            "low",
        ),
        ({"engine": {"devices": 2}}, [], "does-not-apply", "--workers"),
        ({"loggers": ["tensorboard"]}, [], "does-not-apply", "loggers"),
        ({"sweep": {"parameters": {"seeds": [1, 2]}}}, [], "cannot-vary", "seeds"),
        ({"sweep": {"parameters": {"data.name": ["digits", "mnist"]}}}, [], "cannot-vary", "data.name"),
        ({"sweep": {"parameters": {"lbe.beta": [0.1, 0.1]}}}, [], "duplicate", "lbe.beta"),
        ({"sweep": {"parameters": {"batch_size": [64, 5000]}}}, [], "batch-too-large", "1077"),
        (
            {"sweep": {"parameters": {f"lbe.{n}": list(range(99)) for n in ("alpha", "beta", "alpha_min")}}},
            [],
            "too-many-trials",
            "970299",
        ),
        (
            {"sweep": {"parameters": {"epochs": [2, 10], "schedule.warmup": [0.5, 5]}}, "schedule": {"kind": "cosine"}},
            [],
            "out-of-range",
            "epochs = 2, schedule.warmup = 5",
        ),
        (
            {"sweep": {"method": "tpe", "trials": 2, "parameters": {"model.depth": {"low": 2, "high": 4}}}},
            [],
            "needs-a-list",
            "model.depth",
        ),
        ({}, ["--storage", "sqlite://"], "storage", "sqlite:///FILE"),
        ({}, ["--storage", "postgresql+psycopg://me@h:abc/x"], "storage", "h:abc/x"),
        ({}, ["--storage", "postgresql+psycopg://me:secret@127.0.0.1:1/none"], "storage", "127.0.0.1:1/none"),
        ({}, ["--storage", "sqlite:////nowhere/at/all.db"], "storage", "unable to open database file"),
        ({}, ["--storage", "nonsense"], "storage", "nonsense"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, capsys, monkeypatch, changes, args, code, names):
    file, codes = write(tmp_path / "s.yaml", **changes), codes_of("sweep", monkeypatch)
    assert cli.run(["sweep", str(file), "--out", str(tmp_path / "out"), *args]) == 2
    said = capsys.readouterr().err.strip()
    assert codes == [code]
    assert names in said
    assert "secret" not in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out/recipe.yaml").exists()


def test_the_report_escapes_what_it_shows(tmp_path):
    study = open_study(recipe(), url(tmp_path))
    trial = claim(study, recipe(), 1)[0]
    run = {"test_accuracy": 1.0, "val_accuracy": 1.0, "status": "done"}
    trial.set_user_attr("runs", [run, run])
    study.tell(trial, 1.0)
    html = render_sweep(recipe(), rows(study, recipe()), [{"<script>alert(1)</script>": 1}])
    assert "<script>alert(1)" not in html
    assert heatmap_pair(rows(study, recipe())) is None
