"""`trainability compare` as its user meets it: a process, its output, its exit code, its files."""

import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest
import torch
from trainability.experiments.arms import PARTS
from trainability.experiments.compare import compare
from trainability.experiments.config import CompareConfig, configure

from trainability import cli
from trainability.data import load
from trainability.errors import ConfigError
from trainability.report.narrative import narrate
from trainability.report.page import render, write_report
from trainability.training import files

QUICK = ["--depth", "3", "--width", "16", "--epochs", "2"]


def run(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "trainability", *args],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        **options,
    )


# Those of a plain network, and some joined ones.
EVERY = (*(name for name in PARTS if "conv" not in name), "he+lbe", "tat+lbe", "ic+he+lbe", "rezero+layernorm")


@pytest.fixture(scope="module")
def small():
    torch.set_num_threads(1)
    config = CompareConfig(depth=(2, 3), lr=(1e-3, 1e-2), width=16, epochs=2, seeds=2, eta=0.2, remedies=EVERY)
    return compare(config, load("digits"))


def test_json_is_one_object_and_the_report_is_written(tmp_path):
    done = run(
        "compare",
        *QUICK,
        "--seeds",
        "2",
        "--remedies",
        "default,he,lbe",
        "--json",
        "--out",
        str(tmp_path / "a/b"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [(r["remedy"], r["seed"]) for r in result["results"]] == [
        (n, s) for s in (0, 1) for n in ("default", "he", "lbe")
    ]
    assert set(result["results"][0]) >= {
        "remedy",
        "depth",
        "lr",
        "seed",
        "test_accuracy",
        "val_accuracy",
        "step_ms",
    }
    assert result["config"]["depth"] == [3]
    assert sorted(p.name for p in (tmp_path / "a/b").iterdir()) == ["report.html", "results.json"]
    assert "Strongest here" in done.stderr


def test_every_arm_runs_in_every_cell(small):
    assert all(history.status == "done" for history in small.histories)
    assert len(small.histories) == 2 * 2 * 2 * len(EVERY)
    assert len(narrate(small)) == 4


def test_arms_with_the_same_initialization_start_alike(small):
    first = {r.remedy: r for r in small.histories if (r.depth, r.lr, r.seed) == (3, 1e-3, 0)}
    assert first["default"].flow[0] == first["lbe"].flow[0]
    assert first["he"].flow[0] == first["he+lbe"].flow[0] != first["default"].flow[0]


def test_results_repeat_exactly():
    config = CompareConfig(depth=(3,), width=16, epochs=2, seeds=1, remedies=("lbe", "batchnorm"))
    one, two = (compare(config, load("digits")) for _ in range(2))
    assert [(r.scores, r.losses, r.flow) for r in one.histories] == [
        (r.scores, r.losses, r.flow) for r in two.histories
    ]


def test_report_is_self_contained_and_escaped(small):
    class Outside(HTMLParser):
        found: list[str]

        def handle_starttag(self, tag, attrs):
            self.found += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith("data:")]

    parser = Outside()
    parser.found = []
    text = render(small)
    parser.feed(text)
    assert parser.found == []
    assert text.count("plotly.js v") == 1
    small.data["source"] = "<script>alert(1)</script>"
    try:
        assert "<script>alert(1)" not in render(small)
    finally:
        small.data["source"] = "scikit-learn"


def test_config_file_and_flags(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("depth: 3\nlr: 1e-3\nwidth: 16\nepochs: 1\nseeds: 1\nremedies: [he]\n")
    done = run("compare", "--config", str(file), "--width", "8", "--json", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["config"]["width"] == 8


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--data", "cifar"], "data: there is no data set 'cifar'; choose from digits, mnist, fashion-mnist"),
        (["--data", "mnist"], "--data-dir DIR"),
        (
            ["--data", "mnist", "--data-dir", "nowhere"],
            "nowhere/MNIST/raw/train-images-idx3-ubyte.gz is missing",
        ),
        (["--depth", "0"], "depth should be greater than or equal to 1 (it is 0)"),
        (["--depth", "3,x"], "depth should be a valid integer (it is x)"),
        (["--depth", ","], "depth: the list is empty"),
        (["--width", "-3"], "width should be greater than or equal to 1 (it is -3)"),
        (["--batch-size", "1"], "batch_size should be greater than or equal to 2"),
        (["--batch-size", "5000"], "batch_size: 5000 is more than the 1077 training samples"),
        (["--lr", "nan"], "lr should be"),
        (["--width", "x"], "Invalid value for '--width'"),
        (["--widht", "3"], "No such option: --widht"),
        (["--hub"], "leave out --hub"),
        (["--device", "meta"], "choose cpu, cuda or mps"),
        (["--out", "x" * 300], "cannot be used: File name too long"),
        (["--remedies", "lba"], "did you mean 'lbe'?"),
        (["--device", "abacus"], "device: 'abacus' cannot be used here"),
        (["--config", "missing.yaml"], "the config missing.yaml cannot be read: No such file"),
    ],
)
def test_bad_input_is_one_sentence_exit_2_and_leaves_nothing(args, words, tmp_path):
    done = run("compare", *QUICK, "--out", "out", *args, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "code"),
    [("depht: [3]", "unknown-setting"), ("- 1", "setting-type"), ("a: [", "yaml"), ("width: []", "setting-type")],
)
def test_bad_config_files(content, code, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        configure({}, file)
    assert caught.value.code == code


def test_out_that_is_a_file(tmp_path):
    (tmp_path / "f").write_text("x")
    done = run("compare", *QUICK, "--out", str(tmp_path / "f"))
    assert done.returncode == 2
    assert "is a file, not a folder" in done.stderr
    assert (tmp_path / "f").read_text() == "x"


@pytest.mark.parametrize("at", [1, 2])
def test_a_full_disk_keeps_the_old_report_and_no_half_one(small, tmp_path, monkeypatch, at):
    write_report(small, tmp_path / "old")
    before = {p.name: p.read_text() for p in (tmp_path / "old").iterdir()}
    calls = []

    def full(_: int) -> None:
        calls.append(1)
        if len(calls) % 2 == at % 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    for folder in ("old", "new/deep"):
        calls.clear()
        with pytest.raises(OSError, match="No space left"):
            write_report(small, tmp_path / folder)
    assert {p.name: p.read_text() for p in (tmp_path / "old").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old"]


def test_a_disk_that_fills_up_while_training_is_one_sentence(tmp_path, monkeypatch, capsys):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    code = cli.run(["compare", *QUICK, "--seeds", "1", "--json", "--out", str(tmp_path / "a")])
    out, err = capsys.readouterr()
    assert code == 2
    assert "could not be written" in err
    assert json.loads(out)["results"]  # the results are not lost
    assert list(tmp_path.iterdir()) == []


def test_interrupt_keeps_what_is_done_and_writes_the_report(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [
        sys.executable,
        "-m",
        "trainability",
        "compare",
        "--depth",
        "3",
        "--width",
        "16",
        "--epochs",
        "100000",
        "--seeds",
        "1",
        "--json",
        "--out",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    time.sleep(12)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    result = json.loads(out)
    assert result["interrupted"]
    assert result["results"][0]["status"] == "interrupted"
    assert result["results"][0]["epochs"] > 0
    assert "3 of 3 runs were interrupted" in err.replace("\n", " ")
    histories = json.loads((tmp_path / "results.json").read_text())["histories"]
    assert histories[2]["remedy"] == "lbe"
    assert len(histories[2]["alpha"]) == 3
    assert "interrupted" in (tmp_path / "report.html").read_text()


@pytest.mark.browser
def test_report_draws_in_a_browser_without_a_console_error(small, tmp_path):
    from playwright.sync_api import sync_playwright

    from conftest import browser

    path = write_report(small, tmp_path)
    messages: list[str] = []
    with sync_playwright() as play:
        chrome = play.chromium.launch(executable_path=browser(), args=["--no-sandbox", "--disable-gpu"])
        page = chrome.new_page(viewport={"width": 1200, "height": 900})
        page.on("console", lambda m: messages.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: messages.append(str(e)))
        page.on(
            "request",
            lambda r: messages.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None,
        )
        page.goto(path.as_uri())
        page.wait_for_function(
            "(n => n('.plotly-graph-div') == n('.plotly-graph-div .main-svg:first-child'))"
            "(s => document.querySelectorAll(s).length)"
        )
        plots, drawn = (
            page.locator(s).count() for s in (".plotly-graph-div", ".plotly-graph-div .main-svg:first-child")
        )
        first = page.locator(".slider-group").first.text_content()
        chrome.close()
    assert messages == []
    assert plots == drawn > 4 * 6
    assert "step" in first


def test_what_a_network_cannot_take_is_said_before_anything_is_trained(tmp_path):
    done = run("compare", "--depth", "20,5", "--remedies", "he,tat", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "the remedy tat cannot be had at depth 5" in done.stderr
    assert "nearest value" in done.stderr
    with pytest.raises(ConfigError) as caught:
        configure({"nonlinearity": "rellu"})
    assert caught.value.code == "unknown-choice"
    with pytest.raises(ConfigError) as caught:
        configure({"strides": 1})
    assert caught.value.code == "does-not-apply"
    with pytest.raises(ConfigError) as caught:
        configure({"model": "cnn", "remedies": ["relu-ic-conv"]})
    assert caught.value.code == "does-not-apply"
    with pytest.raises(ConfigError) as caught:
        configure({"model": "resnet", "depth": 8, "remedies": ["residual"]})
    assert caught.value.code == "does-not-apply"
    with pytest.raises(ConfigError) as caught:
        configure({"model": "resnet", "depth": 9})
    assert caught.value.code == "depth"
    with pytest.raises(ConfigError) as caught:
        configure({"model": "resnet", "depth": 26, "convolutions": 3})
    assert caught.value.code == "depth"


def test_convolutional_networks_of_another_nonlinearity_and_their_kernels():
    config = CompareConfig(model="cnn", nonlinearity="tanh", depth=(8,), width=4, epochs=1, seeds=2, strides=1)
    config = config.model_copy(update={"remedies": ("default", "dks", "eoc")})
    comparison = compare(config, load("digits"))
    for history in comparison.histories:
        assert len(history.signal[0].q) == 8
        assert history.predicted is not None
    dks = [history for history in comparison.histories if history.remedy == "dks"]
    assert all(q == pytest.approx(1, rel=0.2) for q in dks[0].predicted.q)
    words = " ".join(sentence for _, sentences in narrate(comparison) for sentence in sentences)
    assert "After the last hidden layer of dks the mean square q goes from" in words
    assert "The kernel of every layer" in render(comparison)


def test_what_authors_claim_stands_beside_what_was_seen():
    config = CompareConfig(depth=(2,), width=16, epochs=1, seeds=1, remedies=("batchnorm", "ic"))
    words = " ".join(sentence for _, sentences in narrate(compare(config, load("digits"))) for sentence in sentences)
    assert "Claimed of ic: steadier training" in words
    assert "that of batchnorm at" in words
