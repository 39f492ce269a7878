"""The program as a process: what becomes of its output, of signals, and of words it does not know."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-P", "-m", "trainability"]
SMALL = ["--depth", "1", "--width", "4", "--epochs", "2", "--seeds", "1", "--remedies", "he"]
RECORD = {"recipe.yaml", "environment.json", "events.jsonl", "results.json", "report.html"}


def _shell(words, redirection, cwd):
    """Run the program under a shell's redirection; its exit code."""
    command = " ".join(["exec", *PROGRAM, *words, redirection])
    return subprocess.run(
        ["sh", "-c", command], check=False, cwd=cwd, timeout=300, stdout=subprocess.DEVNULL
    ).returncode


@pytest.mark.parametrize(
    ("redirection", "code"),
    [("2>/dev/full", 0), (">&- 2>&-", 0), (">/dev/full 2>&-", 2)],
)
def test_a_stream_that_cannot_be_written_to_costs_no_results(redirection, code, tmp_path):
    assert _shell(["compare", *SMALL, "--out", "o", "--json"], redirection, tmp_path) == code
    assert {path.name for path in (tmp_path / "o").iterdir()} >= RECORD
    assert len(json.loads((tmp_path / "o/results.json").read_text())["results"]) == 1


@pytest.mark.parametrize("words", [["--version"], ["compare", "--help"], ["compare", "--print-config"]])
@pytest.mark.parametrize(("full", "code"), [(True, 2), (False, 0)])
def test_output_that_cannot_be_written_is_a_sentence(words, full, code):
    if full:
        with open("/dev/full", "wb") as out:
            done = subprocess.run([*PROGRAM, *words], stdout=out, stderr=subprocess.PIPE, check=False)
    else:  # a pipe whose reader has gone
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run([*PROGRAM, *words], stdout=writing, stderr=subprocess.PIPE, check=False)
        os.close(writing)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == (1 if full else 0)


@pytest.mark.parametrize("command", ["train", "compare", "sweep"])
def test_the_printed_recipe_runs(command, tmp_path):
    words = "model.depth=1 model.width=4 epochs=1 seeds=1 probes=1"
    program = " ".join(PROGRAM)
    typed = f"{program} recipe {command} > my.yaml && {program} {command} my.yaml {words}"
    done = subprocess.run(["sh", "-c", typed], check=False, cwd=tmp_path, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/my/report.html").exists()


def _when(ready, process, seconds=240):
    """Wait until something is there."""
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loaded", ["nothing", "torch"])
def test_a_signal_before_anything_has_begun_ends_in_silence(number, loaded, tmp_path):
    process = subprocess.Popen(
        [*PROGRAM, "compare", *SMALL, "--out", "o"], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    about = Path(f"/proc/{process.pid}")

    def ready():
        if loaded == "torch":
            return "libtorch" in (about / "maps").read_text()
        status = (about / "status").read_text().splitlines()
        mask = int(next(line for line in status if line.startswith("SigCgt")).split()[1], 16)
        return mask >> (signal.SIGTERM - 1) & 1  # the handlers are in place

    _when(ready, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGINT] * 3], ids=["SIGTERM", "Ctrl-C thrice"])
@pytest.mark.parametrize("command", ["train", "compare", "sweep"])
def test_signals_in_mid_training_leave_a_record_to_go_on_from(command, numbers, tmp_path):
    (tmp_path / "s.yaml").write_text("sweep: {parameters: {optimizer.lr: [0.1, 0.01, 0.001]}, stack: 1}\n")
    words = [*(["s.yaml"] if command == "sweep" else []), *SMALL[:4], "--epochs", "3000", "--seeds", "1"]
    process = subprocess.Popen(
        [*PROGRAM, command, *words, "--out", "o"], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    out = tmp_path / "o"
    _when(lambda: any(out.rglob("*.pt")) or ((out / "study.db").exists() and _trial_runs(out)), process)
    for number in numbers:
        process.send_signal(number)
    err = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert {path.name for path in out.iterdir()} >= {"recipe.yaml", "environment.json", "results.json", "report.html"}
    assert "--resume" in err


def _trial_runs(out):
    import sqlite3

    try:
        with sqlite3.connect(f"file:{out / 'study.db'}?mode=ro", uri=True) as base:
            return base.execute("select count(*) from trials where state = 'RUNNING'").fetchone()[0]
    except sqlite3.OperationalError:  # its tables are not there yet
        return False
