import math

import numpy as np
import pytest
import torch

import trainability as tr
from reference import numpy_neuron_entropy, plain_entropy
from refusals import refused
from trainability.errors import ArgumentError, ArgumentTypeError

CONSTANTS = {"paper": 2 * math.pi * math.e, "published-code": math.pi * math.e}
SHAPES = [(2, 1), (7,), (5, 3), (64, 33), (9, 4, 5), (6, 3, 4, 2), (3, 2, 2, 3, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("convention", list(CONSTANTS))
def test_equals_the_formula_in_numpy(shape, convention):
    a = torch.randn(shape, dtype=torch.float64) * torch.rand(shape[1:], dtype=torch.float64)
    expected = numpy_neuron_entropy(a.numpy(), CONSTANTS[convention])
    np.testing.assert_allclose(tr.neuron_entropy(a, convention=convention).numpy(), expected, rtol=1e-12, atol=1e-14)
    assert tr.batch_entropy(a, convention=convention).item() == pytest.approx(expected.mean(), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_equals_autograd_of_the_plain_formula(shape):
    a = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(3 * tr.batch_entropy(a), a)
    rows = a if a.dim() > 1 else a.unsqueeze(1)
    (theirs,) = torch.autograd.grad(3 * plain_entropy(rows), a)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_gradient_by_finite_differences():
    a = torch.randn(6, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(tr.neuron_entropy, (a,))
    assert torch.autograd.gradcheck(lambda x: tr.neuron_entropy(x, neurons="channel"), (a,))


@pytest.mark.parametrize(
    ("shape", "dim", "channel_dim"),
    [((8, 3, 4, 5), 1, None), ((8, 5, 3), 2, None), ((8, 3, 5), 1, 1), ((8, 4, 5, 3), 3, -1)],
)
def test_channels_take_positions_as_samples(shape, dim, channel_dim):
    a = torch.randn(shape, dtype=torch.float64)
    expected = numpy_neuron_entropy(np.moveaxis(a.numpy(), dim, -1).reshape(-1, shape[dim]))
    ours = tr.neuron_entropy(a, neurons="channel", channel_dim=channel_dim).numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    if len(shape) == 4 and dim == 1:
        lasting = a.contiguous(memory_format=torch.channels_last)
        np.testing.assert_allclose(tr.neuron_entropy(lasting, neurons="channel").numpy(), expected, rtol=1e-12)


def test_channels_last_memory_gives_the_same_neurons_and_gradient():
    a = torch.randn(6, 3, 4, 5)
    last = a.contiguous(memory_format=torch.channels_last).requires_grad_(True)
    torch.testing.assert_close(tr.neuron_entropy(last), tr.neuron_entropy(a))
    (ours,) = torch.autograd.grad(tr.batch_entropy(last), last)
    b = a.clone().requires_grad_(True)
    (theirs,) = torch.autograd.grad(plain_entropy(b), b)
    torch.testing.assert_close(ours, theirs)


def test_a_small_spread_about_a_large_mean_is_not_rounded_away():
    noise = torch.randn(256, 10, dtype=torch.float64)
    a = (1000 + 0.01 * noise).float().requires_grad_(True)
    exact = a.detach().double().requires_grad_(True)
    assert tr.batch_entropy(a).item() == pytest.approx(plain_entropy(exact).item(), rel=1e-6)
    (ours,) = torch.autograd.grad(tr.batch_entropy(a), a)
    (theirs,) = torch.autograd.grad(plain_entropy(exact), exact)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_accumulated_in_float32(dtype):
    a = (300 * torch.randn(512, 4)).to(dtype).requires_grad_(True)  # squares overflow float16
    entropy = tr.batch_entropy(a)
    assert entropy.dtype == torch.float32
    assert entropy.item() == pytest.approx(plain_entropy(a.detach().double()).item(), rel=1e-5)
    entropy.backward()
    assert a.grad.dtype == dtype
    assert a.grad.isfinite().all()


def test_float64_stays_float64():
    assert tr.batch_entropy(torch.randn(4, 4, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("draw", "exact"),
    [
        (lambda n: torch.randn(n, 8, dtype=torch.float64), 0.5 * math.log(2 * math.pi * math.e)),
        (lambda n: 2 * torch.rand(n, 8, dtype=torch.float64), math.log(2)),
        (lambda n: -torch.rand(n, 8, dtype=torch.float64).log(), 1.0),  # exponential
    ],
)
@pytest.mark.parametrize("k", [1, 3, 10])
def test_nearest_neighbor_estimate_of_known_distributions(draw, exact, k):
    estimate = tr.differential_entropy(draw(20_000), k=k)
    torch.testing.assert_close(estimate, torch.full((8,), exact, dtype=torch.float64), atol=0.05, rtol=0)


def test_nearest_neighbor_estimate_equals_a_search_over_all_pairs():
    a = torch.randn(60, 2, dtype=torch.float64)
    k, count = 4, 60
    expected = []
    for column in a.T:
        distance = (column[:, None] - column[None]).abs().fill_diagonal_(math.inf)
        radius = distance.sort(dim=1).values[:, k - 1]
        psi = torch.special.digamma(torch.tensor([count, k], dtype=torch.float64))
        expected.append(psi[0] - psi[1] + math.log(2) + radius.log().mean())
    torch.testing.assert_close(tr.differential_entropy(a, k=k), torch.stack(expected))


FEW = torch.randn(3, 3)
FLOAT8 = torch.randn(8, 4).to(torch.float8_e4m3fn)
NESTED = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged)


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [
        (lambda: tr.batch_entropy(torch.zeros(1, 3)), ArgumentError, "one-sample"),
        (lambda: tr.differential_entropy(torch.zeros(1, 3), method="gaussian"), ArgumentError, "one-sample"),
        (lambda: tr.batch_entropy(torch.zeros(0, 3)), ArgumentError, "empty"),
        (lambda: tr.batch_entropy(torch.tensor(1.0)), ArgumentError, "empty"),
        (lambda: tr.batch_entropy(torch.zeros(3, 3, dtype=torch.long)), ArgumentTypeError, "wrong-type"),
        (lambda: tr.batch_entropy(FEW * 1j), ArgumentTypeError, "wrong-type"),
        (lambda: tr.batch_entropy(FLOAT8), ArgumentTypeError, "wrong-type"),
        (lambda: tr.neuron_entropy(FLOAT8), ArgumentTypeError, "wrong-type"),
        (lambda: tr.differential_entropy(FLOAT8), ArgumentTypeError, "wrong-type"),
        (lambda: tr.batch_entropy(NESTED), ArgumentTypeError, "wrong-type"),
        (lambda: tr.batch_entropy(FEW.to_sparse()), ArgumentTypeError, "wrong-type"),
        (lambda: tr.batch_entropy(FEW.to_mkldnn()), ArgumentTypeError, "wrong-type"),
        (lambda: tr.batch_entropy([1.0]), ArgumentTypeError, "wrong-type"),
        (lambda: tr.neuron_entropy(None), ArgumentTypeError, "wrong-type"),
        (lambda: tr.batch_entropy(FEW, convention="pi"), ArgumentError, "unknown-choice"),
        (lambda: tr.batch_entropy(FEW, convention=[]), ArgumentError, "unknown-choice"),
        (lambda: tr.neuron_entropy(FEW, neurons="all"), ArgumentError, "unknown-choice"),
        (lambda: tr.neuron_entropy(FEW, neurons=[]), ArgumentError, "unknown-choice"),
        (lambda: tr.batch_entropy(FEW, neurons="channel", channel_dim=5), ArgumentError, "out-of-range"),
        (lambda: tr.neuron_entropy(FEW, neurons="channel", channel_dim=0), ArgumentError, "out-of-range"),
        (lambda: tr.neuron_entropy(FEW, neurons="channel", channel_dim=-2), ArgumentError, "out-of-range"),
        (lambda: tr.batch_entropy(FEW, channel_dim="a"), ArgumentTypeError, "wrong-type"),
        (lambda: tr.batch_entropy(FEW, channel_dim=1.0), ArgumentTypeError, "wrong-type"),
        (lambda: tr.differential_entropy(FEW, k=3), ArgumentError, "too-few-samples"),
        (lambda: tr.differential_entropy(FEW, k=0), ArgumentError, "out-of-range"),
        (lambda: tr.differential_entropy(FEW, k=2.5), ArgumentTypeError, "wrong-type"),
        (lambda: tr.differential_entropy(FEW, method="x"), ArgumentError, "unknown-choice"),
    ],
)
def test_wrong_arguments(call, error, code):
    with refused(error, code):
        call()


def many(samples: int, mean: float, std: float) -> torch.Tensor:
    return (mean + std * torch.randn(samples, 4, dtype=torch.float64)).float()


@pytest.mark.parametrize("samples", [64, 512, 513, 1000, 4096, 131_072])
@pytest.mark.parametrize(("mean", "std"), [(0, 1), (10, 1e-2), (100, 1), (1e3, 0.1), (1e4, 1), (1e4, 1e-2)])
def test_many_samples_and_large_means_are_those_of_numpy(samples, mean, std):
    a = many(samples, mean, std)
    expected = numpy_neuron_entropy(a.double().numpy())
    np.testing.assert_allclose(tr.neuron_entropy(a).numpy(), expected, rtol=1e-6)
    assert tr.batch_entropy(a.mT.contiguous().mT).item() == pytest.approx(expected.mean(), rel=1e-6)


def test_tokens_and_maps_of_many_positions_and_their_copies_agree_with_numpy():
    tokens = many(64 * 700, 30, 0.1).view(64, 700, 4)
    maps = tokens.movedim(-1, 1).reshape(64, 4, 70, 10).contiguous()
    expected = numpy_neuron_entropy(tokens.double().flatten(0, 1).numpy())
    for a, channel in (
        (tokens, None),
        (tokens.mT.contiguous(), 1),
        (tokens.mT, 1),
        (maps, None),
        (maps.contiguous(memory_format=torch.channels_last), None),
    ):
        entropy = tr.neuron_entropy(a, neurons="channel", channel_dim=channel)
        np.testing.assert_allclose(entropy.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(700, 3), (7, 3)])
def test_huge_values_have_a_finite_entropy_and_gradient(shape):
    assert tr.batch_entropy(torch.full(shape, 1.1e30)).item() == 0
    a = (1e20 * torch.randn(shape, dtype=torch.float64)).float().requires_grad_()
    exact = a.detach().double().requires_grad_()
    entropy = tr.batch_entropy(a)
    assert entropy.dtype == torch.float32
    assert entropy.item() == pytest.approx(numpy_neuron_entropy(exact.detach().numpy()).mean(), rel=1e-6)
    (ours,) = torch.autograd.grad(entropy, a)
    (theirs,) = torch.autograd.grad(plain_entropy(exact), exact)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=0)
    gaussian = tr.differential_entropy(a.detach(), method="gaussian").double().numpy()
    deviation = exact.detach().numpy().std(axis=0, ddof=1)
    np.testing.assert_allclose(gaussian, np.log(deviation) + 0.5 * math.log(2 * math.pi * math.e), rtol=1e-6)


def test_the_gradient_where_float32_is_short_is_that_in_float64():
    a = many(2000, 1e4, 1e-2).requires_grad_()
    exact = a.detach().double().requires_grad_()
    (ours,) = torch.autograd.grad(tr.batch_entropy(a), a)
    (theirs,) = torch.autograd.grad(plain_entropy(exact), exact)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-9 * float(theirs.abs().max()))


def test_one_neuron_without_a_dimension_of_its_own():
    a = torch.randn(9, dtype=torch.float64)
    expected = numpy_neuron_entropy(a.numpy()[:, None])
    np.testing.assert_allclose(tr.neuron_entropy(a, neurons="channel").numpy(), expected, rtol=1e-12)
