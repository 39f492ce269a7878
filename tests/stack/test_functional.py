"""A stack of networks that call activations as functions has the LBE term of each of them."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainability as tr
from models_for_tests import Functional
from trainability.lbe.stacked import StackLBE
from trainability.stack import ways
from trainability.stack.module import Stack
from trainability.training.observations import signal_values


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        h = h + F.leaky_relu(self.b(h), 0.3)
        return self.d(F.relu(self.c(h)))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.f1, self.f2 = nn.Linear(64, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c2(F.relu(self.c1(x))))
        return self.f2(F.relu(self.f1(x.flatten(1))))


@pytest.mark.parametrize(
    ("build", "shape", "first", "names"),
    [
        (Dense, (8,), "direct", ("input of b", "leaky_relu of b", "input of d")),
        (Convolutional, (1, 8, 8), "vmap", ("input of c2", "relu of c2", "input of f2")),
    ],
)
@pytest.mark.parametrize("convention", ["paper", "published-code"])
def test_terms_and_gradients_are_those_of_each_alone(build, shape, first, names, convention):
    models = [build().double() for _ in range(3)]
    x, y = torch.randn(3, 16, *shape, dtype=torch.float64), torch.randint(8, (3, 16))
    selection = tr.select(models[0], inputs=x[0])
    assert selection.paths == names
    twins, terms, alphas = copy.deepcopy(models), [], []
    for twin, own_x, own_y in zip(twins, x, y, strict=True):
        lbe = tr.LBE(twin, inputs=own_x, alpha=0.7, alpha_min=0.7, convention=convention)
        lbe(F.cross_entropy(twin(own_x), own_y)).backward()
        terms.append(lbe.last.lbe)
        alphas.append(lbe.alpha.grad)
    stack = Stack(models, taps=selection.places)
    ways.prepare(stack, x)
    assert stack.way == first
    for how in dict.fromkeys((first, "vmap", "loop")):
        stack.way = how
        like = next(stack.module.parameters())
        lbe = StackLBE(selection.paths, [0.7] * 3, [0.2] * 3, [0.7] * 3, convention=convention, like=like)
        outputs, readings = stack(x)
        losses = torch.stack([F.cross_entropy(o, t) for o, t in zip(outputs, y, strict=True)])
        stack.module.zero_grad()
        lbe(losses, readings).sum().backward()
        assert lbe.lbe.tolist() == pytest.approx(terms, rel=1e-9)
        torch.testing.assert_close(lbe.alpha.grad, torch.stack(alphas))
        for name, parameter in stack.module.named_parameters():
            theirs = torch.stack([dict(twin.named_parameters())[name].grad for twin in twins])
            torch.testing.assert_close(parameter.grad, theirs)


def test_a_stack_of_one_reads_them_too():
    model, x = Dense().double(), torch.randn(1, 16, 8, dtype=torch.float64)
    places = tr.select(model, inputs=x[0]).places
    expected = [layer.std for layer in tr.measure(model, x[0])]
    readings = Stack([model], taps=places)(x).readings
    found = [v.mean(-1).sqrt() for batch in readings for v in batch.variance[0]]
    assert [v.item() for v in found] == pytest.approx(expected)


def test_kernel_values_at_what_modules_are_given():
    model, x = Functional(), torch.randn(32, 8)
    names = [layer.name for layer in tr.measure(model, x)]
    q, c = signal_values(model, x, names)
    a = F.relu(model.first(x)).detach().double().numpy()
    assert q[0] == pytest.approx(np.mean(a * a), rel=1e-5)
    unit = a / np.linalg.norm(a, axis=1, keepdims=True)
    assert c[0] == pytest.approx((unit @ unit.T)[~np.eye(32, dtype=bool)].mean(), rel=1e-4)
    assert len(q) == len(c) == 2


def test_kernel_values_at_every_call_of_a_module():
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.act = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)), nn.Tanh()
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = self.act(layer(x))
            return self.head(x)

    model, x = Again(), torch.randn(32, 8)
    names = [layer.name for layer in tr.measure(model, x)]
    assert names == ["act", "act#2", "act#3"]
    q, _ = signal_values(model, x, names)
    expected = []
    for layer in model.layers:
        x = torch.tanh(layer(x))
        expected.append(float(x.detach().square().mean()))
    assert q == pytest.approx(expected, rel=1e-5)
