"""What a forward does itself: rewritten where that gives the network that was meant, and refused otherwise."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import trainability as tr
from trainability.errors import UnsupportedModelError


def same(state, other):
    return list(state) == list(other) and all(torch.equal(state[key], other[key]) for key in state)


class Module(nn.Module):
    """A module whose forward is given, with three layers to use."""

    def __init__(self, forward, width=8, **modules):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(width, width) for _ in range(3))
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


class AddRelu(nn.Module):
    def forward(self, x, y):
        return F.relu(x + y)


class Pooled(nn.Module):
    def forward(self, x):
        return F.max_pool1d(F.tanh(x), 2)


class Swapped(nn.Module):
    def forward(self, x, y):
        return 0.5 * y + x


class Noisy(nn.Module):
    def forward(self, x):
        return torch.tanh(x) + (0.1 * torch.randn_like(x) if self.training else 0)


def _under_no_grad(m, x):
    with torch.no_grad():
        h = torch.tanh(m.a(x))
    return m.b(h)


# What would come out as another network than was meant.
HAZARDS = {
    "a whole module that adds and activates": Module(lambda m, x: m.c(m.join(m.a(x), m.b(x))), join=AddRelu()),
    "a module that pools, too": Module(lambda m, x: m.c(torch.cat([m.act(m.a(x))] * 2, 1)), act=Pooled()),
    "summands in another order": Module(lambda m, x: m.c(torch.tanh(m.join(m.a(x), m.b(x)))), join=Swapped()),
    "an activation of an affine function": Module(lambda m, x: m.b(torch.tanh(2 * m.a(x) + 1))),
    "two activations in a row": Module(lambda m, x: m.b(torch.tanh(F.softplus(m.a(x))))),
    "a factor before a sum": Module(lambda m, x: m.c(torch.tanh(m.a(x) + 0.5 * m.b(x)))),
    "an input changed in place and used again": Module(
        lambda m, x: m.b(m.act(h := m.a(x))) + m.c(h), act=nn.ELU(inplace=True)
    ),
    "noise in training": Module(lambda m, x: m.b(m.act(m.a(x))), act=Noisy()),
}


@pytest.mark.parametrize("name", HAZARDS)
def test_what_would_become_another_network_is_refused(name):
    model, x = nn.Sequential(copy.deepcopy(HAZARDS[name]), nn.Tanh(), nn.Linear(8, 2)).eval(), torch.randn(4, 8)
    before, shown, output = copy.deepcopy(model.state_dict()), str(model), model(x)
    with pytest.raises(UnsupportedModelError) as caught:
        tr.apply_(model, tr.DKS(1.2), inputs=x)
    assert caught.value.path.startswith("0")
    assert same(before, model.state_dict())
    assert str(model) == shown
    if name != "noise in training":
        assert torch.equal(model(x), output)


class Forward(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)


class NoGrad(Forward):
    def forward(self, x):
        with torch.no_grad():
            h = torch.tanh(self.a(x))
        return self.b(h)


class Counts(Forward):
    def forward(self, x):
        self.last = torch.tanh(self.a(x))
        return self.b(self.last)


class InTraining(Forward):
    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.b(F.gelu(h)) if self.training else self.b(h)


@pytest.mark.parametrize(
    ("make", "words"), [(NoGrad, "works under no_grad"), (Counts, "sets attributes"), (InTraining, "in training than")]
)
def test_a_forward_that_a_rewritten_one_would_not_match(make, words):
    model = nn.Sequential(make(), nn.Tanh(), nn.Linear(8, 2))
    with pytest.raises(UnsupportedModelError, match=words):
        tr.apply_(model, tr.DKS(1.2), inputs=torch.randn(4, 8))
    assert "last" not in vars(model[0])


class Options(Forward):
    def forward(self, x, mask=None, *, both=False):
        h = torch.tanh(self.a(x))
        if mask is not None:
            h = h * mask
        return (self.b(h), h) if both else self.b(h)


class WithOptions(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Options()

    def forward(self, x):
        return self.inner(x, both=True)[0]


def test_default_and_keyword_arguments_of_a_rewritten_forward():
    x = torch.randn(4, 8)
    for model in (Options(), WithOptions()):
        tr.apply_(model, tr.DKS(1.2), inputs=x)
        assert torch.equal(model(x), model(x=x))


def test_settings_of_activation_functions_are_kept_apart():
    class Two(Forward):
        def forward(self, x):
            return F.softplus(self.b(F.softplus(self.a(x), 2.0)), beta=1.0)

    torch.manual_seed(0)
    model, x = nn.Sequential(Two(), nn.Linear(8, 2)), torch.randn(4, 8)
    tr.apply_(model, tr.DKS(1.2), inputs=x)
    assert model[0].shaped_softplus.constants != model[0].shaped_softplus_1.constants
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    weight = torch.exp(-z * z / 2) / torch.exp(-z * z / 2).sum()
    for act in (model[0].shaped_softplus, model[0].shaped_softplus_1):
        assert (weight * act(z)).sum().item() == pytest.approx(0, abs=1e-5)
        assert (weight * act(z) ** 2).sum().item() == pytest.approx(1, abs=1e-5)


def test_functions_that_are_no_part_of_torch_nn_functional():
    class Erf(Forward):
        def forward(self, x):
            return torch.asinh(self.b(torch.erf(self.a(x))))

    model, x = nn.Sequential(Erf(), nn.Linear(8, 2)), torch.randn(4, 8)
    tr.apply_(model, tr.DKS(1.2), inputs=x)
    assert {"shaped_erf", "shaped_asinh"} <= dict(model[0].named_children()).keys()
