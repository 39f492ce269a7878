"""Directions against the norms of filters in NumPy, and Hessians that are known."""

import numpy as np
import pytest
import torch
from torch import nn

from refusals import refused
from trainability.errors import UnsupportedModelError
from trainability.surface.curvature import leading_eigenvectors
from trainability.surface.directions import random_directions


def norms(tensor, axes):
    return np.sqrt((tensor.detach().numpy().astype(np.float64) ** 2).sum(axes))


def test_filters_get_the_norms_of_those_of_the_weights():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3),
        nn.BatchNorm2d(6),
        nn.ConvTranspose2d(6, 4, 3),
        nn.LayerNorm((4, 9, 7)),
        nn.Linear(7, 5),
    )
    first, second = random_directions(model, "filter", seed=1)
    for d in (first, second):
        np.testing.assert_allclose(norms(d["0.weight"], (1, 2, 3)), norms(model[0].weight, (1, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(norms(d["2.weight"], (0, 2, 3)), norms(model[2].weight, (0, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(norms(d["4.weight"], 1), norms(model[4].weight, 1), rtol=1e-6)
        zero = {name for name, t in d.items() if not t.any()}
        assert zero == {n for n in d if n.endswith("bias")} | {"1.weight", "3.weight"}
    assert not torch.equal(first["4.weight"], second["4.weight"])
    assert torch.equal(first["4.weight"], random_directions(model, "filter", seed=1)[0]["4.weight"])


def test_filters_of_a_grouped_transposed_convolution_are_those_of_each_group():
    layer = nn.ConvTranspose1d(4, 6, 3, groups=2)
    d = random_directions(layer, "filter", seed=0)[0]["weight"]
    for group in (slice(0, 2), slice(2, 4)):
        np.testing.assert_allclose(norms(d[group], (0, 2)), norms(layer.weight[group], (0, 2)), rtol=1e-6)


def test_tensors_get_the_norm_of_each_parameter_biases_included():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model[0].weight.requires_grad_(False)
    d = random_directions(model, "tensor", seed=0)[0]
    assert set(d) == {"0.bias", "1.weight", "1.bias"}  # what is not trained does not move
    np.testing.assert_allclose(norms(d["0.bias"], 0), norms(model[0].bias, 0), rtol=1e-6)
    np.testing.assert_allclose(norms(d["1.weight"], 0), np.sqrt(3), rtol=1e-6)
    assert not d["1.bias"].any()


@pytest.mark.parametrize("count", [3, 60])  # by the whole matrix, and by products with it
def test_eigenvectors_of_a_quadratic_are_those_of_its_matrix(count):
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(count, count)))[0]
    values = np.concatenate([[-7.0, 4.0], rng.uniform(-1, 1, count - 2)])
    matrix = torch.from_numpy(turn @ np.diag(values) @ turn.T)
    model = nn.Linear(count, 1, bias=False).double()

    def losses():  # two batches whose mean is ½ wᵀ A w
        w = model.weight[0]
        yield 0.5 * w @ matrix @ w + w.sum(), 0.25
        yield 0.5 * w @ matrix @ w, 0.75

    found, eigenvalues = leading_eigenvectors(model, losses, seed=0)
    np.testing.assert_allclose(eigenvalues, [-7, 4], rtol=1e-8)
    for number, direction in enumerate(found):
        vector = direction["weight"][0].numpy()
        np.testing.assert_allclose(vector * np.sign(vector @ turn[:, number]), turn[:, number], atol=1e-7)
        assert vector[np.abs(vector).argmax()] > 0


def test_what_has_no_directions_is_refused():
    zero = nn.Linear(3, 2)
    nn.init.zeros_(zero.weight)
    with refused(UnsupportedModelError, "no-direction"):
        random_directions(zero, "filter", seed=0)
    with refused(UnsupportedModelError, "no-parameters"):
        random_directions(nn.ReLU(), "filter", seed=0)
    with refused(UnsupportedModelError, "no-curvature"):
        leading_eigenvectors(zero, lambda: [(zero.weight.sum(), 1.0)], seed=0)
    with refused(UnsupportedModelError, "too-few"):
        leading_eigenvectors(nn.Linear(1, 1, bias=False), lambda: [], seed=0)
