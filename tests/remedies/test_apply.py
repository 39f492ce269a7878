import copy
import math

import pytest
import torch
from torch import nn

import trainability as tr
from models_for_tests import mlp
from refusals import refused
from trainability.errors import ArgumentError, ArgumentTypeError, StateError, UnsupportedModelError


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
    with refused(StateError, "nothing-to-undo"):
        report.undo()


def test_remedies_are_values():
    assert tr.Init("he") == tr.Init()
    assert tr.Init("he").to_dict() == {"name": "he", "version": 1, "nonlinearity": "relu"}
    with refused(ArgumentError, "unknown-choice"):
        tr.Init("xavier")


def test_nothing_matched_and_wrong_arguments():
    with pytest.raises(ValueError, match="matched no layer"):
        tr.apply_(mlp(), tr.Init(), where="none*")
    with refused(ArgumentError, "nothing-to-change"):
        tr.apply_(mlp(), tr.Init(), where=nn.ReLU)
    with refused(ArgumentTypeError, "wrong-type"):
        tr.apply_(mlp(), "he")


def test_a_model_without_bias():
    tr.apply_(nn.Sequential(nn.Linear(4, 4, bias=False)), tr.Init())


def test_what_init_leaves_alone_is_listed():
    model = nn.Sequential(
        nn.Linear(4, 4),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.ConvTranspose2d(4, 2, 3),
        nn.MultiheadAttention(4, 2),
    )
    report = tr.apply_(model, tr.Init())
    assert [change.path for change in report.changes] == ["0", "3.out_proj"]
    assert "its fan-in cannot be read" in report.skipped["2"]
    assert set(report.skipped) >= {"1.parametrizations.weight", "3"}


class Conv1D(nn.Module):
    """As in transformers: the weight is (in, out)."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.weight, self.bias = nf, nn.Parameter(torch.empty(nx, nf)), nn.Parameter(torch.zeros(nf))


def test_a_transposed_weight_has_its_own_fan_in():
    model = nn.Sequential(Conv1D(nf=4000, nx=50))
    tr.apply_(model, tr.Init("he"))
    assert model[0].weight.std().item() == pytest.approx(math.sqrt(2 / 50), rel=0.02)


def test_a_weight_tied_to_an_embedding_is_left_alone():
    model = nn.ModuleDict({"embed": nn.Embedding(10, 4), "hidden": nn.Linear(4, 4), "head": nn.Linear(4, 10)})
    model["head"].weight = model["embed"].weight
    before = model["embed"].weight.clone()
    report = tr.apply_(model, tr.Init())
    assert torch.equal(model["embed"].weight, before)
    assert report.skipped["head"] == "its weight is also embed.weight"


class OnlyWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))


def test_a_layer_of_unknown_layout_is_skipped_and_nothing_fitting_is_an_error():
    with refused(ArgumentError, "nothing-to-change", match="OnlyWeight"):
        tr.apply_(nn.Sequential(OnlyWeight()), tr.Init())


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_orthogonal_weights_have_the_critical_gain(nonlinearity):
    gain = {"relu": 2.0, "tanh": 2.153303}[nonlinearity]
    model = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(4, 6, 3))
    tr.apply_(model, tr.Init("orthogonal", nonlinearity))
    assert torch.allclose(model[0].weight @ model[0].weight.T, gain * torch.eye(8), atol=1e-4)
    rows = model[1].weight.flatten(1)
    assert torch.allclose(rows @ rows.T, gain * torch.eye(6), atol=1e-4)
    tr.apply_(model, tr.Init("delta-orthogonal", nonlinearity), where="1")
    center = model[1].weight[:, :, 1, 1]
    assert model[1].weight.count_nonzero() == 24
    assert torch.allclose(center.T @ center, gain * torch.eye(4), atol=1e-4)


def test_lsuv_gives_every_layer_outputs_of_variance_one():
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(40, 40), nn.ReLU())], nn.Linear(40, 3))
    x = torch.randn(100, 40)
    report = tr.apply_(model, tr.Init("lsuv"), inputs=x)
    for layer in model:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            assert x.std(correction=0).item() == pytest.approx(1, rel=1e-4)
    report.undo()
    with refused(ArgumentError, "inputs-needed"):
        tr.apply_(model, tr.Init("lsuv"))
    with refused(ArgumentError, "no-spread"):
        tr.apply_(model, tr.Init("lsuv"), inputs=torch.zeros(5, 40))


def test_a_delta_needs_a_central_tap():
    with refused(UnsupportedModelError, "no-central-tap", match="^0:"):
        tr.apply_(nn.Sequential(nn.Conv2d(3, 4, 4)), tr.Init("delta-orthogonal"))
    with pytest.raises(ValueError, match="no activation 'rel'"):
        tr.Init("orthogonal", "rel")
