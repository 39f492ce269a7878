"""Inputs at random: none may end in an error that is not the package's own, and the fuzzer sees what it should."""

import random
import sys

import pytest
import torch
from torch import nn

from fuzz import core, files, traces
from fuzz.kinds import KINDS
from trainability.errors import ArgumentError


@pytest.mark.parametrize(("kind", "count"), [("recipes", 600), ("flags", 500), ("tensors", 1000), ("models", 700)])
def test_what_is_refused_is_refused_by_an_error_of_the_package(kind, count):
    tally = core.fuzz({kind: KINDS[kind]}, seed=0, count=count, seconds=600)[kind]
    found = tally.failures.values()
    assert not found, "\n".join(f"{f.sort} {f.error} at {f.place}: {f.message}\n  {f.text}\n  {f.again}" for f in found)
    assert tally.made == count
    assert tally.accepted > 0.45 * count
    assert sum(tally.refused.values()) > 0.1 * count


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_is_determined_by_seed_and_number(kind):
    first, again, other = (
        [KINDS[kind](random.Random(f"{kind} {seed} {number}")).text for number in range(20)] for seed in (1, 1, 2)
    )
    assert first == again != other


def _tried(run):
    tally = core.Tally()
    core.attempt(tally, "planted", lambda rng: core.Case("planted", run), seed=0, number=0)
    return tally


def test_a_refusal_is_counted_by_its_code():
    def run(accept):
        raise ArgumentError("no", code="planted")

    tally = _tried(run)
    assert (tally.made, tally.accepted, dict(tally.refused), tally.failures) == (1, 0, {"planted": 1}, {})


def _forever():
    while True:
        pass


@pytest.mark.parametrize(
    ("run", "sort", "error"),
    [
        (lambda: {}["a"], "foreign", "KeyError"),
        (lambda: torch.zeros(2, 3) @ torch.zeros(2, 3), "foreign", "RuntimeError"),
        (lambda: torch.empty(10**14), "foreign", "RuntimeError"),
        (_forever, "slow", "Slow"),
        (lambda: print("a line"), "printed", "a line"),
        (lambda: sys.exit(1), "foreign", "SystemExit"),
    ],
)
def test_what_goes_wrong_is_a_failure(run, sort, error, monkeypatch):
    monkeypatch.setattr(core, "SECONDS", 0.2)
    with core.bounded():
        tally = _tried(lambda accept: run())
    (failure,) = tally.failures.values()
    assert (failure.sort, failure.error, failure.again) == (sort, error, "--kinds planted --seed 0 --only 0")


def test_an_input_that_is_accepted_and_fails_then_is_both():
    tally = _tried(lambda accept: (accept(), {}["a"]))
    assert tally.accepted == 1
    assert len(tally.failures) == 1


def test_equal_failures_are_one():
    tally = core.Tally()
    for number in range(3):
        core.attempt(tally, "planted", lambda rng: core.Case("planted", lambda accept: {}["a"]), 0, number)
    assert len(tally.failures) == 1
    assert tally.count("foreign") == 3


def _model():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Sequential(nn.ReLU()))
    model[0].weight.grad = torch.ones(3, 3)
    model[2].table, model[2].numbers = {"a": 1}, [1]
    return model


def _by_a_bit(model):
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nextafter(model[0].weight[0, 0], torch.tensor(9.0))


@pytest.mark.parametrize(
    "change",
    [
        _by_a_bit,
        lambda model: model.eval(),
        lambda model: model[1].running_mean.add_(1),
        lambda model: model[1]._buffers.update(running_mean=model[1].running_mean.clone()),
        lambda model: model[0].weight.grad.add_(1),
        lambda model: setattr(model[0].weight, "grad", None),
        lambda model: model[0].weight.requires_grad_(False),
        lambda model: setattr(model[0], "weight", nn.Parameter(model[0].weight.detach())),
        lambda model: model[2][0].register_forward_hook(lambda *_: None),
        lambda model: model[2].append(nn.ReLU()),
        lambda model: setattr(model, "count", 1),
        lambda model: model[2].table.update(b=1),
        lambda model: setattr(model[2], "table", {"a": 1}),
        lambda model: model[2].numbers.append(1),
        lambda model: setattr(model[0], "__class__", nn.LazyLinear),
        lambda model: torch.rand(1),
        lambda model: random.random(),
    ],
)
def test_a_trace_is_seen(change):
    model = _model()
    before = {**traces.picture(model), **traces.world()}
    traces.check(before, {**traces.picture(model), **traces.world()}, "nothing")
    change(model)
    with pytest.raises(core.Fault) as caught:
        traces.check(before, {**traces.picture(model), **traces.world()}, "planted")
    assert caught.value.sort == "trace"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", b'{"config": '),
        ("recipe.yaml", b"a: [1"),
        ("events.jsonl", b'{"event": "started"}\n{"eve'),
        ("step-1.pt", b"PK"),
        ("report.html", b"<html><body>"),
        (".report.html.x8fk", b""),
    ],
)
def test_a_half_written_file_is_seen(name, content, tmp_path):
    (tmp_path / "whole.json").write_text("{}")
    files.check_whole(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(core.Fault) as caught:
        files.check_whole(tmp_path)
    assert caught.value.sort == "half-written"
    files.check_whole(tmp_path, {name})
