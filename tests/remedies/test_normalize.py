"""Normalization, shortcuts and SELU, put into models that have none."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import trainability as tr
from models_for_tests import Functional, mlp
from refusals import refused
from trainability.errors import ArgumentError, UnsupportedModelError
from trainability.models import resnet
from trainability.nn.shortcut import ScaledAdd


def outputs_of(model: nn.Module, path: str, x: torch.Tensor) -> torch.Tensor:
    seen = []
    handle = model.get_submodule(path).register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
    model(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("kind", "dims"), [("batch", 0), ("layer", 1), ("group", None)], ids=["batch", "layer", "group"]
)
def test_outputs_of_linear_layers_are_normalized(kind, dims):
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    plain = copy.deepcopy(model)
    x = torch.randn(64, 8) + 2
    report = tr.apply_(model, tr.Normalize(kind))
    assert [change.path for change in report.changes] == ["0.norm", "2.norm"]
    assert report.skipped == {"4": "it gives the output of the model"}
    before = plain[0](x)
    if dims is None:  # two groups of 16
        parts = before.view(64, 2, 16)
        expected = (parts - parts.mean(2, True)) / (parts.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        expected = expected.view(64, 32)
    else:
        expected = (before - before.mean(dims, True)) / (before.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(outputs_of(model, "0", x), expected, atol=1e-5)
    report.undo()
    assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize("kind", ["batch", "layer", "group"])
def test_outputs_of_convolutions_are_normalized(kind):
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3))
    x = torch.randn(8, 3, 6, 6)
    before = model[0](x)
    tr.apply_(model, tr.Normalize(kind), inputs=x)
    norm = {"batch": nn.BatchNorm2d(32), "layer": nn.GroupNorm(1, 32), "group": nn.GroupNorm(2, 32)}[kind]
    assert torch.allclose(outputs_of(model, "0", x), norm(before), atol=1e-5)


def test_tokens_are_normalized_each_by_itself():
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    x = torch.randn(4, 5, 8)
    tr.apply_(model, tr.Normalize("group", groups=4), inputs=x)
    found = model[0](x).view(4, 5, 4, 8)
    assert found.mean(-1).abs().max() < 1e-5
    assert torch.allclose(found.var(-1, correction=0), torch.ones(4, 5, 4), atol=1e-2)


def test_a_weight_is_length_times_direction():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 5, 3), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    plain = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    report = tr.apply_(model, tr.Normalize("weight"))
    assert [change.path for change in report.changes] == ["0", "1", "2"]
    for index, dim in ((0, 0), (1, 1), (2, 0)):
        expected = nn.utils.parametrizations.weight_norm(plain[index], dim=dim)
        assert torch.allclose(model[index].weight, plain[index].weight, atol=1e-6)
        assert model[index].parametrizations.weight.original0.shape == expected.parametrizations.weight.original0.shape
    model(torch.randn(2, 3, 2 + 2, 4 + 2)).sum().backward()
    report.undo()
    assert {type(m) for m in model} == {nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.ReLU}
    assert all(torch.equal(a, before[k]) for k, a in model.state_dict().items())


def test_what_is_normalized_already_is_left_alone_and_bad_settings():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    report = tr.apply_(model, tr.Normalize("batch"))
    assert report.skipped["0"] == "1 normalizes it already"
    assert [change.path for change in report.changes] == ["3.norm"]
    with refused(ArgumentError, "unknown-choice"):
        tr.Normalize("instance")
    with refused(ArgumentError, "does-not-apply"):
        tr.Normalize("batch", groups=2)
    with refused(UnsupportedModelError, "groups"):
        tr.apply_(mlp(width=6), tr.Normalize("group", groups=4))
    with refused(UnsupportedModelError, "groups"):
        tr.apply_(mlp(width=7), tr.Normalize("group", groups=7))
    with refused(ArgumentError, "nothing-to-change"):
        tr.apply_(nn.Sequential(nn.Linear(3, 3)), tr.Normalize())
    tied = nn.ModuleDict({"embed": nn.Embedding(8, 4), "a": nn.Linear(4, 8), "b": nn.Linear(8, 8)})
    tied["a"].weight = tied["embed"].weight
    with refused(UnsupportedModelError, "weights-shared", match=r"embed\.weight"):
        tr.apply_(tied, tr.Normalize("weight"))


@pytest.mark.parametrize(("scale", "number"), [("identity", 1.0), ("rezero", 0.0), ("skipinit", 1 / math.sqrt(2))])
def test_shortcuts_around_the_layers_of_a_sequential(scale, number):
    model = mlp(depth=3, act=nn.Tanh)
    plain = copy.deepcopy(model)
    model[0] = nn.Linear(6, 8)
    plain[0] = model[0]
    x = torch.randn(5, 6)
    report = tr.apply_(model, tr.Residual(scale), inputs=x)
    assert [change.path for change in report.changes] == ["2 to 3", "4 to 5"]
    assert "(5, 6) to (5, 8)" in report.skipped["0 to 1"]
    h = torch.tanh(plain[0](x))
    for index in (2, 4):
        h = h + number * torch.tanh(plain[index](h))
    assert torch.allclose(model(x), plain[6](h), atol=1e-6)
    assert torch.allclose(copy.deepcopy(model)(x), model(x))
    assert list(plain.state_dict()) == [k for k in model.state_dict() if "shortcut" not in k]
    report.undo()
    assert torch.allclose(model(x), plain(x))


def test_shortcuts_around_chosen_modules_and_over_two_layers():
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(3)])
    plain = copy.deepcopy(model)
    x = torch.randn(5, 8)
    tr.apply_(model, tr.Residual(), inputs=x, where=["0", "2"])
    h = plain[1](x + plain[0](x))
    assert torch.allclose(model(x), h + plain[2](h), atol=1e-6)
    pairs = mlp(depth=4)
    report = tr.apply_(pairs, tr.Residual(layers=2), inputs=x)
    assert [change.path for change in report.changes] == ["0 to 3", "4 to 7"]


def test_fixup_begins_as_the_identity_and_trains():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), *list(mlp(depth=12, width=32))[:-1], nn.Linear(32, 4))
    x = torch.randn(16, 6)
    report = tr.apply_(model, tr.Residual("fixup", layers=2), inputs=x)
    assert model(x).abs().max() == 0  # the last layer begins at 0, and every branch ends at 0
    assert torch.equal(outputs_of(model, "25", x), outputs_of(model, "1", x))
    inner = model[2].weight.std().item()
    assert inner == pytest.approx(math.sqrt(2 / 32) * 6 ** (-1 / 2), rel=0.1)
    assert sum("Fixup" in change.why for change in report.changes) == 14
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), torch.arange(16) % 4)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_residual_network_has_its_scales_as_options():
    x = torch.randn(4, 3, 8, 8)
    model = resnet(8, 10, norm=False, scale="rezero", width=4)
    scales = [m.scale for m in model.modules() if isinstance(m, ScaledAdd)]
    assert [float(s.detach()) for s in scales] == [0, 0, 0]
    fixup = resnet(8, 10, norm=False, scale="fixup", width=4)
    assert fixup(x).abs().max() == 0
    with pytest.raises(ValueError, match="beside a shortcut"):
        resnet(8, 10, scale="rezero", shortcuts=False)


def test_residual_says_what_it_needs():
    with refused(ArgumentError, "inputs-needed"):
        tr.apply_(mlp(), tr.Residual())
    with refused(ArgumentError, "nothing-to-change"):
        tr.apply_(Functional(), tr.Residual(), inputs=torch.randn(2, 8))
    with refused(ArgumentError, "unknown-choice"):
        tr.Residual("half")
    with refused(ArgumentError, "out-of-range"):
        tr.Residual(layers=0)
    inplace = nn.Sequential(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8)), nn.Linear(8, 2))
    with refused(ArgumentError, "nothing-to-change"):
        tr.apply_(inplace, tr.Residual(), inputs=torch.randn(2, 8), where="0")


def test_tat_turns_new_shortcuts_into_weighted_sums():
    x = torch.randn(4, 8)
    model = mlp(depth=30)
    tr.apply_(model, tr.Residual(), inputs=x)
    with pytest.raises(UnsupportedModelError, match="mean"):
        tr.apply_(model, tr.TAT(eta=0.5), inputs=x)  # x and a branch that ends in a leaky ReLU both have one
    tr.apply_(model, tr.DKS(), inputs=x)
    assert type(model[2].shortcut).__name__ == "WeightedSum"


def test_selu_keeps_mean_zero_and_variance_one():
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(20) for m in (nn.Linear(400, 400), nn.ReLU())], nn.Linear(400, 3))
    report = tr.apply_(model, tr.SELU())
    h = model[:40](torch.randn(200, 400))
    assert abs(h.mean().item()) < 0.2
    assert h.var().item() == pytest.approx(1, abs=0.3)
    assert model[0].weight.var().item() == pytest.approx(1 / 400, rel=0.05)
    report.undo()
    assert isinstance(model[1], nn.ReLU)


def test_selu_finds_activations_that_are_called_and_leaves_gates():
    class Gated(Functional):
        def forward(self, x):
            h = F.gelu(self.first(x)) * torch.sigmoid(self.second(x))
            return self.out(h)

    model, x = Gated(), torch.randn(4, 8)
    report = tr.apply_(model, tr.SELU(init=None), inputs=x)
    assert [(c.path, c.before) for c in report.changes] == [("selu", "gelu")]
    expected = model.out(F.selu(model.first(x)) * torch.sigmoid(model.second(x)))
    assert torch.allclose(model(x), expected)
    with refused(ArgumentError, "inputs-needed"):
        tr.apply_(Functional(), tr.SELU())
    gate = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid())
    gates = nn.Sequential(gate, nn.Dropout(0.1), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    report = tr.apply_(gates, tr.SELU())
    assert "may be a gate" in report.skipped["0.1"]
    assert "AlphaDropout" in report.skipped["1"]
    assert isinstance(gate[1], nn.Sigmoid)
    with refused(ArgumentError, "unknown-choice"):
        tr.SELU(init="he")


@pytest.mark.parametrize(
    "remedy",
    [
        tr.IC(keep=1.0),
        tr.Normalize("layer"),
        tr.Normalize("weight"),
        tr.Normalize("batch"),
        tr.Residual("rezero"),
        tr.SELU(),
    ],
)
def test_stacks_of_changed_networks_train_as_each_alone(remedy):
    from trainability.stack import ways
    from trainability.stack.module import Stack

    models = [mlp() for _ in range(3)]
    for model in models:
        tr.apply_(model, remedy, inputs=torch.randn(4, 8))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    alone = [copy.deepcopy(model) for model in models]
    x = torch.randn(3, 16, 8)
    stack = Stack(models)
    ways.prepare(stack, x)
    outputs = stack(x).outputs
    for number, model in enumerate(alone):
        assert torch.allclose(outputs[number], model(x[number]), atol=1e-5)
