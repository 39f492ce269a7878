"""A comparison of remedies: what is trained beside what, taken up again, and told."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from recipes_for_tests import StopError, assert_same_weights, events, recipe, stop_at, untimed
from refusals import refused
from trainability.errors import ConfigError, FolderError
from trainability.experiments.comparison import Comparison
from trainability.experiments.recipe import Recipe
from trainability.experiments.run import run
from trainability.remedies import names
from trainability.report.narrative import narrate
from trainability.report.page import render, write_report
from trainability.training import files
from trainability.training.places import checkpoints
from trainability.training.trainer import Training
from trainability.training.yaml_files import dump_yaml

# Those of a plain network, and some joined ones.
SHAPED = [{"name": "tat", "eta": 0.2}]
PLAIN = [name for name in names() if "conv" not in name and name != "tat"]
EVERY = [*PLAIN, SHAPED, "he+lbe", [*SHAPED, "lbe"], "ic+he+lbe", "rezero+layernorm"]
MODEL = {"depth": 3, "width": 16}


def compared(remedies: object, parameters: object = None, **changes: object) -> Recipe:
    section = {"remedies": remedies, **({"parameters": parameters} if parameters else {})}
    return recipe(**{"model": MODEL, **changes}, compare=section)


def stacks(folder: Path) -> dict[str, Path]:
    """The folders of the stacks by the remedies of the first of their sides."""
    return {path.name.partition("-")[2]: path for path in sorted((folder / "stacks").iterdir())}


def assert_same_results(one: Path, other: Path) -> None:
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (one, other))
    assert untimed(first["results"]) == untimed(second["results"])
    assert untimed(first["histories"]) == untimed(second["histories"])
    assert first["remedies"] == second["remedies"]
    assert first["config"] == second["config"]
    assert stacks(one).keys() == stacks(other).keys()
    for name, path in stacks(one).items():
        assert_same_weights(path, stacks(other)[name])
        assert events(path, "losses") == events(stacks(other)[name], "losses")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Comparison:
    torch.set_num_threads(1)
    made = compared(EVERY, {"model.depth": [2, 3], "optimizer.lr": [1e-3, 1e-2]})
    return run(made, tmp_path_factory.mktemp("small") / "run")


def test_every_remedy_is_trained_with_every_choice(small):
    assert all(history.status == "done" for history in small.histories)
    assert len(small.histories) == 2 * 2 * 2 * len(EVERY)
    assert len(narrate(small)) == len(list(small.sections())) == 4
    for section in small.sections():
        assert set(section.histories) == {side.remedies.name for side in small.sides}


def test_remedies_with_the_same_initialization_start_alike(small):
    first = {h.remedy: h for h in small.histories if (h.depth, h.lr, h.seed) == (3, 1e-3, 0)}
    assert first["default"].flow[0] == first["lbe"].flow[0]
    assert first["he"].flow[0] == first["he+lbe"].flow[0] != first["default"].flow[0]


def test_a_comparison_trains_what_each_remedy_trains_alone(tmp_path):
    together = run(compared(["default", "he+lbe"], {"optimizer.lr": [1e-3, 1e-2]}), tmp_path / "run")
    for side in together.sides:
        alone = run(side.cell.recipe, tmp_path / f"{side.remedies.name}-{side.cell.recipe.optimizer.lr}")
        for a, b in zip(side.histories, alone.histories, strict=True):
            # members of a larger stack are batched otherwise, so only nearly
            assert a.losses[0].loss == pytest.approx(b.losses[0].loss, rel=1e-5)
            assert a.scores[-1].test == pytest.approx(b.scores[-1].test, abs=1.0)


def test_each_stack_has_a_folder_of_its_own(tmp_path):
    made = compared(["default", "ic", "lbe"], {"optimizer.lr": [1e-3, 1e-2]})
    comparison = run(made, tmp_path / "run")
    top = {"recipe.yaml", "environment.json", "events.jsonl", "results.json", "report.html", "stacks", ".lock"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == top
    assert set(stacks(tmp_path / "run")) == {"default", "ic", "lbe"}
    for path in stacks(tmp_path / "run").values():
        weights = torch.load(checkpoints(path)[0], weights_only=True)["weights"]
        assert {len(value) for value in weights.values()} == {2 * 2}  # seeds and learning rates are members
        assert len(events(path, "finished")) == 1
    kept = json.loads((tmp_path / "run/results.json").read_text())
    assert kept["results"] == comparison.to_dict()["results"]
    assert [(r["remedy"], r["settings"], r["seed"]) for r in kept["results"]][:3] == [
        ("default", {"optimizer.lr": 0.001}, 0),
        ("default", {"optimizer.lr": 0.001}, 1),
        ("ic", {"optimizer.lr": 0.001}, 0),
    ]


def test_results_repeat_exactly(tmp_path):
    for name in ("one", "two"):
        run(compared(["lbe", "batchnorm", "ic"]), tmp_path / name)
    assert_same_results(tmp_path / "one", tmp_path / "two")


def test_a_comparison_with_more_epochs_goes_on_in_every_stack(tmp_path):
    def made(epochs: int) -> Recipe:
        return compared(["default", "he+lbe"], {"model.depth": [2, 3]}, epochs=epochs)

    run(made(4), tmp_path / "whole")
    run(made(2), tmp_path / "run")
    with pytest.raises(StopError):  # two stacks have come to their 32 steps, one is at step 20, the last at 16
        run(made(4), tmp_path / "run", existing="resume", progress=stop_at(32 + 32 + 20))
    run(made(4), tmp_path / "run", existing="resume")
    for name, whole in stacks(tmp_path / "whole").items():
        assert_same_weights(whole, stacks(tmp_path / "run")[name])
    for recipe_of in sorted((tmp_path / "whole").rglob("recipe.yaml")):
        grown = tmp_path / "run" / recipe_of.relative_to(tmp_path / "whole")
        assert grown.read_bytes() == recipe_of.read_bytes()


EVERYTHING = {
    "optimizer": {"name": "sgd", "lr": 0.05, "options": {"momentum": 0.9}},
    "schedule": {"kind": "cosine", "warmup": 0.5},
    "engine": {"precision": "bf16-mixed", "compile": "off"},
}


def test_a_comparison_has_all_that_a_run_has(tmp_path):
    comparison = run(compared(["default", "he+lbe", "batchnorm"], epochs=4, **EVERYTHING), tmp_path / "run")
    assert all(history.status == "done" for history in comparison.histories)
    plain = run(compared(["default", "he+lbe", "batchnorm"], epochs=4), tmp_path / "plain")
    for own, other in zip(comparison.histories, plain.histories, strict=True):
        assert own.losses[-1].loss < own.losses[0].loss
        assert own.losses[0].loss == pytest.approx(other.losses[0].loss, rel=0.02)  # the same start
        assert own.losses[-1].loss != other.losses[-1].loss
    state = torch.load(checkpoints(stacks(tmp_path / "run")["batchnorm"])[0], weights_only=True)
    assert "momentum_buffer" in repr(state["updates"])


@pytest.mark.parametrize("step", [3, 30, 45])
@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["adam", "sgd, cosine, bfloat16"])
def test_a_comparison_that_is_taken_up_again_ends_with_the_same_bits(tmp_path, step, changes):
    made = compared(["default", "selu+lbe", "ic"], checkpoint_every=7, **changes)
    run(made, tmp_path / "whole")
    with pytest.raises(StopError):
        run(made, tmp_path / "broken", progress=stop_at(step))
    run(made, tmp_path / "broken", existing="resume")
    assert_same_results(tmp_path / "whole", tmp_path / "broken")
    run(made, tmp_path / "broken", existing="resume")  # of which all is done
    assert_same_results(tmp_path / "whole", tmp_path / "broken")


def wait_for(what: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_comparison_that_was_killed_ends_with_the_same_results_to_the_bit(tmp_path):
    """Killed once in the first epochs, once while a later stack trains, and then left alone."""
    made = compared(
        ["default", "lbe", "ic"], {"model.depth": [3, 4]}, epochs=12, checkpoint_every=5, engine={"threads": 1}
    )
    (tmp_path / "r.yaml").write_text(dump_yaml(made.resolved()))
    broken, environment = tmp_path / "broken", {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(out: Path, *more: str) -> list[str]:
        return [
            sys.executable, "-m", "trainability", "compare", str(tmp_path / "r.yaml"), "--out", str(out), *more
        ]  # fmt: skip

    subprocess.run(command(tmp_path / "whole"), env=environment, check=True, capture_output=True)

    def steps() -> int:
        newest = [checkpoints(path)[0].name for path in broken.glob("stacks/*") if checkpoints(path)]
        return sum(int(name.split("-")[1]) for name in newest)

    kills, begun = 0, 0
    for more in ([], ["--resume"]):
        process = subprocess.Popen(command(broken, *more), env=environment, stderr=subprocess.DEVNULL)
        wait_for(lambda process=process, begun=begun: steps() > begun + 100 or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        begun = steps()
    assert kills == 2
    assert not (broken / "results.json").exists()
    done = subprocess.run(command(broken, "--resume"), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_same_results(tmp_path / "whole", broken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_all_stacks_and_reports_what_there_is(tmp_path, monkeypatch, number):
    made = compared(["default", "he", "ic"], {"model.depth": [2, 3]}, epochs=3)
    run(made, tmp_path / "whole")
    evaluate, seen = Training._evaluate, []

    def interrupted_within(self):
        seen.append(self.steps)
        if len(seen) == 5:
            os.kill(os.getpid(), number)
        evaluate(self)

    monkeypatch.setattr(Training, "_evaluate", interrupted_within)
    comparison = run(made, tmp_path / "run")
    monkeypatch.setattr(Training, "_evaluate", evaluate)
    assert comparison.interrupted
    statuses = {history.status for history in comparison.histories}
    assert statuses == {"interrupted", "waiting"}
    kept = json.loads((tmp_path / "run/results.json").read_text())
    assert {result["status"] for result in kept["results"]} == statuses
    assert len(kept["results"]) == 2 * 3 * 2
    assert 'class="warn"' in (tmp_path / "run/report.html").read_text()
    again = run(made, tmp_path / "run", existing="resume")
    assert {history.status for history in again.histories} == {"done"}
    assert_same_results(tmp_path / "whole", tmp_path / "run")


def test_a_stack_whose_folder_is_gone_is_trained_anew(tmp_path):
    made = compared(["default", "he"])
    run(made, tmp_path / "whole")
    run(made, tmp_path / "run")
    shutil.rmtree(stacks(tmp_path / "run")["he"])
    run(made, tmp_path / "run", existing="resume")
    assert_same_results(tmp_path / "whole", tmp_path / "run")


def test_another_comparison_is_not_mixed_in(tmp_path):
    run(compared(["default", "he"]), tmp_path / "run")
    with refused(FolderError, "other-recipe"):
        run(compared(["default", "ic"]), tmp_path / "run", existing="resume")
    with refused(FolderError, "folder-in-use"):
        run(compared(["default", "ic"]), tmp_path / "run")
    run(compared(["default", "ic"]), tmp_path / "run", existing="overwrite")
    assert set(stacks(tmp_path / "run")) == {"default", "ic"}


def test_what_remedies_changed_is_kept_and_shown(tmp_path):
    comparison = run(compared(["default", "he+layernorm", "lbe"]), tmp_path / "run")
    found = {side.remedies.name: side.reports for side in comparison.sides}
    assert [report["remedy"]["name"] for report in found["he+layernorm"]] == ["he", "layernorm"]
    assert found["default"] == found["lbe"] == []
    kept = json.loads((stacks(tmp_path / "run")["he+layernorm"] / "remedies.json").read_text())
    assert (
        kept
        == found["he+layernorm"]
        == json.loads((tmp_path / "run/results.json").read_text())["remedies"]["he+layernorm"]
    )
    page = render(comparison)
    assert {"linear1", "linear2"} <= {change["path"] for change in kept[0]["changes"]}
    assert all(f"<code>{change['path']}</code>" in page for report in kept for change in report["changes"])
    again = run(compared(["default", "he+layernorm", "lbe"]), tmp_path / "run", existing="resume")
    assert {side.remedies.name: side.reports for side in again.sides} == found


@pytest.mark.parametrize("at", [1, 2])
def test_a_full_disk_keeps_the_old_report_and_no_half_one(tmp_path, monkeypatch, at):
    comparison = run(compared(["he"], epochs=1, seeds=1), tmp_path / "old")
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir() if p.is_file()}
    calls = []

    def full(_: int) -> None:
        calls.append(1)
        if len(calls) % 2 == at % 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    for folder in ("old", "new/deep"):
        calls.clear()
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            write_report(comparison, tmp_path / folder)
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir() if p.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old"]


def test_what_a_network_cannot_take_is_said_before_anything_is_trained(tmp_path):
    with refused(ConfigError, "eta-out-of-reach", match=r"depth 5.*eta = 0\.\d"):
        run(compared(["he", "tat"], {"model.depth": [20, 5]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_convolutional_networks_of_another_nonlinearity_and_their_signals(tmp_path):
    model = {"name": "cnn", "nonlinearity": "tanh", "depth": 8, "width": 4, "strides": 1}
    comparison = run(compared(["default", "dks", "eoc"], model=model, epochs=1), tmp_path / "run")
    for history in comparison.histories:
        assert len(history.signal[0].q) == 8
        assert history.predicted is not None
    dks = [history for history in comparison.histories if history.remedy == "dks"]
    assert all(q == pytest.approx(1, rel=0.2) for q in dks[0].predicted.q)
    assert "mean square q" in render(comparison)


def test_a_comparison_of_residual_units(tmp_path):
    model = {"name": "resnet", "depth": 8, "width": 4}
    made = compared(["batchnorm", "relu-ic-conv", "conv-relu-ic"], model=model, epochs=1)
    comparison = run(made, tmp_path / "run")
    assert all(history.status == "done" for history in comparison.histories)
    history = next(h for h in comparison.histories if h.remedy == "relu-ic-conv")
    assert [point.step for point in history.independence] == [0, history.steps]
    assert {effect.keep for effect in history.dropout.effects} == {0.5, 0.8, 0.95}
    assert next(h for h in comparison.histories if h.remedy == "batchnorm").dropout is None


def test_settings_of_a_remedy_that_vary_are_in_its_name(tmp_path):
    made = compared(["he", "lbe"], {"remedies.lbe.beta": [0.1, 0.4]}, epochs=1, seeds=1)
    comparison = run(made, tmp_path / "run")
    (section,) = comparison.sections()
    assert set(section.histories) == {"he", "lbe lbe.beta=0.1", "lbe lbe.beta=0.4"}
    assert set(stacks(tmp_path / "run")) == {"he", "lbe"}  # strengths are members of one stack
