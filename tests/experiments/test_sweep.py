"""Workers that train the trials of a study, and die."""

import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch

from sweeps import SWEEP, finished_once, recipe, url
from trainability.data import load
from trainability.data.own import own_data
from trainability.experiments.program import Program
from trainability.experiments.study import claim, given_up, grid, open_study, refill, rows, unreadable
from trainability.experiments.sweep import work
from trainability.report.sweep import heatmap_pair, narrate_sweep, render_sweep
from trainability.tasks import task
from trainability.training.devices import fabric_on


def test_members_of_a_stack_score_as_trials_alone(tmp_path):
    scores = []
    for name, one in (("together", recipe()), ("alone", recipe(sweep={**SWEEP["sweep"], "stack": 1}))):
        study = open_study(one, url(tmp_path / name))
        work(one, study, Program(load("digits")), fabric_on())
        scores.append({repr(sorted(row.params.items())): row.val for row in rows(study, one)})
    assert scores[0] == pytest.approx(scores[1], abs=0.3)  # one sample of the split, at most


def test_the_best_is_chosen_on_the_validation_split(tmp_path):
    study = open_study(recipe(), url(tmp_path))
    for val, test in ((50.0, 99.0), (60.0, 10.0)):
        trial = claim(study, recipe(), 1)[0]
        run = {"test_accuracy": test, "val_accuracy": val, "status": "done"}
        trial.set_user_attr("runs", [run, run])
        study.tell(trial, val)
    assert [row.test for row in rows(study, recipe())] == [10.0, 99.0]
    words = narrate_sweep(rows(study, recipe()), 2, task("classification").metric)
    assert all(number in words[0] for number in ("60.00 %", "10.00 %"))
    assert not any("99.00" in sentence for sentence in words)


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


def test_a_trial_that_always_dies_is_given_up_and_one_that_was_returned_is_not(tmp_path):
    wanted = recipe(sweep={"parameters": {"remedies.lbe.alpha": [0.3, 0.6]}, "retries": 1})
    study = open_study(wanted, url(tmp_path))
    first, second = claim(study, wanted, 2)
    for _ in range(2):
        study.tell(first, state=optuna.trial.TrialState.FAIL)
        second.set_user_attr("returned", True)
        study.tell(second, state=optuna.trial.TrialState.FAIL)
        refill(study, wanted)
        again = {t.params["remedies.lbe.alpha"]: t for t in claim(study, wanted, 9)}
        first, second = again.get(0.3), again[0.6]
    assert first is None
    assert given_up(study, wanted) == [{"remedies.lbe.alpha": 0.3}]


def test_an_interrupted_worker_returns_its_trials(tmp_path):
    study = open_study(recipe(), url(tmp_path))

    def interrupt(training):
        if training.steps == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(recipe(), study, Program(load("digits")), fabric_on(), progress=interrupt)
    assert not any(t.state.name == "RUNNING" for t in study.trials)
    work(recipe(), study, Program(load("digits")), fabric_on())
    finished_once(rows(study, recipe()), 8)


def test_a_worker_that_was_taken_for_dead_leaves_its_trials_to_others(tmp_path):
    study = open_study(recipe(), url(tmp_path))
    stolen = []

    def steal(training):
        if training is not None and training.steps == 3 and not stolen:
            for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
                study._storage.set_trial_state_values(trial._trial_id, state=optuna.trial.TrialState.FAIL)
                stolen.append(trial.number)

    work(recipe(), study, Program(load("digits")), fabric_on(), progress=steal)
    assert stolen
    finished_once(rows(study, recipe()), 8)
    assert not set(stolen) & {row.number for row in rows(study, recipe())}


def test_workers_that_make_a_study_at_the_same_moment_all_get_it(tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from sweeps import recipe
from trainability.experiments.study import open_study
open_study(recipe(), {url(tmp_path)!r})
"""
    workers = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(4)]
    said = [worker.communicate()[1].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4, said
    assert len(claim(open_study(recipe(), url(tmp_path)), recipe(), 99)) == 8


def test_the_report_escapes_what_it_shows(tmp_path):
    study = open_study(recipe(), url(tmp_path))
    trial = claim(study, recipe(), 1)[0]
    run = {"test_accuracy": 1.0, "val_accuracy": 1.0, "status": "done"}
    trial.set_user_attr("runs", [run, run])
    study.tell(trial, 1.0)
    html = render_sweep(recipe(), rows(study, recipe()), [{"<script>alert(1)</script>": 1}])
    assert "<script>alert(1)" not in html
    assert heatmap_pair(rows(study, recipe())) is None


def test_a_trial_that_diverged_counts_as_the_worst_of_a_metric_without_bounds(tmp_path):
    made = recipe(
        data={"name": "given:pair"},
        task="regression",
        optimizer={"name": "sgd"},
        sweep={"parameters": {"optimizer.lr": [1e-3, 1e6]}},
    )
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    study = open_study(made, url(tmp_path))
    work(made, study, Program(own_data((x, x[:, 0]), "pair")), fabric_on())
    assert unreadable(study, made) == []
    assert [row.val for row in rows(study, made)][1:] == [float("inf")]
