"""q, c and means through values that are not normal, against networks that are drawn and run."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainability.signal import predict, read
from trainability.signal.graph import Node, SignalGraph
from trainability.signal.propagate import propagate

WIDTH, SAMPLES = 400, 12


class Block(nn.Module):
    """act(x + f(x)), the block of ResNet v1."""

    def __init__(self, width, act):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(width, width), nn.Linear(width, width), act

    def forward(self, x):
        return self.act(x + self.b(self.act(self.a(x))))


def residual_network(blocks, act, width=WIDTH):
    return nn.Sequential(nn.Linear(width, width), act, *[Block(width, act) for _ in range(blocks)])


def drawn(model, weight, bias):
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=math.sqrt(weight / layer.in_features))
            nn.init.normal_(layer.bias, std=math.sqrt(bias))


# He for ReLU; the edge of chaos of tanh (Poole et al. 2016, eq. 7 at q = 1).
@pytest.mark.parametrize(("act", "weight", "bias"), [(nn.ReLU(), 2.0, 0.0), (nn.Tanh(), 2.153303, 0.150965)])
def test_the_block_of_resnet_v1_within_the_error_of_draws(act, weight, bias):
    blocks, draws = 16, 12
    model = residual_network(blocks, act)
    seen = np.zeros((draws, blocks + 1, 2))
    said = np.zeros((draws, blocks + 1, 2))
    generator = torch.Generator().manual_seed(1)
    for k in range(draws):
        drawn(model, weight, bias)
        x = torch.randn(SAMPLES, WIDTH, generator=generator) + torch.randn(1, WIDTH, generator=generator)
        x = x / x.square().mean(1, keepdim=True).sqrt()
        with torch.no_grad():
            values = [model[:2](x)]
            for block in model[2:]:
                values.append(block(values[-1]))
        for i, h in enumerate(values):
            gram = (h @ h.T / WIDTH).double().numpy()
            q = gram.diagonal().mean()
            seen[k, i] = q, (gram.sum() - gram.trace()) / (SAMPLES * (SAMPLES - 1)) / q
        layers = [v for v in predict(model, x) if v.kind == "nonlinear"]
        ends = [layers[0], *layers[2::2]]
        said[k] = [(v.q, v.c) for v in ends]
    ratio = seen[..., 0] / said[..., 0]
    assert np.all(np.abs(ratio.mean(0) - 1) < 4 * ratio.std(0, ddof=1) / math.sqrt(draws) + 0.02)
    difference = seen[..., 1] - said[..., 1]
    assert np.all(np.abs(difference.mean(0)) < 4 * difference.std(0, ddof=1) / math.sqrt(draws) + 0.01)


def test_draws_agree_with_the_maps_where_both_hold():
    relu = read(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.randn(3, 4)).nonlinear[0].activation
    plain = [Node("input"), Node("affine", (0,), weights=(2.0, 0.1)), Node("nonlinear", (1,), activation=relu)]
    # A concatenation of two of one kind is no other distribution, but takes the way of draws.
    mixed = [
        *plain[:2],
        Node("affine", (0,), weights=(2.0, 0.1)),
        Node("concat", (1, 2), weights=(0.25, 0.75)),
        Node("nonlinear", (3,), activation=relu),
    ]
    exact = propagate(SignalGraph(tuple(plain)), {"": (1.3, 0.4)}).states[-1]
    found = propagate(SignalGraph(tuple(mixed)), {"": (1.3, 0.4)}).states[-1]
    for name in ("q", "k", "m"):
        assert getattr(found, name) == pytest.approx(getattr(exact, name), rel=5e-3)


def test_sums_of_what_depends_on_one_another():
    class Swish(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(900, 900), nn.Linear(900, 900)

        def forward(self, x):
            h = self.a(x)
            return self.b(F.layer_norm(h, (900,)) + 2 * h)

    torch.manual_seed(0)
    found = predict(Swish(), torch.randn(30, 900), check=True)
    assert found.stopped is None
    for layer in found:
        assert layer.q == pytest.approx(layer.measured[0], rel=0.08)


def test_features_of_different_size_side_by_side():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(500, 500), nn.Linear(1000, 700), nn.Linear(1700, 300)

        def forward(self, x):
            y = torch.cat([x, 5 * self.a(x)], 1)
            return self.c(torch.cat([F.relu(y), self.b(torch.tanh(y))], 1))

    torch.manual_seed(0)
    for layer in predict(Dense(), torch.randn(40, 500) + 0.5 * torch.randn(1, 500), check=True):
        assert layer.q == pytest.approx(layer.measured[0], rel=0.08)
        assert layer.c == pytest.approx(layer.measured[1], abs=0.02)


def test_measured_values_go_on_where_the_prediction_ends():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(16, 8)
    assert len(predict(model, x)) == 1
    found = predict(model, x, check=True)
    assert "batch_norm" in found.stopped
    assert [layer.kind for layer in found] == ["affine", "normalize", "nonlinear", "affine"]
    assert math.isnan(found.layers[-1].q)
    assert found.layers[-1].measured[0] == pytest.approx(model.eval()(x).square().mean().item(), rel=1e-5)


def test_every_input_enters_with_its_own_size_and_angle():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(300, 300), nn.Linear(300, 300), nn.Linear(300, 300)

        def forward(self, one, other=None):
            return self.c(torch.tanh(self.a(one)) + self.b(other))

    torch.manual_seed(0)
    one, other = torch.randn(32, 300), 5 * torch.randn(32, 300) + 5 * torch.randn(1, 300)
    model = Two()
    for inputs in ((one, other), {"other": other, "one": one}):
        for layer in predict(model, inputs, check=True):
            assert layer.q == pytest.approx(layer.measured[0], rel=0.15)
            assert layer.c == pytest.approx(layer.measured[1], abs=0.02)
