"""A run of a recipe: what is kept, what is taken up again, and what is refused."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from recipes_for_tests import (
    StopError,
    assert_same_weights,
    events,
    last_state,
    newest,
    recipe,
    resumed_at,
    stop_at,
    untimed,
)
from refusals import refused
from trainability.errors import ConfigError, FolderError, InfeasibleError
from trainability.experiments.recipe import Recipe
from trainability.experiments.run import run
from trainability.training import files
from trainability.training.folder import read_events
from trainability.training.trainer import Training

LONGER = {
    "model": {"depth": 4, "width": 16},
    "remedies": ["he", {"name": "lbe", "alpha": 0.5, "beta": 0.2}],
    "epochs": 6,
    "checkpoint_every": 7,
    "probes": 3,
}


def longer(**changes: object) -> Recipe:
    return recipe(**{**LONGER, **changes})


@pytest.mark.parametrize("step", [3, 7, 20, 47])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seeds": 1, "optimizer": {"name": "sgd", "options": {"momentum": 0.9}}},
        {"schedule": {"kind": "cosine", "warmup": 1}, "model": {"depth": 3, "width": 8, "batchnorm": True}},
        {"schedule": {"kind": "plateau", "patience": 1}, "data": {"augment": True}, "remedies": "he"},
    ],
)
def test_a_run_that_is_taken_up_again_ends_with_the_same_bits(tmp_path, changes, step):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(longer(**changes), whole)
    with pytest.raises(StopError):
        run(longer(**changes), broken, progress=stop_at(step))
    run(longer(**changes), broken, existing="resume")
    assert resumed_at(broken) == step // 7 * 7
    assert_same_weights(whole, broken)
    first, second = (json.loads((f / "results.json").read_text()) for f in (whole, broken))
    assert untimed(first["results"]) == untimed(second["results"])
    assert untimed(first["histories"]) == untimed(second["histories"])
    assert events(whole, "losses") == events(broken, "losses")


def short(epochs: int, **changes: object) -> Recipe:
    return recipe(**{"model": {"depth": 5, "width": 16}, "probes": 3, "epochs": epochs, **changes})


def assert_same_parts(one: object, other: object) -> None:
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True)
    elif isinstance(one, dict | list):
        assert len(one) == len(other)
        for name in one if isinstance(one, dict) else range(len(one)):
            assert_same_parts(one[name], other[name])
    else:
        assert one == other


def assert_same_state(one: Path, other: Path) -> None:
    """The last checkpoints hold the same tensors and numbers: weights, targets, optimizers and schedules."""
    first, second = last_state(one), last_state(other)
    assert first["steps"] == second["steps"] == first["total_steps"]
    for name in ("alive", "weights", "lbe", "updates"):
        assert_same_parts(second[name], first[name])


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"name": "sgd", "lr": 0.01, "options": {"momentum": 0.9}}},
        {"remedies": "ic", "data": {"augment": True}},
        {"remedies": "he+lbe", "schedule": {"kind": "step", "milestones": [1]}},
        {"optimizer": {"lr": 0.05}, "schedule": {"kind": "plateau", "patience": 1, "gamma": 0.5}, "remedies": "he"},
        {"optimizer": {"name": "radam"}, "remedies": "lbe"},
    ],
    ids=["sgd with momentum", "adam and dropout", "lbe and milestones", "plateau", "one optimizer each"],
)
def test_a_run_with_more_epochs_goes_on_to_the_bits_of_a_longer_run(tmp_path, changes):
    run(short(4, **changes), tmp_path / "whole")
    run(short(2, **changes), tmp_path / "run")
    extended = run(short(4, **changes), tmp_path / "run", existing="resume")
    assert resumed_at(tmp_path / "run") == 2 * extended.histories[0].steps // 4
    assert_same_state(tmp_path / "whole", tmp_path / "run")
    for name in ("recipe.yaml", "remedies.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    first, second = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "run"))
    for whole, grown in zip(untimed(first["histories"]), untimed(second["histories"]), strict=True):
        # Losses and flow are at other steps in the part that was done before.
        for name in whole.keys() - {"losses", "flow", "signal"}:
            assert grown[name] == whole[name], name
        assert grown["flow"][-1] == whole["flow"][-1]
        steps = [point["step"] for point in grown["flow"]]
        assert steps == sorted(set(steps))


def test_an_extension_that_was_killed_goes_on_by_the_same_command(tmp_path):
    run(short(4, checkpoint_every=5), tmp_path / "whole")
    run(short(2, checkpoint_every=5), tmp_path / "run")
    for step, begun_at in ((17, 16), (22, 16), (29, 20)):  # 16 steps were done, and 32 are to be
        with pytest.raises(StopError):
            run(short(4, checkpoint_every=5), tmp_path / "run", existing="resume", progress=stop_at(step))
        assert resumed_at(tmp_path / "run") == begun_at
    run(short(4, checkpoint_every=5), tmp_path / "run", existing="resume")
    assert_same_state(tmp_path / "whole", tmp_path / "run")


def test_a_run_that_was_interrupted_can_be_extended(tmp_path):
    run(short(4, checkpoint_every=5), tmp_path / "whole")
    with pytest.raises(StopError):
        run(short(2, checkpoint_every=5), tmp_path / "run", progress=stop_at(12))
    run(short(4, checkpoint_every=5), tmp_path / "run", existing="resume")
    assert resumed_at(tmp_path / "run") == 10
    assert_same_state(tmp_path / "whole", tmp_path / "run")


def test_networks_that_diverged_stay_as_they_are_in_an_extension(tmp_path):
    changes = {"optimizer": {"name": "sgd", "lr": 1e20}}
    before = run(short(2, **changes), tmp_path / "run")
    after = run(short(4, **changes), tmp_path / "run", existing="resume")
    assert [history.to_dict() for history in after.histories] == [history.to_dict() for history in before.histories]
    assert {history.status for history in after.histories} == {"diverged"}


@pytest.mark.parametrize(
    ("changes", "epochs", "code"),
    [
        ({}, 1, "fewer-epochs"),
        ({"schedule": {"kind": "cosine"}}, 4, "fixed-length"),
        ({"compare": {"parameters": {"schedule.kind": ["constant", "cosine"]}}}, 4, "fixed-length"),
    ],
)
def test_a_length_to_which_a_run_cannot_grow_is_refused_and_changes_nothing(tmp_path, changes, epochs, code):
    run(short(2, **changes), tmp_path / "run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with refused(FolderError, code, match="epochs=2"):
        run(short(epochs, **changes), tmp_path / "run", existing="resume")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_has_its_record_in_the_folder_and_a_report(tmp_path):
    comparison = run(recipe(remedies="he"), tmp_path / "a/b", environment={"allocator": "of the test"})
    names = {path.name for path in (tmp_path / "a/b").iterdir()}
    record = {"recipe.yaml", "environment.json", "events.jsonl", "remedies.json", "results.json", "report.html"}
    assert names == record | {"checkpoints", ".lock"}
    kept = json.loads((tmp_path / "a/b/results.json").read_text())
    assert kept["results"] == comparison.to_dict()["results"]
    assert json.loads((tmp_path / "a/b/environment.json").read_text())["allocator"] == "of the test"
    assert [history["status"] for history in kept["histories"]] == ["done", "done"]
    assert len(events(tmp_path / "a/b", "finished")) == 1


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path):
    with pytest.raises(StopError):
        run(longer(), tmp_path / "run", progress=stop_at(22))
    damaged = newest(tmp_path / "run")
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    comparison = run(longer(), tmp_path / "run", existing="resume")
    assert [event["checkpoint"] for event in read_events(tmp_path / "run/events.jsonl") if "checkpoint" in event] == [
        damaged.name
    ]
    assert damaged.name in comparison.notes[0]
    assert resumed_at(tmp_path / "run") == 14
    run(longer(), tmp_path / "whole")
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_a_line_that_was_being_written_when_the_machine_died_spoils_no_other(tmp_path):
    with pytest.raises(StopError):
        run(longer(), tmp_path / "run", progress=stop_at(22))
    with (tmp_path / "run/events.jsonl").open("a") as log:
        log.write('{"event": "losses", "st')
    run(longer(), tmp_path / "run", existing="resume")
    told = [event["event"] for event in read_events(tmp_path / "run/events.jsonl")]
    assert [kind for kind in told if kind in ("started", "resumed", "finished")] == ["started", "resumed", "finished"]


@pytest.mark.parametrize("at", [1, 3, 8, 16])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, at):
    calls, real = [], os.fsync

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises((OSError, FolderError)):
        run(longer(), tmp_path / "run")
    assert not [path for path in (tmp_path / "run").rglob(".*") if path.name != ".lock"]
    monkeypatch.setattr(files.os, "fsync", real)
    begun = (tmp_path / "run/recipe.yaml").exists()
    run(longer(), tmp_path / "run", existing="resume" if begun else "refuse")
    run(longer(), tmp_path / "whole")
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_step_and_is_a_checkpoint_and_a_report(tmp_path, monkeypatch, number):
    run(longer(), tmp_path / "whole")
    evaluate = Training._evaluate

    def interrupted_within(self):
        if self.steps == 16:
            os.kill(os.getpid(), number)
        evaluate(self)

    monkeypatch.setattr(Training, "_evaluate", interrupted_within)
    comparison = run(longer(), tmp_path / "run")
    assert comparison.interrupted
    kept = json.loads((tmp_path / "run/results.json").read_text())
    assert kept["interrupted"]
    assert [result["status"] for result in kept["results"]] == ["interrupted"] * 2
    assert (tmp_path / "run/report.html").exists()
    monkeypatch.setattr(Training, "_evaluate", evaluate)
    again = run(longer(), tmp_path / "run", existing="resume")
    assert not again.interrupted
    assert resumed_at(tmp_path / "run") == 16
    assert_same_weights(tmp_path / "whole", tmp_path / "run")
    assert [len(history.scores) for history in again.histories] == [6, 6]
    assert not json.loads((tmp_path / "run/results.json").read_text())["interrupted"]


def test_a_run_killed_before_its_results_were_written_writes_them(tmp_path):
    run(recipe(), tmp_path / "run")
    before = json.loads((tmp_path / "run/results.json").read_text())
    (tmp_path / "run/results.json").unlink()
    run(recipe(), tmp_path / "run", existing="resume")
    after = json.loads((tmp_path / "run/results.json").read_text())
    assert {**after, "seconds": 0} == {**before, "seconds": 0}


def test_resuming_what_is_done_changes_nothing(tmp_path):
    run(recipe(remedies="he"), tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    comparison = run(recipe(remedies="he"), tmp_path / "run", existing="resume")
    assert [history.status for history in comparison.histories] == ["done", "done"]
    assert comparison.sides[0].reports
    written = {"results.json", "report.html"}  # which tell how long this time took
    assert {p: p.read_bytes() for p in before if p.name not in written} == {
        p: content for p, content in before.items() if p.name not in written
    }


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    run(recipe(), tmp_path / "run")
    run(recipe(optimizer={"lr": 0.1}), tmp_path / "other")
    for own in (tmp_path / "run/checkpoints").glob("*.pt"):
        own.unlink()
    shutil.copy(newest(tmp_path / "other"), tmp_path / "run/checkpoints")
    with refused(FolderError, "other-recipe"):
        run(recipe(), tmp_path / "run", existing="resume")


def test_another_recipe_is_not_mixed_into_a_run(tmp_path):
    run(recipe(), tmp_path / "run")
    with refused(FolderError, "other-recipe", match="batch_size is 128 there and 64 here"):
        run(recipe(batch_size=64, epochs=7), tmp_path / "run", existing="resume")
    with refused(FolderError, "folder-in-use"):
        run(recipe(epochs=7), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"engine": {"nodes": 2}}, "no-launcher"),
        ({"engine": {"threads": 9999}}, "out-of-range"),
        ({"engine": {"device": "abacus"}}, "device"),
        ({"batch_size": 5000}, "batch-too-large"),
        ({"model": {"width": 10**6, "depth": 9}}, "memory"),
        ({"seeds": 10**4, "model": {"depth": 30, "width": 1000}}, "memory"),
        ({"engine": {"members": "direct"}, "remedies": "weightnorm"}, "not-stackable"),
        ({"model": {"depth": 3}, "remedies": "tat"}, "eta-out-of-reach"),
    ],
)
@pytest.mark.parametrize("compared", [False, True])
def test_what_cannot_be_trained_here_is_refused_and_leaves_nothing(tmp_path, changes, code, compared):
    if compared:
        remedies = changes.get("remedies", "selu")
        changes = {**changes, "remedies": "default", "compare": {"remedies": ["he", remedies]}}
    with refused(ConfigError, code):
        run(recipe(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_remedy_that_cannot_be_had_names_the_nearest_value_that_can(tmp_path):
    with pytest.raises(ConfigError, match=r"eta = 0\.\d") as caught:
        run(recipe(model={"depth": 3}, remedies="tat"), tmp_path / "run")
    assert isinstance(caught.value.__cause__, InfeasibleError)


@pytest.mark.parametrize("name", ["soap", "shampoo", "muon"])
def test_second_order_optimizers(tmp_path, name):
    pytest.importorskip("pytorch_optimizer")
    changes = {"optimizer": {"name": name, "lr": 1e-3}, "seeds": 1, "remedies": "he", "epochs": 2}
    (history,) = run(longer(**changes), tmp_path / "run").histories
    assert history.losses[-1].loss < history.losses[0].loss
    with pytest.raises(StopError):
        run(longer(**changes), tmp_path / "broken", progress=stop_at(9))
    run(longer(**changes), tmp_path / "broken", existing="resume")
    assert_same_weights(tmp_path / "run", tmp_path / "broken")


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions(tmp_path, precision):
    histories = run(longer(engine={"precision": precision}), tmp_path / "run").histories
    reference = run(longer(), tmp_path / "reference").histories
    for a, b in zip(histories, reference, strict=True):
        assert a.losses[0].loss == pytest.approx(b.losses[0].loss, rel=0.02)


@pytest.mark.filterwarnings("ignore")  # of the loggers' own libraries
@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_loggers_get_the_metrics_of_every_member(tmp_path, name):
    pytest.importorskip(name)
    run(longer(loggers=[name], epochs=2), tmp_path / "run")
    found = {p.name for p in (tmp_path / "run").rglob("*")}
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
        assert {"loss/seed0", "loss/seed1", "val/seed0", "lbe/seed1"} <= set(board.Tags()["scalars"])
    elif name == "mlflow":
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run/mlflow.db'}")
        (one,) = client.search_runs([client.get_experiment_by_name("trainability").experiment_id])
        assert {"loss.seed0", "val.seed1"} <= {key.replace("/", ".") for key in one.data.metrics}
    else:
        assert any(p.endswith(".wandb") for p in found)


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ({"model": {"depth": 14, "width": 8}, "remedies": "tat+lbe"}, "tat+lbe"),
        ({"model": {"name": "cnn", "depth": 4, "width": 4, "nonlinearity": "tanh"}, "remedies": "dks"}, "dks"),
        ({"model": {"name": "resnet", "depth": 8, "width": 4}, "remedies": "lsuv", "data": {"pln": True}}, "lsuv"),
    ],
)
def test_recipes_of_remedies_and_other_networks(tmp_path, content, label):
    histories = run(Recipe(**content, epochs=1, batch_size=512, seeds=2, probes=1), tmp_path / "run").histories
    assert [history.remedy for history in histories] == [label, label]
    assert all(history.status == "done" for history in histories)


def test_a_run_without_validation_has_test_scores_alone(tmp_path):
    results = run(recipe(data={"held_out": 0}, epochs=1), tmp_path / "run").to_dict()["results"]
    assert all(result["val_accuracy"] is None and result["test_accuracy"] > 0 for result in results)
