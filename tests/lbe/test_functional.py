"""LBE within torch.func: the same gradients as backward(), per model, per task, forward, and twice."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

import trainability as tr
from models_for_tests import Functional, mlp

Weights = dict[str, Tensor]


def problem(build=lambda: mlp(4, 8)):
    model = build().double()
    x, y = torch.randn(32, 8, dtype=torch.float64), torch.randint(4, (32,))
    lbe = tr.LBE(model, alpha=0.5, beta=2.0, inputs=x)

    def loss(weights: Weights, x: Tensor = x, y: Tensor = y) -> Tensor:
        return lbe(F.cross_entropy(functional_call(model, weights, (x,)), y))

    return model, lbe, loss, {name: p.detach() for name, p in model.named_parameters()}, x, y


def by_backward(model: nn.Module, x: Tensor, y: Tensor) -> Weights:
    with tr.LBE(model, alpha=0.5, beta=2.0, inputs=x) as lbe:
        total = lbe(F.cross_entropy(model(x), y))
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(total, list(model.parameters())), strict=True))


@pytest.mark.parametrize("build", [lambda: mlp(4, 8), Functional])
def test_grad(build):
    model, lbe, loss, weights, x, y = problem(build)
    expected = by_backward(model, x, y)
    for _ in range(2):
        found = grad(loss)(weights)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)
        with pytest.raises(RuntimeError) as caught:  # what a transformation works on means nothing outside
            lbe.last  # noqa: B018
        assert caught.value.code == "no-last"
    lbe(F.cross_entropy(model(x), y))
    assert lbe.last.lbe > 0


def test_grad_for_alpha():
    model, lbe, _, _, x, y = problem()
    lbe(F.cross_entropy(model(x), y)).backward()
    found = grad(lambda a: functional_call(lbe, {"alpha": a}, (F.cross_entropy(model(x), y),)))(lbe.alpha.detach())
    torch.testing.assert_close(found, lbe.alpha.grad)


def test_models_side_by_side():
    _, _, loss, _, x, y = problem()
    models = [mlp(4, 8).double() for _ in range(3)]
    stacked = {name: p.detach() for name, p in stack_module_state(models)[0].items()}
    found = vmap(grad(loss))(stacked)
    for number, model in enumerate(models):
        for name, value in by_backward(model, x, y).items():
            torch.testing.assert_close(found[name][number], value)


def test_tasks_side_by_side():
    model, _, loss, weights, _, _ = problem()
    xs, ys = torch.randn(3, 16, 8, dtype=torch.float64), torch.randint(4, (3, 16))
    found = vmap(grad(loss), (None, 0, 0))(weights, xs, ys)
    for number in range(3):
        for name, value in by_backward(model, xs[number], ys[number]).items():
            torch.testing.assert_close(found[name][number], value)


def test_one_sample_has_no_entropy_over_a_batch():
    _, _, loss, weights, x, y = problem()
    with pytest.raises(RuntimeError, match="one sample per neuron") as caught:
        vmap(grad(loss), (None, 0, 0))(weights, x.unsqueeze(1), y.unsqueeze(1))
    assert caught.value.code == "no-readings"


def test_forward_mode():
    model, _, loss, weights, x, y = problem()
    direction = {name: torch.randn_like(w) for name, w in weights.items()}
    _, change = jvp(loss, (weights,), (direction,))
    expected = sum((value * direction[name]).sum() for name, value in by_backward(model, x, y).items())
    torch.testing.assert_close(change, expected)


def test_a_gradient_through_a_step_of_training():
    """As in meta-learning, against finite differences."""
    _, _, loss, weights, _, _ = problem(lambda: nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)))

    def after_a_step(w: Weights) -> Tensor:
        step = grad(loss)(w)
        return loss({name: w[name] - 0.1 * step[name] for name in w})

    found = grad(after_a_step)(weights)
    direction = {name: torch.randn_like(w) for name, w in weights.items()}
    ends = [after_a_step({n: w + step * direction[n] for n, w in weights.items()}) for step in (1e-6, -1e-6)]
    expected = (ends[0] - ends[1]) / 2e-6
    torch.testing.assert_close(sum((found[n] * direction[n]).sum() for n in weights), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("neurons", ["position", "channel"])
def test_batch_entropy(neurons):
    maps = torch.randn(3, 16, 4, 5, 5, dtype=torch.float64)

    def entropy(a: Tensor) -> Tensor:
        return tr.batch_entropy(a, neurons=neurons)

    values, gradients = vmap(entropy)(maps), vmap(grad(entropy))(maps)
    for number in range(3):
        a = maps[number].clone().requires_grad_(True)
        torch.testing.assert_close(values[number], entropy(a).detach())
        torch.testing.assert_close(gradients[number], torch.autograd.grad(entropy(a), a)[0])
