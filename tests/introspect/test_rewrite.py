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
    ("make", "code"),
    [
        (NoGrad, "forward-under-a-context"),
        (Counts, "forward-sets-attributes"),
        (InTraining, "forward-not-understood"),
    ],
)
def test_a_forward_that_a_rewritten_one_would_not_match(make, code):
    model = nn.Sequential(make(), nn.Tanh(), nn.Linear(8, 2))
    with pytest.raises(UnsupportedModelError) as caught:
        tr.apply_(model, tr.DKS(1.2), inputs=torch.randn(4, 8))
    assert caught.value.code == code
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


def _stacked(m, x):
    return m.c(torch.tanh(torch.stack([m.a(x), m.b(x)]).sum(0)))


def _in_place_and_used(m, x):
    h = m.a(x)
    h.tanh_()
    return m.b(h)


# Ways to write what another way of writing means: an activation in several operations, constants beside sums.
SAME = {
    "two activations in a row": (
        lambda m, x: m.b(torch.tanh(F.softplus(m.a(x)))),
        lambda m, x: m.b(m.act(m.a(x))),
        lambda z: torch.tanh(F.softplus(z)),
    ),
    "an activation of an affine function": (
        lambda m, x: m.b(torch.tanh(2 * m.a(x) + 1)),
        lambda m, x: m.b(m.act(m.a(x))),
        lambda z: torch.tanh(2 * z + 1),
    ),
    "swish written out": (
        lambda m, x: m.b((h := m.a(x)) * torch.sigmoid(h)),
        lambda m, x: m.b(m.act(m.a(x))),
        F.silu,
    ),
    "a constant after it": (
        lambda m, x: m.b(1.7 * torch.tanh(m.a(x))),
        lambda m, x: m.b(m.act(m.a(x))),
        lambda z: 1.7 * torch.tanh(z),
    ),
    "in place, by its argument": (_in_place_and_used, lambda m, x: m.b(m.act(m.a(x))), torch.tanh),
    "a cast before it": (
        lambda m, x: m.b(torch.tanh(m.a(x).float())),
        lambda m, x: m.b(m.act(m.a(x))),
        torch.tanh,
    ),
}


class Own(nn.Module):
    """An activation as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("name", SAME)
def test_an_activation_is_shaped_however_it_is_written(name):
    written, plain, function = SAME[name]
    x, outputs = torch.randn(4, 8), []
    for forward, modules in ((written, {}), (plain, {"act": Own(function)})):
        torch.manual_seed(0)
        model = nn.Sequential(Module(forward, **modules), nn.Tanh(), nn.Linear(8, 2))
        tr.apply_(model, tr.DKS(1.2, init=None), inputs=x)
        outputs.append(model(x))
    assert torch.allclose(*outputs, atol=1e-5)


SUMS = {
    "a factor before a sum": lambda m, x: m.c(torch.tanh(m.a(x) + 0.5 * m.b(x))),
    "a factor behind it": lambda m, x: m.c(torch.tanh((2 * m.a(x) + m.b(x)) * 0.5)),
    "a quotient": lambda m, x: m.c(torch.tanh((m.a(x) + m.b(x) / 2) / 3)),
    "alpha": lambda m, x: m.c(torch.tanh(torch.add(m.a(x), m.b(x), alpha=0.5))),
    "lerp": lambda m, x: m.c(torch.tanh(torch.lerp(m.a(x), m.b(x), 1 / 3))),
    "a difference": lambda m, x: m.c(torch.tanh(m.a(x) - -0.5 * m.b(x))),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_keeps_the_ratio_of_its_weights_however_it_is_written(name):
    model, x = nn.Sequential(Module(SUMS[name]), nn.Tanh(), nn.Linear(8, 2)), torch.randn(4, 8)
    tr.apply_(model, tr.DKS(1.2), inputs=x)
    assert model[0].weighted_sum_0.weights == pytest.approx((2 / 5**0.5, 1 / 5**0.5))
    assert torch.allclose(
        model[0](x),
        model[0].c(model[0].shaped_tanh(2 / 5**0.5 * model[0].a(x) + 1 / 5**0.5 * model[0].b(x))),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.c(torch.tanh(sum([m.a(x), m.b(x), x]))),
        lambda m, x: m.c(torch.tanh(torch.stack([m.a(x), m.b(x), x], 1).mean(1))),
        lambda m, x: m.c(torch.tanh(m.a(x) + (m.b(x) + x))),
        lambda m, x: m.c(torch.tanh(m.idle(m.a(x) + m.b(x)) + x)),
    ],
)
def test_a_sum_of_several_is_one_sum(forward):
    model, x = nn.Sequential(Module(forward, idle=nn.Identity()), nn.Tanh(), nn.Linear(8, 2)), torch.randn(4, 8)
    tr.apply_(model, tr.DKS(1.2), inputs=x)
    assert model[0].weighted_sum_0.weights == pytest.approx([3**-0.5] * 3)
    model = nn.Sequential(Module(forward, idle=nn.Identity()), nn.Tanh(), nn.Linear(8, 2))
    tr.apply_(model, tr.DKS(1.2, shortcut=0.6), inputs=x)
    assert sorted(model[0].weighted_sum_0.weights) == pytest.approx([0.8 / 2**0.5] * 2 + [0.6])


class Root(Forward):
    def forward(self, xs, flag=False):
        h = F.relu(self.a(xs["one"]) + xs["two"][0])
        return {"h": self.b(h), "again": (h,)}


class Rooted(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.root, self.last = nn.Linear(8, 8), nn.Linear(8, 8), Root(), nn.Linear(8, 2)

    def forward(self, x):
        out = self.root({"one": self.first(x), "two": [self.second(x)]})
        return self.last(torch.tanh(out["h"] + out["again"][0]))


def test_a_forward_that_takes_tensors_in_lists_and_gives_tuples():
    x, model = torch.randn(4, 8), Rooted()
    tr.apply_(model, tr.DKS(1.2), inputs=x)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    h = model.root.shaped_relu(model.root.weighted_sum_0(model.root.a(model.first(x)), model.second(x)))
    both = model.weighted_sum_0(model.root.b(h), h)
    assert torch.allclose(model(x), model.last(model.shaped_tanh(both)), atol=1e-6)
