"""`trainability train` and `trainability compare` as their user meets them: words, output, exit codes, files."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from recipes_for_tests import SMALL, assert_same_weights, events, untimed, write
from refusals import codes_of
from trainability import cli
from trainability.training import files
from trainability.training.trainer import Training
from trainability.training.yaml_files import dump_yaml, load_yaml

QUICK = ["--depth", "2", "--width", "8", "--epochs", "2", "--seeds", "2", "probes=1", "engine.compile=off"]
LONG = "x" * 300
EXPERIMENTS = ("train", "compare")


def test_json_is_one_object_and_the_report_is_written(tmp_path, capsys):
    out = tmp_path / "a/b"
    assert cli.run(["compare", *QUICK, "--remedies", "default,he,lbe", "--json", "--out", str(out)]) == 0
    said = capsys.readouterr()
    printed = json.loads(said.out)
    assert [(r["remedy"], r["seed"], r["status"]) for r in printed["results"]] == [
        (name, seed, "done") for name in ("default", "he", "lbe") for seed in (0, 1)
    ]
    assert printed["results"][0].keys() >= {"depth", "lr", "test_accuracy", "val_accuracy", "step_ms"}
    assert printed["config"]["model"] == {**printed["config"]["model"], "name": "fnn", "depth": 2, "width": 8}
    assert str(out / "report.html") in said.err
    kept = json.loads((out / "results.json").read_text())
    assert {key: kept[key] for key in printed} == printed


def test_a_run_prints_as_a_comparison_does(tmp_path, capsys):
    assert cli.run(["train", *QUICK, "--remedies", "he+lbe", "--json", "--out", str(tmp_path / "run")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(r["remedy"], r["seed"]) for r in printed["results"]] == [("he+lbe", 0), ("he+lbe", 1)]
    assert (tmp_path / "run/report.html").exists()


@pytest.mark.parametrize("command", EXPERIMENTS)
def test_what_is_typed_wins_over_the_file(tmp_path, capsys, command):
    file = write(tmp_path / "r.yaml", epochs=1)
    words = [command, str(file), "optimizer.lr=3e-3", "seeds=[7]", "--width", "4", "--remedies", "he", "--json"]
    assert cli.run([*words, "--out", str(tmp_path / "run")]) == 0
    printed = json.loads(capsys.readouterr().out)
    (result,) = printed["results"]
    assert (result["lr"], result["seed"], printed["config"]["model"]["width"]) == (3e-3, 7, 4)
    assert printed["config"]["epochs"] == 1


def test_a_recipe_can_be_given_by_a_flag_and_only_once(tmp_path, monkeypatch, capsys):
    file, codes = write(tmp_path / "r.yaml"), codes_of(monkeypatch)
    assert cli.run(["train", "--config", str(file), "--print-config"]) == 0
    assert load_yaml(capsys.readouterr().out, "it")["model"]["depth"] == SMALL["model"]["depth"]
    assert cli.run(["train", "--config", str(file), str(file), "--print-config"]) == 2
    assert cli.run(["train", "--depth", "3", "model.depth=3"]) == 2
    assert codes == ["two-recipes", "duplicate"]


def test_the_folder_is_named_by_the_recipe_or_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.yaml", epochs=1)
    assert cli.run(["train", "mine.yaml"]) == 0
    assert (tmp_path / "runs/mine/results.json").exists()
    assert cli.run(["compare", *QUICK, "--remedies", "he", "epochs=1"]) == 2  # epochs is there by its flag, too
    assert not (tmp_path / "runs/compare").exists()


@pytest.mark.parametrize("command", EXPERIMENTS)
def test_a_printed_recipe_is_whole_and_the_same_recipe(tmp_path, capsys, command):
    words = ["--remedies", "tat+lbe", "--depth", "20,30" if command == "compare" else "20", "remedies.lbe.beta=0.1"]
    words += ["optimizer.name=sgd", "optimizer.options={momentum: 0.9}", "schedule.kind=cosine", "schedule.warmup=2"]
    assert cli.run([command, *words, "--print-config"]) == 0
    first = capsys.readouterr().out
    (tmp_path / "r.yaml").write_text(first)
    assert cli.run([command, str(tmp_path / "r.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == first
    content = load_yaml(first, "it")
    assert dump_yaml(content) == first
    assert content["optimizer"] == {"name": "sgd", "lr": 0.001, "weight_decay": 0.0, "options": {"momentum": 0.9}}
    assert {"data", "task", "engine", "seeds", "batch_size"} <= content.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize(
    ("words", "code", "names"),
    [
        (["--data", "cifar"], "unknown-choice", "cifar10"),
        (["--data", "mnist"], "missing-setting", "data.dir"),
        (["--data", "mnist", "--data-dir", "nowhere"], "file-missing", "nowhere"),
        (["data.hub=true"], "does-not-apply", "data.hub"),
        (["--depth", "0"], "out-of-range", "depth"),
        (["--depth", "x"], "setting-type", "depth"),
        (["--width", "-3"], "out-of-range", "width"),
        (["batch_size=1"], "out-of-range", "batch_size"),
        (["batch_size=5000"], "batch-too-large", "1077"),
        (["--lr", "nan"], "out-of-range", "lr"),
        (["--device", "abacus"], "device", "abacus"),
        (["--remedies", "lba"], "unknown-choice", "lbe"),
        (["--remedies", "tat+he"], "settings-conflict", "tat"),
        (["--remedies", "tat"], "eta-out-of-reach", "eta"),
        (["--config", "missing.yaml"], "file-unreadable", "missing.yaml"),
        (["--out", LONG], "out-not-writable", "xxx"),
        (["--resume"], "nothing-to-resume", "out"),
        (["--resume", "--overwrite"], "settings-conflict", "--overwrite"),
        (["model.depht=3"], "unknown-setting", "model.depth"),
        (["depth"], "file-unreadable", "depth"),
        (["=3"], "setting-syntax", "name=value"),
        (["engine.threads=9999"], "out-of-range", "engine.threads"),
    ],
    ids=lambda given: str(given)[:40],
)
@pytest.mark.parametrize("command", EXPERIMENTS)
def test_bad_input_is_one_sentence_exit_2_and_leaves_nothing(
    command, words, code, names, tmp_path, monkeypatch, capsys
):
    given = {flag for flag in words if flag.startswith("--")}
    quick = [word for pair in zip(QUICK[:8:2], QUICK[1:8:2], strict=True) if pair[0] not in given for word in pair]
    if "model.depht=3" in words or "depth" in words:
        quick = quick[2:]
    codes = codes_of(monkeypatch)
    monkeypatch.chdir(tmp_path)
    out = [] if "--out" in words else ["--out", "out"]
    assert cli.run([command, *quick, *words, *out]) == 2
    said = capsys.readouterr()
    assert codes == [code], said.err
    assert names in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_is_there_twice_is_refused_with_its_line(tmp_path, capsys, monkeypatch):
    file, codes = tmp_path / "r.yaml", codes_of(monkeypatch)
    file.write_text("epochs: 2\nmodel: {depth: 3}\nepochs: 3\n")
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run")]) == 2
    assert codes == ["yaml"]
    assert "line 3" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"", b"[1, 2]", b"epochs: 2026-02-30", b"a: !!bool x"])
def test_a_damaged_recipe_in_a_folder_is_named(tmp_path, capsys, monkeypatch, content):
    file, codes = write(tmp_path / "r.yaml", epochs=1), codes_of(monkeypatch)
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run")]) == 0
    (tmp_path / "run/recipe.yaml").write_bytes(content)
    capsys.readouterr()
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert codes == ["recipe-damaged"]
    assert "recipe.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("command", EXPERIMENTS)
def test_a_disk_that_fills_up_is_a_sentence_and_there_is_something_to_go_on_from(
    tmp_path, monkeypatch, capsys, command
):
    file, calls, real = write(tmp_path / "r.yaml", checkpoint_every=3, remedies="he"), [], os.fsync
    words = [command, str(file), *(["remedies=he"] if command == "compare" else [])]

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 16:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    assert cli.run([*words, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert os.strerror(errno.ENOSPC) in said[-1]
    assert "--resume" in said[-1]
    assert not [path for path in (tmp_path / "run").rglob(".*") if path.name != ".lock"]
    monkeypatch.setattr(files.os, "fsync", real)
    assert cli.run([*words, "--out", str(tmp_path / "run"), "--resume"]) == 0
    assert cli.run([*words, "--out", str(tmp_path / "whole")]) == 0
    stack = "." if command == "train" else "stacks/1-he"
    assert_same_weights(tmp_path / "whole" / stack, tmp_path / "run" / stack)


@pytest.mark.parametrize("command", EXPERIMENTS)
def test_an_interrupt_ends_with_130_and_all_that_was_done(tmp_path, monkeypatch, capsys, command):
    words = [command, *QUICK, "--remedies", "he", "--out", str(tmp_path / "run"), "--json"]
    evaluate = Training._evaluate

    def interrupted_within(self):
        if self.steps:
            os.kill(os.getpid(), signal.SIGTERM)
        evaluate(self)

    monkeypatch.setattr(Training, "_evaluate", interrupted_within)
    assert cli.run(words) == 130
    said = capsys.readouterr()
    printed = json.loads(said.out)
    assert printed["interrupted"]
    assert [result["status"] for result in printed["results"]] == ["interrupted"] * 2
    assert "--resume" in said.err
    assert 'class="warn"' in (tmp_path / "run/report.html").read_text()
    monkeypatch.setattr(Training, "_evaluate", evaluate)
    assert cli.run([*words, "--resume"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert cli.run([*words[:-3], "--out", str(tmp_path / "whole"), "--json"]) == 0
    assert untimed(again["results"]) == untimed(json.loads(capsys.readouterr().out)["results"])


def test_the_record_says_what_the_command_set(tmp_path):
    assert cli.run(["train", *QUICK, "--out", str(tmp_path / "run")]) == 0
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert "allocator" in environment
    assert environment["data"]["train"] == 1077
    assert len(events(tmp_path / "run", "finished")) == 1


def test_words_of_remedies_and_their_settings_reach_the_networks(tmp_path, capsys):
    words = ["compare", *QUICK, "--remedies", "ic,layernorm", "remedies.ic.keep=0.7", "--json"]
    assert cli.run([*words, "--out", str(tmp_path / "run")]) == 0
    kept = json.loads((tmp_path / "run/results.json").read_text())["remedies"]
    assert kept["ic"][0]["remedy"] == {**kept["ic"][0]["remedy"], "name": "ic", "keep": 0.7}
    assert kept["layernorm"][0]["remedy"]["name"] == "layernorm"
    assert Path(tmp_path / "run/stacks/1-ic/remedies.json").exists()
    capsys.readouterr()
