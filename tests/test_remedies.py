import copy
import math

import pytest
import torch
from torch import nn

import trainability as tr
from models_for_tests import mlp


def test_he_has_variance_two_over_fan_in_and_zero_bias():
    model = nn.Sequential(nn.Linear(500, 400), nn.ReLU(), nn.Conv2d(30, 40, 5))
    report = tr.apply_(model, tr.Init("he"))
    assert model[0].weight.std().item() == pytest.approx(math.sqrt(2 / 500), rel=0.02)
    assert model[2].weight.std().item() == pytest.approx(math.sqrt(2 / (30 * 25)), rel=0.02)
    assert model[0].bias.abs().max() == 0
    assert [change.path for change in report.changes] == ["0", "2"]


def test_default_is_pytorchs():
    model = nn.Linear(300, 200)
    wrapped = nn.Sequential(model)
    tr.apply_(wrapped, tr.Init("he"))
    tr.apply_(wrapped, tr.Init("default"))
    assert model.weight.var().item() == pytest.approx(1 / 900, rel=0.05)


def test_undo_is_exact_and_dry_run_changes_nothing():
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    report = tr.apply_(model, tr.Init("he"), dry_run=True)
    assert not report.applied
    assert all(torch.equal(a, before[k]) for k, a in model.state_dict().items())
    report = tr.apply_(model, tr.Init("he"), where="0")
    assert not torch.equal(model[0].weight, before["0.weight"])
    assert torch.equal(model[2].weight, before["2.weight"])
    report.undo()
    assert all(torch.equal(a, before[k]) for k, a in model.state_dict().items())
    with pytest.raises(RuntimeError, match="nothing to undo"):
        report.undo()


def test_remedies_are_values():
    assert tr.Init("he") == tr.Init()
    assert tr.Init("he").to_dict() == {"remedy": "init", "scheme": "he"}
    with pytest.raises(ValueError, match="no scheme 'xavier'"):
        tr.Init("xavier")


def test_nothing_matched_and_wrong_arguments():
    with pytest.raises(ValueError, match="matched no layer"):
        tr.apply_(mlp(), tr.Init(), where="none*")
    with pytest.raises(ValueError, match=r"found nothing to change[\s\S]*not a weight layer"):
        tr.apply_(mlp(), tr.Init(), where=nn.ReLU)
    with pytest.raises(TypeError, match="needs a remedy"):
        tr.apply_(mlp(), "he")


def test_a_model_without_bias():
    tr.apply_(nn.Sequential(nn.Linear(4, 4, bias=False)), tr.Init())
