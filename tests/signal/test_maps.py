"""Quadrature, activations, and Q and C maps."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import signal_reference as reference
from refusals import code_of
from trainability import signal as kernels
from trainability.signal.activation import names

SMOOTH = [name for name, (_, kinks) in reference.FUNCTIONS.items() if name not in ("relu",)]


@pytest.mark.parametrize(("power", "value"), [(2, 1), (4, 3), (8, 105), (12, 10395)])
def test_moments_of_the_normal_distribution(power, value):
    assert kernels.expectation(lambda x: x**power) == pytest.approx(value, rel=1e-12)


def test_an_integral_with_a_known_value():
    assert kernels.expectation(torch.cos) == pytest.approx(math.exp(-0.5), rel=1e-13)
    assert kernels.expectation(lambda x: (x > 0.3).double(), kinks=[0.3]) == pytest.approx(
        0.5 * math.erfc(0.3 / math.sqrt(2)), rel=1e-12
    )


def test_an_integral_that_is_not_one():
    assert code_of(lambda: kernels.expectation(torch.log)) == "not-finite"
    assert code_of(lambda: kernels.expectation(lambda x: (x > 0.3).double())) == "not-settled"
    assert code_of(lambda: kernels.expectation(3), TypeError) == "function"
    assert code_of(lambda: kernels.expectation(torch.cos, kinks="a"), TypeError) == "kinks"


@pytest.mark.parametrize("name", reference.FUNCTIONS)
@pytest.mark.parametrize("q", [0.3, 1.0, 4.0, 1e5])
def test_q_maps_and_slopes_against_numpy(name, q):
    function, kinks = reference.FUNCTIONS[name]
    x, w = reference.rule([k / math.sqrt(q) for k in kinks], graded=q > 100)
    value, slope, _ = function(math.sqrt(q) * x)
    size = (w * value**2).sum()
    assert kernels.q_map(name, q) == pytest.approx(size, rel=1e-12)
    assert kernels.mean(name, q) == pytest.approx((w * value).sum(), rel=1e-12, abs=1e-12)
    assert kernels.q_slope(name, q) == pytest.approx((w * value * slope * x).sum() / math.sqrt(q), rel=1e-11)
    assert kernels.c_slope(name, 1.0, q) == pytest.approx(q * (w * slope**2).sum() / size, rel=1e-11)


@pytest.mark.parametrize("name", ["tanh", "gelu", "elu", "softsign", "relu"])
@pytest.mark.parametrize("c", [-0.8, 0.0, 0.5, 0.99])
def test_c_maps_against_numpy(name, c):
    function, kinks = reference.FUNCTIONS[name]
    assert kernels.c_map(name, c, 2.0) == pytest.approx(reference.c_map(function, kinks, c, 2.0), abs=1e-9)


@pytest.mark.parametrize("c", [-1.0, -0.7, 0.0, 0.6, 0.999999, 1.0])
def test_relu_is_the_arc_cosine_kernel(c):
    closed = (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi  # Cho and Saul (2009), J1
    assert kernels.c_map("relu", c) == pytest.approx(closed, abs=1e-14)
    assert kernels.c_map(lambda z: z.clamp(min=0), c) == pytest.approx(closed, abs=1e-12)
    assert kernels.c_slope("relu", c) == pytest.approx(1 - math.acos(c) / math.pi, abs=1e-12)


@pytest.mark.parametrize("name", SMOOTH)
def test_slopes_of_c_maps_by_finite_differences(name):
    h = 1e-4
    ahead, here, behind = (kernels.c_map(name, 0.5 + d) for d in (h, 0, -h))
    assert kernels.c_slope(name, 0.5) == pytest.approx((ahead - behind) / (2 * h), rel=1e-6)
    assert kernels.c_curvature(name, 0.5) == pytest.approx((ahead - 2 * here + behind) / h**2, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", [n for n in names() if n not in ("swish", "hardshrink", "identity")])
def test_every_activation_is_understood_without_its_name_too(name):
    known = kernels.as_activation(name)
    found = kernels.as_activation(known.function)
    assert found.kinks == pytest.approx(known.kinks)
    assert kernels.q_map(found, 1.7) == pytest.approx(kernels.q_map(name, 1.7), rel=1e-12)
    assert kernels.c_slope(found) == pytest.approx(kernels.c_slope(name), rel=1e-10)


@pytest.mark.parametrize(
    ("module", "name"),
    [(nn.ReLU(), "relu"), (nn.GELU(), "gelu"), (nn.GELU("tanh"), "gelu_tanh"), (nn.SiLU(), "silu"), (nn.ELU(), "elu")],
)
def test_modules_are_known_by_their_settings(module, name):
    assert kernels.as_activation(module).name == name
    z = torch.linspace(-3, 3, 50, dtype=torch.float64)
    assert torch.allclose(kernels.as_activation(module).function(z), module(z))


def test_a_module_with_other_settings_is_taken_as_it_is():
    act = kernels.as_activation(nn.ELU(alpha=0.5))
    assert kernels.mean(act) == pytest.approx(
        kernels.expectation(lambda z: nn.functional.elu(z, 0.5), [0.0]), rel=1e-12
    )
    assert kernels.as_activation(nn.Hardtanh(-2, 0.5)).kinks == (-2.0, 0.5)


def test_kinks_are_found_wherever_they_are():
    act = kernels.as_activation(lambda z: torch.where(z > 1 / 3, z, z**2) + (z - 2.7).relu() ** 2)
    assert act.kinks == pytest.approx((1 / 3, 2.7), abs=1e-9)


def _norm(z):
    return z / z.norm()


def _noise(z):
    return z + torch.rand_like(z)


@pytest.mark.parametrize(
    ("phi", "code"),
    [
        (_norm, "not-elementwise"),
        (_noise, "random"),
        (lambda z: z.sqrt(), "not-finite"),
        (lambda z: z.sum(0), "not-elementwise"),
        (lambda z: z.float(), "not-elementwise"),
        (lambda z: z * 0, "constant"),
        (lambda z: torch.where(z.abs() < 8, z, z / 0), "not-finite"),
        (nn.RReLU(), "random"),
        (nn.Softmax(1), "not-elementwise"),
        (nn.Linear(3, 3), "activation-fails"),
        ("rellu", "unknown-activation"),
        (3.0, "activation"),
    ],
)
def test_what_is_no_activation_is_refused(phi, code):
    assert code_of(lambda: kernels.as_activation(phi)) == code


def test_values_out_of_range():
    assert code_of(lambda: kernels.c_map("tanh", 1.5)) == "cosine"
    assert code_of(lambda: kernels.c_map("tanh", "a"), TypeError) == "wrong-type"
    assert code_of(lambda: kernels.q_map("tanh", -1.0)) == "mean-square"
    assert code_of(lambda: kernels.q_map("tanh", None), TypeError) == "wrong-type"
    assert code_of(lambda: kernels.c_curvature("relu")) == "jump"
    assert code_of(lambda: kernels.c_slope("hardshrink")) == "jump"
    assert code_of(lambda: kernels.kernel("tanh", 0.5, order=7)) == "order"


@pytest.mark.parametrize(
    ("written", "slope", "gain"),
    [
        (lambda z: z.clamp(min=0), 0.0, 1.0),
        (lambda z: torch.maximum(z, torch.zeros(())), 0.0, 1.0),
        (lambda z: F.threshold(z, 0.0, 0.0), 0.0, 1.0),
        (lambda z: F.hardtanh(z, 0.0, math.inf), 0.0, 1.0),
        (lambda z: z * (z > 0), 0.0, 1.0),
        (lambda z: torch.where(z > 0, z, 0.2 * z), 0.2, 1.0),
        (lambda z: z + z.abs(), 0.0, 2.0),
        (lambda z: z * 0.75 + 0.25 * z.abs(), 0.5, 1.0),
        (lambda z: z.abs(), None, None),
        (lambda z: (z - 1).relu(), None, None),
        (lambda z: -z.relu(), None, None),
        (F.elu, None, None),
    ],
)
def test_a_leaky_relu_is_known_by_what_it_computes(written, slope, gain):
    found = kernels.as_activation(written).leaky
    assert found is None if slope is None else found == pytest.approx((slope, gain))


@pytest.mark.parametrize("c", [0.3, -0.8, 0.999999])
def test_many_kinks_cost_little_memory(c):
    """Rounding has 48 kinks; its C map by the series of the correlation of a step function, in NumPy."""
    steps = np.arange(-9.5, 10, 1.0)
    grid = np.linspace(-9, 9, 20001)
    density = np.exp(-grid * grid / 2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])
    tail = np.vectorize(lambda v: 0.5 * math.erfc(v / math.sqrt(2)))
    given = [tail((t - c * grid) / math.sqrt(1 - c * c)) for t in steps]
    inner = sum(given) - len(steps) / 2  # E[round(v) | u]
    value = float((density * np.round(grid) * inner).sum())
    size = float((density * np.round(grid) ** 2).sum())
    assert kernels.c_map(torch.round, c) == pytest.approx(value / size, abs=2e-4)


def test_a_wide_layer_does_what_the_maps_say():
    torch.manual_seed(0)
    q, c, width = 1.5, 0.4, 200_000
    u = math.sqrt(q) * torch.randn(width, dtype=torch.float64)
    v = c * u + math.sqrt(q * (1 - c * c)) * torch.randn(width, dtype=torch.float64)
    for name in ("tanh", "softplus"):
        phi = kernels.as_activation(name).function
        a, b = phi(u), phi(v)
        product = a * b
        error = float(product.std()) / math.sqrt(width)
        assert float(product.mean()) == pytest.approx(kernels.kernel(name, c, q), abs=4 * error)
        assert float((a * a).mean()) == pytest.approx(kernels.q_map(name, q), abs=4 * float((a * a).std()) / width**0.5)


def test_nodes_are_those_of_numpy():
    x, w = kernels.gaussian.gauss_legendre(16)
    other_x, other_w = np.polynomial.legendre.leggauss(16)
    assert np.allclose(x.numpy(), other_x, atol=1e-14)
    assert np.allclose(w.numpy(), other_w, atol=1e-14)
