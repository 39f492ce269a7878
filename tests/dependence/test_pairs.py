"""Independence of neurons, and what gates do to it."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import trainability as tr
from models_for_tests import mlp
from refusals import refused
from trainability.dependence.dropout import correlation_after_dropout, dropout_effects, information_after_dropout
from trainability.dependence.pairs import independence, mutual_information
from trainability.errors import ArgumentError, ArgumentTypeError
from trainability.models import resnet


def pair(rho: float, count: int, pairs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, z = (torch.randn(count, pairs, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, rho * x + math.sqrt(1 - rho**2) * z


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_gaussian_pairs_have_the_information_of_the_formula(rho):
    x, y = pair(rho, 1000, 12)
    exact = -0.5 * math.log(1 - rho**2)
    for method in ("knn", "gaussian"):
        found = mutual_information(x, y, method=method)
        error = found.std().item() / math.sqrt(12)
        assert abs(found.mean().item() - exact) < 4 * error + 0.01


def test_other_laws_with_known_information():
    generator = torch.Generator().manual_seed(0)
    # y = x + u, both uniform on [0, 1]: I = h(y) - h(u) = 1/2 nat.
    x, u = (torch.rand(2000, generator=generator, dtype=torch.float64) for _ in range(2))
    assert mutual_information(x, x + u).item() == pytest.approx(0.5, abs=0.06)
    # a fair coin, and the same coin turned with probability 0.1: log 2 - H(0.1)
    coin = (x < 0.5).double()
    turned = torch.where(u < 0.1, 1 - coin, coin)
    exact = math.log(2) + 0.1 * math.log(0.1) + 0.9 * math.log(0.9)
    assert mutual_information(coin, turned).item() == pytest.approx(exact, abs=0.03)
    # a coin, and a uniform number moved by it: they overlap by half, so the coin is known half of the time.
    assert mutual_information(coin, 0.5 * coin + u).item() == pytest.approx(0.5 * math.log(2), abs=0.06)


def kraskov(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """Kraskov et al. (2004), eq. 8, in NumPy and one sample at a time."""
    from scipy.special import digamma

    total = 0.0
    for s in range(len(x)):
        dx, dy = np.abs(x - x[s]), np.abs(y - y[s])
        reach = np.sort(np.maximum(dx, dy))[k]
        total += digamma(k) - digamma((dx < reach).sum()) - digamma((dy < reach).sum())
    return total / len(x) + float(digamma(len(x)))


def test_without_ties_it_is_kraskovs_estimate():
    x, y = pair(0.7, 200, 1)
    one, other = ((v / v.std()).squeeze(1) for v in (x, y))
    expected = kraskov(one.numpy(), other.numpy(), 4) + math.log(200) - torch.digamma(torch.tensor(200.0)).item()
    assert mutual_information(x[:, 0], y[:, 0], k=4).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("keep", [0.5, 0.8, 0.95])
def test_the_theorem_holds_for_neurons_of_mean_zero(keep):
    x, y = pair(0.8, 1500, 1)
    effect = dropout_effects(x[:, 0], y[:, 0], keeps=[keep], means=[0.0], repeats=24)[0]
    assert abs(effect.correlation - keep) < 4 * effect.correlation_error
    assert abs(effect.information - keep**2) < 4 * effect.information_error + 0.01


@pytest.mark.parametrize("keep", [0.5, 0.8])
def test_correlation_falls_further_where_the_mean_is_not_zero(keep):
    x, y = pair(0.8, 1500, 1)
    effect = dropout_effects(x[:, 0], y[:, 0], keeps=[keep], means=[1.0], repeats=24)[0]
    assert effect.expected_correlation == pytest.approx(keep / (2 - keep))
    assert abs(effect.correlation - effect.expected_correlation) < 4 * effect.correlation_error
    assert abs(effect.information - keep**2) < 4 * effect.information_error + 0.01


def test_gated_correlation_is_that_of_many_samples():
    x, y = pair(0.6, 400_000, 1)
    gates = torch.rand(2, 400_000, generator=torch.Generator().manual_seed(1)) < 0.7
    gated = torch.stack([(x[:, 0] + 0.5) * gates[0], (y[:, 0] + 0.5) * gates[1]])
    assert torch.corrcoef(gated)[0, 1].item() == pytest.approx(correlation_after_dropout(0.6, 0.7, 0.5), abs=0.005)


@pytest.mark.parametrize("keep", [0.5, 0.8, 0.95])
def test_the_estimate_for_mixtures_sees_through_the_atom_where_the_gaussian_formula_does_not(keep):
    x, y = pair(0.9, 1500, 8)
    generator = torch.Generator().manual_seed(3)
    gated = [v * (torch.rand(v.shape, generator=generator) < keep) for v in (x, y)]
    whole = -0.5 * math.log(1 - 0.81)
    found = mutual_information(*gated).mean().item()
    assert found == pytest.approx(keep**2 * whole, abs=0.04)
    gaussian = mutual_information(*gated, method="gaussian").mean().item()
    assert gaussian == pytest.approx(-0.5 * math.log(1 - (0.9 * keep) ** 2), abs=0.04)


def test_independence_of_a_layer():
    torch.manual_seed(0)
    x = torch.randn(600, 1) + torch.randn(600, 20)
    found = independence(x)
    expected = np.abs(np.corrcoef(x.double().numpy().T)[np.triu_indices(20, 1)]).mean()
    assert found is not None
    assert found.samples == 512
    assert independence(x, most_samples=600).correlation == pytest.approx(expected)
    assert found.gaussian == pytest.approx(-0.5 * math.log(1 - 0.25), abs=0.03)
    assert found.knn == pytest.approx(found.gaussian, abs=0.05)
    assert independence(torch.ones(20, 5)) is None
    maps = torch.randn(20, 4, 5, 5)
    assert independence(maps, neurons="channel").samples == 500
    with refused(ArgumentError, "too-few-samples"):
        independence(torch.randn(3, 5))
    with refused(ArgumentTypeError, "wrong-type"):
        independence(torch.ones(20, 5, dtype=torch.int64))
    with refused(ArgumentError, "shapes-differ"):
        mutual_information(torch.randn(5), torch.randn(6))
    with refused(ArgumentError, "too-few-samples"):
        mutual_information(torch.randn(5), torch.randn(5), k=9)


def test_measure_shows_it_where_it_is_asked_for():
    flow = tr.measure(mlp(), torch.randn(64, 8), independence=True)
    assert all(layer.independence is not None for layer in flow)
    assert "MI knn" in repr(flow)
    assert flow.to_dict()["layers"][0]["independence"]["samples"] == 64
    plain = tr.measure(mlp(), torch.randn(64, 8))
    assert plain[0].independence is None
    assert "MI knn" not in repr(plain)


def test_an_ic_layer_lowers_the_dependence_of_what_a_layer_receives():
    torch.manual_seed(0)
    x = torch.randn(512, 1) + 0.5 * torch.randn(512, 8)
    model = nn.Sequential(nn.Identity(), nn.Linear(8, 8))
    tr.apply_(model, tr.IC(keep=0.5), where="1")
    seen = tr.measure(model, x, where="1.ic", independence=True)[0].independence
    before = independence(x)
    assert seen.correlation == pytest.approx(0.5 * before.correlation, rel=0.15)


UNITS = ("relu-ic-conv", "ic-conv-relu", "conv-relu-ic")


@pytest.mark.parametrize("convolutions", [2, 3])
@pytest.mark.parametrize("unit", UNITS)
def test_units_of_a_residual_network(unit, convolutions):
    depth = 8 if convolutions == 2 else 11
    model = resnet(depth, 10, width=4, unit=unit, keep=0.9, convolutions=convolutions)
    baseline = resnet(depth, 10, width=4, convolutions=convolutions)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, baseline)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.03)
    block = model.stage2[0]
    names = [name.partition("_")[2] or "conv" for name, _ in block.branch.named_children()]
    assert names == [*unit.split("-")] * convolutions
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_parameter_counts_that_the_documentation_states():
    counts = {unit: sum(p.numel() for p in resnet(26, 10, unit=unit).parameters()) for unit in ("baseline", *UNITS)}
    assert counts == {"baseline": 369690, "conv-relu-ic": 369690, "relu-ic-conv": 369594, "ic-conv-relu": 369594}
    with pytest.raises(ValueError, match="unit is 'conv'"):
        resnet(8, 10, unit="conv")
    with pytest.raises(ValueError, match="leave out norm"):
        resnet(8, 10, unit="relu-ic-conv", norm=False)


def test_a_unit_that_ends_in_a_nonlinearity_is_not_shaped_by_a_rule_that_does_not_hold():
    x = torch.randn(4, 3, 8, 8)
    for unit in ("ic-conv-relu", "conv-relu-ic"):
        with refused(tr.UnsupportedModelError, "sum-of-means"):
            tr.apply_(resnet(20, 10, width=4, unit=unit), tr.TAT(eta=0.5, batchnorm="remove"), inputs=x)
    shaped = resnet(20, 10, width=4, unit="relu-ic-conv")
    tr.apply_(shaped, tr.TAT(eta=0.5, batchnorm="remove"), inputs=x)
    q = [value.q for value in tr.predict(shaped, x) if value.kind == "sum"]
    assert q[-1] == pytest.approx(q[0], rel=1e-6)


def test_information_does_not_depend_on_units():
    x, y = pair(0.8, 400, 2)
    assert torch.allclose(mutual_information(x, y), mutual_information(1000 * x - 5, 0.01 * y), atol=1e-9)
    wide = torch.randn(300, 1) + torch.randn(300, 8)
    scaled = wide * torch.logspace(-2, 2, 8)
    assert independence(scaled).knn == pytest.approx(independence(wide).knn, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [
        (lambda x: independence(x.to(torch.float8_e4m3fn)), ArgumentTypeError, "wrong-type"),
        (lambda x: independence(x.to_sparse()), ArgumentTypeError, "wrong-type"),
        (lambda x: independence(x.to("meta")), ArgumentError, "no-values"),
        (lambda x: independence(x[:, :0]), ArgumentError, "empty"),
        (lambda x: independence(x, most_neurons=-1), ArgumentError, "out-of-range"),
        (lambda x: independence(x, most_pairs=0), ArgumentError, "out-of-range"),
        (lambda x: independence(x, most_samples="a"), ArgumentTypeError, "wrong-type"),
        (lambda x: independence(x, k=2.5), ArgumentTypeError, "wrong-type"),
        (lambda x: mutual_information(1, 2), ArgumentTypeError, "wrong-type"),
        (lambda x: mutual_information(x, x * 1j), ArgumentTypeError, "wrong-type"),
        (lambda x: mutual_information(x[:, :0], x[:, :0], k=1), ArgumentError, "shapes-differ"),
        (lambda x: mutual_information(x, x, method="x"), ArgumentError, "unknown-choice"),
        (lambda x: mutual_information(x, x, k=0), ArgumentError, "out-of-range"),
        (lambda x: correlation_after_dropout(0.5, 0), ArgumentError, "out-of-range"),
        (lambda x: correlation_after_dropout("a", 0.5), ArgumentTypeError, "wrong-type"),
        (lambda x: information_after_dropout(1.0, float("nan")), ArgumentError, "out-of-range"),
        (lambda x: dropout_effects(x, x), ArgumentError, "shapes-differ"),
        (lambda x: dropout_effects(x[:, 0], x[:9, 0]), ArgumentError, "shapes-differ"),
        (lambda x: dropout_effects(x[:, 0], torch.ones(40)), ArgumentError, "no-spread"),
        (lambda x: dropout_effects(x[:, 0], x[:, 1], keeps=0.5), ArgumentTypeError, "wrong-type"),
        (lambda x: dropout_effects(x[:, 0], x[:, 1], repeats=1), ArgumentError, "out-of-range"),
    ],
)
def test_wrong_arguments(call, error, code):
    with refused(error, code):
        call(torch.randn(40, 3))
