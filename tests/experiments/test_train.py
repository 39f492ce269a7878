"""`trainability train`: what is kept, what is taken up again, and what is refused."""

import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from trainability.experiments.train import train

from refusals import codes_of
from trainability import cli
from trainability.errors import ConfigError, FolderError, InfeasibleError
from trainability.experiments.recipe import Recipe
from trainability.experiments.validation import validated
from trainability.training import files
from trainability.training.folder import RunFolder, read_events
from trainability.training.trainer import Training

SMALL = {
    "model": {"depth": 4, "width": 16},
    "init": "he",
    "lbe": {"alpha": 0.5, "beta": 0.2},
    "epochs": 6,
    "seeds": 2,
    "checkpoint_every": 7,
    "probes": 3,
}


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate({**SMALL, **changes})


def write(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "trainability", "train", *args]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = sorted((folder / "checkpoints").glob("step-*.pt"))[-1]
    return torch.load(newest, weights_only=True)["weights"]


class StopError(Exception):
    pass


def stop_at(step: int):
    def progress(training):
        if training.steps == step:
            raise StopError

    return progress


@pytest.mark.parametrize("step", [3, 7, 20, 47])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seeds": 1, "optimizer": {"name": "sgd", "options": {"momentum": 0.9}}},
        {"schedule": {"kind": "cosine", "warmup": 1}, "model": {"depth": 3, "width": 8, "batchnorm": True}},
        {"schedule": {"kind": "plateau", "patience": 1}, "data": {"augment": True}, "lbe": None},
    ],
)
def test_a_run_that_is_taken_up_again_ends_with_the_same_bits(tmp_path, changes, step):
    train(recipe(**changes), tmp_path / "whole")
    with pytest.raises(StopError):
        train(recipe(**changes), tmp_path / "broken", progress=stop_at(step))
    again = train(recipe(**changes), tmp_path / "broken", resume=True)
    assert (again.resumed_at or 0) == step // 7 * 7
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    first, second = (json.loads((tmp_path / f / "results.json").read_text()) for f in ("whole", "broken"))
    for a, b in zip(first["results"], second["results"], strict=True):
        assert {**a, "step_ms": 0} == {**b, "step_ms": 0}
    events = [
        [e for e in read_events(tmp_path / f / "events.jsonl") if e["event"] == "losses"] for f in ("whole", "broken")
    ]
    assert events[0] == events[1]


def test_a_killed_process_loses_nothing_that_was_checkpointed(tmp_path):
    file = write(tmp_path / "r.yaml", epochs=30, engine={"threads": 1})
    subprocess.run(command(str(file), "--out", str(tmp_path / "whole")), check=True, capture_output=True)
    broken = tmp_path / "broken"
    kills = 0
    for attempt in range(20):
        process = subprocess.Popen(
            command(str(file), "--out", str(broken), *(["--resume"] if (broken / "recipe.yaml").exists() else [])),
            stderr=subprocess.DEVNULL,
        )
        if attempt < 3:
            while not list(broken.glob("checkpoints/*.pt")) and process.poll() is None:
                time.sleep(0.01)
            time.sleep(random.Random(attempt).uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
        process.wait()
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
    assert kills
    whole, resumed = weights(tmp_path / "whole"), weights(broken)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path):
    with pytest.raises(StopError):
        train(recipe(), tmp_path / "run", progress=stop_at(22))
    newest = sorted((tmp_path / "run/checkpoints").glob("*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    again = train(recipe(), tmp_path / "run", resume=True)
    assert again.damaged == [newest.name]
    assert again.resumed_at == 14
    train(recipe(), tmp_path / "whole")
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_line_that_was_being_written_when_the_machine_died_spoils_no_other(tmp_path):
    with pytest.raises(StopError):
        train(recipe(), tmp_path / "run", progress=stop_at(22))
    with (tmp_path / "run/events.jsonl").open("a") as log:
        log.write('{"event": "losses", "st')
    train(recipe(), tmp_path / "run", resume=True)
    events = read_events(tmp_path / "run/events.jsonl")
    assert [e["event"] for e in events if e["event"] in ("started", "resumed", "finished")] == [
        "started",
        "resumed",
        "finished",
    ]


def test_a_full_disk_leaves_the_last_checkpoint_and_says_what_to_do(tmp_path, monkeypatch, capsys):
    file, calls, real = write(tmp_path / "r.yaml"), [], os.fsync

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 16:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "No space left" in said
    assert "--resume" in said
    assert not list((tmp_path / "run/checkpoints").glob(".*"))
    monkeypatch.setattr(files.os, "fsync", real)
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run"), "--resume"]) == 0
    assert cli.run(["train", str(file), "--out", str(tmp_path / "whole")]) == 0
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_two_processes_cannot_share_a_folder(tmp_path):
    plain = recipe().resolved()
    with RunFolder(tmp_path / "run", plain, {}), pytest.raises(FolderError) as caught:
        RunFolder(tmp_path / "run", plain, {}, resume=True)
    assert caught.value.code == "folder-locked"
    RunFolder(tmp_path / "run", plain, {}, resume=True).close()


def test_a_checkpoint_that_would_run_code_is_neither_written_nor_read(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.system, ("touch harm",)

    with RunFolder(tmp_path / "run", {}, {}) as folder:
        with pytest.raises(FolderError) as caught:
            folder.save({"steps": 1, "thing": Harmful()})
        assert caught.value.code == "state-unsafe"
        assert not list((tmp_path / "run/checkpoints").iterdir())
        buffer = io.BytesIO()
        torch.save({"steps": 1, "thing": Harmful()}, buffer)
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
        (tmp_path / f"run/checkpoints/step-00000001-{digest}.pt").write_bytes(buffer.getvalue())
        with pytest.raises(FolderError) as caught:
            folder.newest()
        assert caught.value.code == "state-unsafe"
    assert not Path("harm").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_step_and_is_a_checkpoint(tmp_path, monkeypatch, number):
    train(recipe(), tmp_path / "whole")
    evaluate = Training._evaluate

    def interrupted_within(self):
        if self.steps == 16:
            os.kill(os.getpid(), number)
        evaluate(self)

    monkeypatch.setattr(Training, "_evaluate", interrupted_within)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), tmp_path / "run")
    monkeypatch.setattr(Training, "_evaluate", evaluate)
    again = train(recipe(), tmp_path / "run", resume=True)
    assert again.resumed_at == 16
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [len(r.scores) for r in again.histories] == [6, 6]


def test_a_run_killed_before_its_results_were_written_writes_them(tmp_path):
    train(recipe(), tmp_path / "run")
    before = json.loads((tmp_path / "run/results.json").read_text())
    (tmp_path / "run/results.json").unlink()
    train(recipe(), tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run/results.json").read_text()) == before


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    train(recipe(), tmp_path / "run")
    train(recipe(optimizer={"lr": 0.1}), tmp_path / "other")
    newest = sorted((tmp_path / "other/checkpoints").glob("*.pt"))[-1]
    for own in (tmp_path / "run/checkpoints").glob("*.pt"):
        own.unlink()
    shutil.copy(newest, tmp_path / "run/checkpoints")
    with pytest.raises(FolderError) as caught:
        train(recipe(), tmp_path / "run", resume=True)
    assert caught.value.code == "other-recipe"


def test_there_must_be_a_run_to_resume(tmp_path, monkeypatch):
    file, codes = write(tmp_path / "r.yaml"), codes_of("train", monkeypatch)
    assert cli.run(["train", str(file), "--out", str(tmp_path / "nothing"), "--resume"]) == 2
    assert codes == ["nothing-to-resume"]
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"", b"[1, 2]", b"epochs: 2026-02-30", b"a: !!bool x"])
def test_a_damaged_recipe_in_a_folder_is_named(tmp_path, capsys, monkeypatch, content):
    file, codes = write(tmp_path / "r.yaml", epochs=1), codes_of("train", monkeypatch)
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run")]) == 0
    (tmp_path / "run/recipe.yaml").write_bytes(content)
    capsys.readouterr()
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert codes == ["recipe-damaged"]
    assert "recipe.yaml" in capsys.readouterr().err


def test_resuming_what_is_done_changes_nothing(tmp_path):
    train(recipe(), tmp_path / "run")
    before = (tmp_path / "run/results.json").read_bytes()
    outcome = train(recipe(), tmp_path / "run", resume=True)
    assert [r.status for r in outcome.histories] == ["done", "done"]
    assert (tmp_path / "run/results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "code", "names"),
    [
        ({"modle": {}}, "unknown-setting", "modle"),
        ({"model": {"dept": 3}}, "unknown-setting", "model.depth"),
        ({"optimizer": {"name": "adm"}}, "unknown-choice", "optimizer.name"),
        ({"optimizer": {"name": "lbfgs"}}, "optimizer-unfit", "optimizer.name"),
        ({"optimizer": {"options": {"betaz": 1}}}, "unknown-setting", "betas"),
        ({"optimizer": {"options": {"lr": 1}}}, "duplicate", "optimizer.options"),
        ({"epochs": 0}, "out-of-range", "epochs"),
        ({"schedule": {"kind": "step"}}, "settings-conflict", "milestones"),
        ({"schedule": {"kind": "step", "milestones": [9]}}, "out-of-range", "schedule.milestones"),
        ({"schedule": {"kind": "cosine", "warmup": 6}}, "out-of-range", "schedule.warmup"),
        ({"engine": {"tf32": True}}, "needs-cuda", "tf32"),
        ({"engine": {"precision": "16-mixed"}}, "unknown-choice", "engine.precision"),
        ({"engine": {"devices": 3}}, "batch-not-shareable", "batch_size"),
        ({"engine": {"members": "streams"}}, "needs-cuda", "members"),
        ({"engine": {"cuda_graph": "on"}}, "needs-cuda", "cuda_graph"),
        ({"engine": {"members": "direct"}, "seeds": 2, "model": {"name": "cnn"}}, "not-stackable", "members: auto"),
        ({"engine": {"nodes": 2}}, "no-launcher", "engine.nodes"),
        ({"engine": {"threads": 9999}}, "out-of-range", "engine.threads"),
        ({"lbe": True}, "setting-type", "alpha, beta"),
        ({"optimizer": {"name": "scalableshampoo"}}, "optimizer-unfit", "optimizer"),
        ({"engine": {"strategy": "fsdp"}}, "settings-conflict", "devices"),
        ({"engine": {"strategy": "fsdp", "devices": 2}, "seeds": 2}, "settings-conflict", "seeds"),
        (
            {"engine": {"strategy": "fsdp", "devices": 2}, "seeds": 1, "optimizer": {"name": "soap"}},
            "settings-conflict",
            "adam, adamw, sgd",
        ),
        ({"batch_size": 5000}, "batch-too-large", "1077"),
        ({"seeds": [1, 1]}, "duplicate", "seeds"),
        ({"loggers": ["paper"]}, "unknown-choice", "loggers"),
        ({"sweep": {"parameters": {"lbe.alpha": [1]}}}, "is-a-sweep", "sweep"),
        ({"optimizer": {"name": "adahessian"}}, "optimizer-unfit", "optimizer"),
        ({"optimizer": {"options": {"betas": [0.9]}}}, "optimizer-options", "Adam"),
        ({"engine": {"device": "cpu:1"}}, "device", "cpu:1"),
        ({"seeds": [2**64]}, "out-of-range", "seeds"),
        ({"seeds": "0-3"}, "setting-type", "seeds"),
        ({"model": {"width": 10**6, "depth": 9}}, "memory", "GB"),
        ({"seeds": 10**6, "model": {"depth": 30, "width": 1000}}, "memory", "GB"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(tmp_path, capsys, monkeypatch, changes, code, names):
    file, codes = write(tmp_path / "r.yaml", **changes), codes_of("train", monkeypatch)
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip()
    assert codes == [code]
    assert names in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_setting_that_is_there_twice_is_refused(tmp_path, capsys):
    file = tmp_path / "r.yaml"
    file.write_text("epochs: 2\nmodel: {depth: 3}\nepochs: 3\n")
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run")]) == 2
    assert "not valid YAML at line 3: epochs is there twice" in capsys.readouterr().err


def test_another_recipe_is_not_mixed_into_a_run(tmp_path, capsys, monkeypatch):
    train(recipe(), tmp_path / "run")
    codes = codes_of("train", monkeypatch)
    file = write(tmp_path / "r.yaml", epochs=7)
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert "epochs is 6 there and 7 here" in capsys.readouterr().err
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run")]) == 2
    assert codes == ["other-recipe", "folder-in-use"]


def test_settings_on_the_command_line_win(tmp_path, capsys):
    file = write(tmp_path / "r.yaml")
    call = [
        "train",
        str(file),
        "--out",
        str(tmp_path / "run"),
        "--set",
        "optimizer.lr=3e-3",
        "--set",
        "seeds=[7]",
        "--json",
    ]
    assert cli.run(call) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert (result["lr"], result["seed"]) == (3e-3, 7)


@pytest.mark.parametrize("name", ["soap", "shampoo", "muon"])
def test_second_order_optimizers(tmp_path, name):
    pytest.importorskip("pytorch_optimizer")
    changes = {"optimizer": {"name": name, "lr": 1e-3}, "seeds": 1, "lbe": None, "epochs": 2}
    (history,) = train(recipe(**changes), tmp_path / "run").histories
    assert history.losses[-1].loss < history.losses[0].loss
    with pytest.raises(StopError):
        train(recipe(**changes), tmp_path / "broken", progress=stop_at(9))
    train(recipe(**changes), tmp_path / "broken", resume=True)
    whole, resumed = weights(tmp_path / "run"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions(tmp_path, precision):
    histories = train(recipe(engine={"precision": precision}), tmp_path / "run").histories
    reference = train(recipe(), tmp_path / "reference").histories
    for a, b in zip(histories, reference, strict=True):
        assert a.losses[0].loss == pytest.approx(b.losses[0].loss, rel=0.02)


@pytest.mark.filterwarnings("ignore")  # of the loggers' own libraries
@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_loggers_get_the_metrics_of_every_member(tmp_path, name):
    pytest.importorskip(name)
    train(recipe(loggers=[name], epochs=2), tmp_path / "run")
    found = {p.name for p in (tmp_path / "run").rglob("*")}
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
        assert {"loss/seed0", "loss/seed1", "val/seed0", "lbe/seed1"} <= set(board.Tags()["scalars"])
    elif name == "mlflow":
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run/mlflow.db'}")
        (run,) = client.search_runs([client.get_experiment_by_name("trainability").experiment_id])
        assert {"loss.seed0", "val.seed1"} <= {key.replace("/", ".") for key in run.data.metrics}
    else:
        assert any(p.endswith(".wandb") for p in found)


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ({"model": {"depth": 14, "width": 8}, "remedy": {"name": "tat"}, "lbe": {}}, "tat+lbe"),
        ({"model": {"name": "cnn", "depth": 4, "width": 4, "nonlinearity": "tanh"}, "remedy": {"name": "dks"}}, "dks"),
        ({"model": {"name": "resnet", "depth": 8, "width": 4}, "init": "lsuv", "data": {"pln": True}}, "lsuv"),
    ],
)
def test_recipes_of_remedies_and_other_networks(tmp_path, content, label):
    made = Recipe(**content, epochs=1, batch_size=512, seeds=2, probes=1)
    histories = train(made, tmp_path / "run").histories
    assert [history.remedy for history in histories] == [label, label]
    assert all(history.status == "done" for history in histories)


def test_a_remedy_that_cannot_be_had_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"^tat: relu: .* eta = 0\.9") as caught:
        train(Recipe(model={"depth": 3}, remedy={"name": "tat"}), tmp_path / "run")
    assert isinstance(caught.value.__cause__, InfeasibleError)
    assert Recipe(remedy="dks").remedy == Recipe(remedy={"name": "dks"}).remedy
    for wrong, code in (
        ({"remedy": {"name": "dks", "eta": 0.5}}, "does-not-apply"),
        ({"remedy": "tat", "init": "he"}, "settings-conflict"),
        ({"remedy": "tat", "model": {"batchnorm": True}}, "settings-conflict"),
        ({"model": {"name": "resnet", "depth": 9}}, "depth"),
        ({"model": {"strides": 1}}, "does-not-apply"),
        ({"model": {"nonlinearity": "rellu"}}, "unknown-choice"),
    ):
        with pytest.raises(ConfigError) as caught:
            validated(Recipe, wrong)
        assert caught.value.code == code


def test_every_recipe_in_the_documentation_is_one_and_the_first_shows_every_setting():
    text = (Path(__file__).parents[2] / "docs/recipes.md").read_text()
    shown = [yaml.safe_load(part.partition("```")[0]) for part in text.split("```yaml\n")[1:]]
    for content in shown:
        Recipe.model_validate(content)
    assert shown[0] == json.loads(json.dumps(Recipe().resolved()))
