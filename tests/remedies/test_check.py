"""A shaped model is held against what it was shaped by; what does not do it is refused, and left as it was."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import trainability as tr
from trainability.errors import UnsupportedModelError
from trainability.models import cnn, fnn, resnet
from trainability.nn.weighted_sum import WeightedSum
from trainability.remedies.shaping.check import Compared, _mean

WIDTH = 128


def plain(layer, depth=6, width=WIDTH):
    """A plain network of layers of one kind."""
    return nn.Sequential(*[m for _ in range(depth) for m in (layer(width, width), nn.ReLU())], nn.Linear(width, width))


class Standardized(nn.Linear):
    def forward(self, x):
        w = (self.weight - self.weight.mean(1, keepdim=True)) / self.weight.std(1, keepdim=True)
        return F.linear(x, w, self.bias)


class Equalized(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight * 0.2, self.bias)


class Masked(nn.Linear):
    def __init__(self, a, b):
        super().__init__(a, b)
        self.register_buffer("mask", (torch.rand(b, a) < 0.25).float())

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


class Twice(nn.Linear):
    """A second product in one module."""

    def __init__(self, a, b):
        super().__init__(a, b)
        self.further = nn.Parameter(torch.randn(b, b))

    def forward(self, x):
        return F.linear(F.linear(x, self.weight, self.bias), self.further)


class LargestOfMany(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = plain(nn.Linear, 3, 64), plain(nn.Linear, 3, 64), how

    def forward(self, x):
        h = self.a(x)
        return self.b(torch.max(h, dim=1)[0] if self.how == "max" else h.amax(1))


def same(model, before):
    state = model.state_dict()
    return list(state) == list(before) and all(torch.equal(state[key], before[key]) for key in state)


def refused(model, remedy, x):
    before, shown = copy.deepcopy(model.state_dict()), str(model)
    with pytest.raises(UnsupportedModelError) as caught:
        tr.apply_(model, remedy, inputs=x)
    assert same(model, before)
    assert str(model) == shown
    return caught.value


@pytest.mark.parametrize("remedy", [tr.DKS(zeta=1.1), tr.TAT(eta=0.5), tr.EOC()], ids=lambda r: type(r).__name__)
def test_standardized_weights_are_refused_with_the_numbers(remedy):
    torch.manual_seed(0)
    x = torch.randn(16, WIDTH)
    error = refused(plain(Standardized), remedy, x)
    assert (error.code, error.path) == ("prediction-departs", "0")
    model = plain(Standardized)
    report = tr.apply_(model, remedy, inputs=x, check=False)
    first = report.check.departure
    # Rows of variance 1 multiply the mean square by the fan-in.
    assert first.measured_q / first.q == pytest.approx(WIDTH / report.check.layers[0].q, rel=0.3)
    assert first.reason in str(error)
    assert "off by a factor" in str(report)
    assert report.check.to_dict()["layers"][0]["path"] == "0"


@pytest.mark.parametrize("layer", [Equalized, Masked])
@pytest.mark.parametrize("remedy", [tr.DKS(zeta=1.1), tr.TAT(eta=0.5), tr.EOC()], ids=lambda r: type(r).__name__)
def test_weights_that_are_scaled_or_masked_are_drawn_for_it(layer, remedy):
    torch.manual_seed(0)
    x = torch.randn(256, WIDTH)
    x = x / x.square().mean(1, keepdim=True).sqrt()
    ratios = []
    for _ in range(8):
        model = plain(layer)
        report = tr.apply_(model, remedy, inputs=x)
        assert "times" in report.changes[0].why
        ratios.append(model(x).square().mean().item() / report.check.layers[-1].q)
    mean, error = _mean(ratios)
    assert abs(math.log(mean)) < 4 * error + 0.05


def test_a_second_product_in_a_module_is_refused():
    assert refused(plain(Twice), tr.DKS(zeta=1.1), torch.randn(16, WIDTH)).code == "weight-layout"


@pytest.mark.parametrize("how", ["max", "amax"])
def test_a_maximum_over_many_places_is_refused(how):
    error = refused(LargestOfMany(how), tr.DKS(zeta=1.1), torch.randn(8, 40, 64))
    assert error.code == "prediction-departs"
    assert "largest" in str(error)


def test_an_activation_behind_a_maximum_takes_values_with_a_mean():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 64, 1), nn.MaxPool2d(3, 1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU())
    report = tr.apply_(model, tr.DKS(zeta=1.1), inputs=torch.randn(4, 64, 6, 6))
    assert report.check.departure is None
    assert report.check.poolings[0][2] == pytest.approx(2.56, rel=0.1)  # E max² of nine normal numbers
    behind = next(layer for layer in report.check.layers if layer.kind == "nonlinear")
    assert behind.measured_q == pytest.approx(behind.q, rel=0.1)


def test_kept_weights_are_reported_and_never_refused():
    model = plain(Standardized)
    report = tr.apply_(model, tr.DKS(zeta=1.1, init=None), inputs=torch.randn(16, WIDTH))
    assert report.check.draws == 1
    assert json.loads(json.dumps(report.check.to_dict(), allow_nan=False))["layers"][0]["error"] is None
    assert report.check.departure is None
    assert max(layer.factor for layer in report.check.layers) < 2  # the prediction knows what multiplies
    assert report.check.layers[-1].measured_q > 50


def test_features_that_are_returned_too_are_hidden_layers():
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(256, 256) for _ in range(24)])
            self.head = nn.Linear(256, 256)

        def forward(self, x):
            features = []
            for k, layer in enumerate(self.layers):
                x = F.relu(layer(x))
                if k % 4 == 3:
                    features.append(x)
            return [self.head(x), *features]

    torch.manual_seed(0)
    model, x = Backbone(), torch.randn(64, 256)
    report = tr.apply_(model, tr.DKS(), inputs=x)
    assert report.skipped == {}
    assert all(value.square().mean().item() == pytest.approx(1, rel=0.15) for value in model(x))


class ReluAfterSum(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return F.relu(x + self.b(F.relu(self.a(x))))


@pytest.mark.parametrize("blocks", [8, 16])
def test_relu_after_the_sum_under_tat_and_dks(blocks):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), *[ReluAfterSum(WIDTH) for _ in range(blocks)], nn.Linear(WIDTH, WIDTH)
    )
    x = torch.randn(32, WIDTH)
    error = refused(model, tr.TAT(), x)
    assert error.code == "mean-into-activation"
    assert all(word in str(error) for word in ("DKS", "pre-activation", "shortcut=0"))
    assert tr.apply_(model, tr.DKS(), inputs=x).check.departure is None
    assert 0.4 < model(x).square().mean().item() < 2.5
    if blocks == 16:
        chain = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), *[ReluAfterSum(WIDTH) for _ in range(blocks)])
        report = tr.apply_(nn.Sequential(chain, nn.Linear(WIDTH, WIDTH)), tr.TAT(shortcut=0.0), inputs=x)
        assert report.check.layers[-1].q == pytest.approx(1, abs=0.05)


def test_densely_summed_layers():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(5)])

        def forward(self, x):
            outs = [self.layers[0](x)]
            for layer in self.layers[1:]:
                outs.append(layer(F.relu(sum(outs))))
            return sum(outs)

    torch.manual_seed(0)
    model, x = Dense(), torch.randn(64, WIDTH)
    x = x / x.square().mean(1, keepdim=True).sqrt()
    tr.apply_(model, tr.DKS(zeta=1.1), inputs=x)
    sums = [m.weights for m in model.children() if isinstance(m, WeightedSum)]
    assert [w == pytest.approx([len(w) ** -0.5] * len(w)) for w in sums] == [True] * 4
    assert model(x).square().mean().item() == pytest.approx(1, rel=0.2)


def test_the_edge_of_chaos_behind_a_transposed_convolution():
    torch.manual_seed(0)
    layers = [m for _ in range(2) for m in (nn.ConvTranspose2d(48, 48, 4, stride=2, padding=1), nn.ReLU())]
    model, x = nn.Sequential(*layers, nn.Conv2d(48, 48, 1)), torch.randn(8, 48, 6, 6)
    report = tr.apply_(model, tr.EOC(), inputs=x)
    assert "fan-in 192" in report.changes[0].why  # 48 times 4 of the 16 taps
    inner = model[0](x)[:, :, 2:-2, 2:-2].square().mean().item()
    assert inner == pytest.approx(x.square().mean().item(), rel=0.25)


# What is sound must not be refused, however narrow it is.
SOUND = {
    "narrow": lambda: (fnn(8, 40, 8, 2), tr.TAT(), (8,)),
    "narrow, at the edge of chaos": lambda: (fnn(8, 40, 8, 2), tr.EOC(), (8,)),
    "narrow and smooth": lambda: (fnn(6, 30, 6, 2, nonlinearity="tanh"), tr.DKS(), (6,)),
    "maps with borders": lambda: (cnn((3, 6, 6), 20, 5, 4), tr.EOC(), (3, 6, 6)),
    "few channels": lambda: (cnn((3, 6, 6), 20, 5, 4), tr.TAT(eta=0.5), (3, 6, 6)),
    "residual": lambda: (resnet(26, 4, norm=False, preactivation=True), tr.EOC(), (3, 6, 6)),
    "residual, shaped": lambda: (resnet(26, 4, norm=False), tr.DKS(), (3, 6, 6)),
    "a mean over places": lambda: (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.ReLU()),
        tr.DKS(zeta=1.1),
        (3, 9, 9),
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SOUND)
def test_what_is_sound_is_not_refused(name, seed):
    torch.manual_seed(seed)
    model, remedy, shape = SOUND[name]()
    report = tr.apply_(model, remedy, inputs=torch.randn(5, *shape))
    assert report.check is not None
    assert report.check.layers


def test_the_random_state_and_the_draw_are_those_without_a_check():
    x, states = torch.randn(4, 8), []
    for check in (True, False):
        torch.manual_seed(3)
        model = fnn(8, 20, 8, 2)
        tr.apply_(model, tr.TAT(), inputs=x, check=check)
        states.append((model.linear3.weight.clone(), torch.rand(1)))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_what_departs():
    def layer(measured, error, confirmed=True):
        return Compared("a", "affine", 1.0, 0.5, measured, 0.5, error, confirmed)

    assert layer(2.0, 0.1).departs
    assert layer(0.5, 0.1).departs
    assert not layer(1.4, 0.001).departs
    assert not layer(2.0, 0.2).departs
    assert not layer(2.0, 0.1, confirmed=False).departs
    assert layer(0.0, 0.1).departs
    assert layer(math.inf, 0.1).departs


def test_the_mean_of_log_normal_numbers():
    torch.manual_seed(0)
    draws = (torch.randn(4000, 8, dtype=torch.float64) * 1.5 - 1.125).exp()  # of mean 1
    found = [_mean(row.tolist()) for row in draws]
    far = sum(abs(math.log(mean)) > 4 * error for mean, error in found)
    assert far < 0.02 * len(found)


def test_dry_runs_without_values_are_not_checked():
    with torch.device("meta"):
        report = tr.apply_(fnn(8, 20, 8, 2), tr.TAT(), inputs=torch.zeros(2, 8), dry_run=True)
    assert report.check is None


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_outputs():
    model = nn.Sequential(nn.Linear(3, 0), nn.ReLU(), nn.Linear(0, 3))
    with pytest.raises(UnsupportedModelError) as caught:
        tr.apply_(model, tr.DKS(), inputs=torch.randn(4, 3))
    assert (caught.value.code, caught.value.path) == ("zero-width", "0")
