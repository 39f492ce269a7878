"""The loop of a run with a writer of one's own, and what Ctrl-C and SIGTERM do to it."""

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recipes_for_tests import write
from refusals import refused
from stacks import network, training
from trainability.errors import FolderError, UnsupportedModelError
from trainability.training.config import Member, Strength
from trainability.training.folder import Writer
from trainability.training.run import run
from trainability.training.trainer import Training

MEMBERS = [Member(3, lr=1e-3, lbe=Strength()), Member(4, lr=3e-3)]


class Memory(Writer):
    """Keeps in memory what it is given."""

    def __init__(self, state: dict | None = None) -> None:
        self.states = [state] if state else []
        self.events: list[tuple[str, int]] = []
        self.finished, self.discarded = False, False

    def newest(self):
        return self.states[-1] if self.states else None

    def note(self, event, **values):
        if event not in ("losses", "scores"):
            self.events.append((event, values["step"]))

    def save(self, state):
        self.states.append(copy.deepcopy(state))

    def finish(self, step, histories):
        self.finished = True

    def discard(self):
        self.discarded = True


def two(**options) -> Training:
    return training([network("fnn", e) for e in range(2)], MEMBERS, **options)


def same(a: Training, b: Training) -> bool:
    pairs = zip(a.stack.module.state_dict().values(), b.stack.module.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs) and a.histories[0].losses == b.histories[0].losses


@pytest.fixture(scope="module")
def plain() -> Training:
    """The same training without the loop of a run."""
    each = two()
    each.prepare()
    while not each.done:
        each.advance()
    return each


def test_a_run_trains_to_the_end_and_keeps_checkpoints(plain):
    each, writer, seen = two(), Memory(), []
    assert run(each, writer, checkpoint_every=7, progress=lambda t: seen.append(t.steps)) is None
    assert same(plain, each)
    assert seen == list(range(1, each.total_steps + 1))
    due = list(range(7, each.total_steps, 7))
    assert writer.events == [("started", 0), *(("checkpoint", step) for step in due)]
    assert [state["steps"] for state in writer.states] == [*due, each.total_steps]
    assert writer.finished
    again = two()
    assert run(again, Memory(writer.states[1]), resume=True) == 14
    assert same(plain, again)


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT] * 3 + [signal.SIGTERM] * 2])
def test_however_often_it_is_interrupted_a_run_ends_once_with_a_checkpoint(plain, numbers, monkeypatch):
    evaluate, handlers = Training._evaluate, [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def interrupted_within(self):
        for number in numbers:
            os.kill(os.getpid(), number)
        evaluate(self)

    monkeypatch.setattr(Training, "_evaluate", interrupted_within)
    first, writer = two(), Memory()
    with pytest.raises(KeyboardInterrupt):
        run(first, writer)
    monkeypatch.setattr(Training, "_evaluate", evaluate)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    epoch = first.batches.per_epoch
    assert writer.events == [("started", 0), ("interrupted", epoch)]
    assert not writer.finished
    again = two()
    assert run(again, Memory(writer.states[-1]), resume=True) == epoch
    assert same(plain, again)


def test_an_interrupt_in_the_last_step_changes_nothing(plain, monkeypatch):
    each, writer = two(), Memory()
    step, finish = each.step, each.finish

    def last_step():
        if each.steps == each.total_steps - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step()

    def interrupted_finish(status):
        os.kill(os.getpid(), signal.SIGTERM)
        finish(status)

    monkeypatch.setattr(each, "step", last_step)
    monkeypatch.setattr(each, "finish", interrupted_finish)
    run(each, writer)
    assert writer.finished
    assert same(plain, each)


def test_the_checkpoint_of_another_run_is_refused():
    writer = Memory()
    run(two(epochs=1), writer)
    with refused(FolderError, "other-networks"):
        run(training([network("conv", e) for e in range(2)], MEMBERS), Memory(writer.states[-1]), resume=True)


def test_what_a_run_wrote_that_cannot_begin_is_taken_away():
    each, writer = two(members="direct"), Memory()
    with refused(UnsupportedModelError, "not-stackable"):
        run(each, writer)
    assert writer.discarded
    assert writer.events == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_interrupted_while_it_loads_ends_without_a_traceback(tmp_path, number):
    """The signal comes while torch is being loaded, which the process's memory map shows."""
    file = write(tmp_path / "r.yaml")
    command = [sys.executable, "-m", "trainability", "train", str(file), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    while "libtorch" not in maps.read_text() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert not (tmp_path / "run/checkpoints").exists()
