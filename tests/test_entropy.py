import math

import numpy as np
import pytest
import torch

import trainability as tr
from reference import numpy_neuron_entropy, plain_entropy

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
    assert tr.batch_entropy(a).item() == pytest.approx(plain_entropy(exact).item(), rel=1e-3)
    (ours,) = torch.autograd.grad(tr.batch_entropy(a), a)
    (theirs,) = torch.autograd.grad(plain_entropy(exact), exact)
    assert (
        ours.double() - theirs
    ).norm() < 0.02 * theirs.norm()  # a mean in float32 is off by a hundredth of this spread


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
def test_nearest_neighbour_estimate_of_known_distributions(draw, exact, k):
    estimate = tr.differential_entropy(draw(20_000), k=k)
    torch.testing.assert_close(estimate, torch.full((8,), exact, dtype=torch.float64), atol=0.05, rtol=0)


def test_nearest_neighbour_estimate_equals_a_search_over_all_pairs():
    a = torch.randn(60, 2, dtype=torch.float64)
    k, count = 4, 60
    expected = []
    for column in a.T:
        distance = (column[:, None] - column[None]).abs().fill_diagonal_(math.inf)
        radius = distance.sort(dim=1).values[:, k - 1]
        psi = torch.special.digamma(torch.tensor([count, k], dtype=torch.float64))
        expected.append(psi[0] - psi[1] + math.log(2) + radius.log().mean())
    torch.testing.assert_close(tr.differential_entropy(a, k=k), torch.stack(expected))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: tr.batch_entropy(torch.zeros(1, 3)), ValueError, r"shape \(1, 3\) has one sample"),
        (lambda: tr.batch_entropy(torch.zeros(0, 3)), ValueError, r"shape \(0, 3\)"),
        (lambda: tr.batch_entropy(torch.zeros(3, 3, dtype=torch.long)), TypeError, "int64"),
        (lambda: tr.batch_entropy([1.0]), TypeError, "list"),
        (
            lambda: tr.batch_entropy(torch.zeros(3, 3), convention="pi"),
            ValueError,
            "'paper' or 'published-code'",
        ),
        (lambda: tr.neuron_entropy(torch.zeros(3, 3), neurons="all"), ValueError, "'position' or 'channel'"),
        (
            lambda: tr.batch_entropy(torch.zeros(3, 3), neurons="channel", channel_dim=5),
            ValueError,
            "channel_dim is 5",
        ),
        (lambda: tr.differential_entropy(torch.randn(3, 3), k=3), ValueError, "less than the 3 samples"),
        (lambda: tr.differential_entropy(torch.randn(3, 3), method="x"), ValueError, "'gaussian' or 'knn'"),
    ],
)
def test_errors_say_what_and_what_to_do(call, error, words):
    with pytest.raises(error, match=words):
        call()
