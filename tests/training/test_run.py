"""The loop of a run with a writer of one's own, and what Ctrl-C and SIGTERM do to it."""

import copy
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import trainability as tr
from recipes_for_tests import write
from refusals import refused
from stacks import fabric, network, training
from trainability.errors import FolderError, UnsupportedModelError
from trainability.training.config import Member, Strength
from trainability.training.folder import Writer
from trainability.training.interrupts import deferred
from trainability.training.run import Run, naming_the_dead
from trainability.training.trainer import Training

MEMBERS = [Member(3, lr=1e-3, lbe=Strength()), Member(4, lr=3e-3)]
NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Memory(Writer):
    """Keeps in memory what it is given."""

    def __init__(self) -> None:
        self.states: list[dict] = []
        self.events: list[tuple[str, int]] = []

    def note(self, event, **values):
        if event not in ("losses", "scores"):
            self.events.append((event, values["step"]))

    def save(self, state):
        self.states.append(copy.deepcopy(state))


def two(**options) -> Training:
    return training([network("fnn", e) for e in range(2)], MEMBERS, **options)


def same(a: Training, b: Training) -> bool:
    pairs = zip(a.stack.module.state_dict().values(), b.stack.module.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs) and a.histories[0].losses == b.histories[0].losses


def to_the_end(own: Run, state: dict | None = None, after_step: Callable[[], bool] = lambda: False) -> bool:
    """Run as an experiment does; tell whether it came to its end."""
    own.begin(state)
    while not own.training.done:
        if not own.epoch(after_step):
            own.stop()
            return False
    own.finish()
    return True


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
    assert to_the_end(Run(each, writer, 7), after_step=lambda: bool(seen.append(each.steps)))
    assert same(plain, each)
    assert seen == list(range(1, each.total_steps + 1))
    due = [0, *range(7, each.total_steps, 7), each.total_steps]
    assert writer.events == [("started", 0), *(("checkpoint", step) for step in due), ("finished", each.total_steps)]
    assert [state["steps"] for state in writer.states] == due
    for state in writer.states[:-1]:
        again = two()
        assert to_the_end(Run(again, Memory()), state)
        assert same(plain, again)


def test_runs_that_take_turns_train_as_they_do_alone(plain):
    one, other = (Run(two(), Memory()) for _ in range(2))
    for own in (one, other):
        own.begin()
    while not one.training.done:
        for own in (one, other):
            assert own.epoch(lambda: False)
        assert one.training.steps == other.training.steps
    assert same(plain, one.training)
    assert same(plain, other.training)


def test_checkpoints_at_the_end_of_epochs_are_a_few_seconds_apart(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("trainability.training.run.time.monotonic", lambda: clock[0])
    each, writer = two(epochs=4), Memory()
    epoch = each.batches.per_epoch

    def passing() -> bool:
        clock[0] += 3.0 / epoch  # seconds of each epoch
        return False

    to_the_end(Run(each, writer), after_step=passing)
    assert [step for event, step in writer.events if event == "checkpoint"] == [0, 2 * epoch, 4 * epoch]


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT] * 3 + [signal.SIGTERM] * 2])
def test_however_often_it_is_interrupted_a_run_ends_once_with_a_checkpoint(plain, numbers, monkeypatch):
    evaluate, handlers = Training._evaluate, [signal.getsignal(n) for n in NUMBERS]

    def interrupted_within(self):
        for number in numbers:
            os.kill(os.getpid(), number)
        evaluate(self)

    monkeypatch.setattr(Training, "_evaluate", interrupted_within)
    first, writer = two(), Memory()
    with deferred(first.fabric) as interrupted:
        assert not to_the_end(Run(first, writer, 100), after_step=lambda: interrupted(first.steps))
    monkeypatch.setattr(Training, "_evaluate", evaluate)
    assert [signal.getsignal(n) for n in NUMBERS] == handlers
    epoch = first.batches.per_epoch
    assert writer.events == [("started", 0), ("checkpoint", 0), ("interrupted", epoch)]
    assert [history.status for history in first.histories] == ["interrupted"] * 2
    again = two()
    assert to_the_end(Run(again, Memory()), writer.states[-1])
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
    with deferred(each.fabric) as interrupted:
        to_the_end(Run(each, writer), after_step=lambda: interrupted(each.steps))
    assert each.done
    assert same(plain, each)
    assert writer.states[-1]["steps"] == each.total_steps


def test_threads_other_than_the_main_one_defer_nothing():
    found = []

    def work():
        with deferred(fabric("32-true")) as interrupted:
            found.append((interrupted(1), signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]


def test_the_checkpoint_of_another_run_is_refused():
    writer = Memory()
    to_the_end(Run(two(epochs=1), writer))
    other = Run(training([network("conv", e) for e in range(2)], MEMBERS), Memory())
    with refused(FolderError, "other-networks"):
        other.begin(writer.states[-1])


def test_what_a_run_wrote_that_cannot_begin_is_nothing():
    models = [network("fnn", e) for e in range(2)]
    for model in models:
        tr.apply_(model, tr.Normalize("weight"), where="1")
    writer = Memory()
    with refused(UnsupportedModelError, "not-stackable"):
        Run(training(models, MEMBERS, members="direct"), writer).begin()
    assert writer.events == writer.states == []


def test_the_death_of_another_process_is_a_sentence_and_other_errors_are_not():
    with refused(FolderError, "process-died"), naming_the_dead():
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:598] Connection closed by peer")
    with pytest.raises(RuntimeError, match="mat1 and mat2"), naming_the_dead():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


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
