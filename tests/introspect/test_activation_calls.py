"""Where activations called as functions are read: always their result, or not at all."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainability as tr
from models_for_tests import Functional


class Pooled(nn.Module):
    """The usual small network for images: pooling, dropout and flattening come before the next weights."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.drop, self.f1, self.f2 = nn.Dropout(0.3), nn.Linear(100, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.relu(self.c2(x), inplace=True)
        x = self.drop(torch.relu_(self.f1(torch.flatten(x, 1))))
        return self.f2(x)


class Gated(nn.Module):
    """Results that are multiplied and added before a module takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = h * torch.sigmoid(self.b(h))
        h = h + F.leaky_relu(self.c(h), 0.3)
        return self.d(F.gelu(h, approximate="tanh"))


class Forms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.d(torch.clamp(self.c(self.b(self.a(x).relu()).clamp(min=0)), min=0))


class Dropped(nn.Module):
    """A dropout that does nothing in evaluation stands between the activation and the next weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.dropout(F.relu(self.a(x)), 0.5, self.training))


class Twice(nn.Module):
    """One linear layer before and after activations, and first on what is none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(torch.tanh(self.a(x)))))


class Changed(nn.Module):
    """The result is changed in place before the next weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.softplus(self.a(x))
        h *= 2
        return self.b(h)


class Keyword(nn.Module):
    """The next module is given the result by name, and is used elsewhere in the model, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(input=F.silu(self.a(x)))


def results_of(model: nn.Module, x: Tensor) -> list[float]:
    """Entropy of what every activation function returned in a pass, in order, by replacing the functions."""
    found: list[float] = []
    names = [(F, n) for n in ("relu", "leaky_relu", "gelu", "softplus", "silu")]
    names += [(torch, n) for n in ("relu_", "sigmoid", "tanh", "clamp")] + [(Tensor, n) for n in ("relu", "clamp")]
    originals = [(owner, name, getattr(owner, name)) for owner, name in names]

    running: list[object] = []  # one may call another

    def watched(function):
        def call(*args, **kwargs):
            running.append(function)
            result = function(*args, **kwargs)
            running.pop()
            if not running:
                found.append(tr.batch_entropy(result.detach().clone()).item())
            return result

        return call

    try:
        for owner, name, function in originals:
            setattr(owner, name, watched(function))
        model(x)
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)
    return found


@pytest.mark.parametrize(
    ("build", "shape", "names"),
    [
        (Functional, (8,), ["input of second", "input of out"]),
        (Pooled, (1, 16, 16), ["relu of c1", "relu of c2", "input of drop"]),
        (Gated, (8,), ["sigmoid of b", "leaky_relu of c", "input of d"]),
        (Forms, (8,), ["input of b", "input of c", "input of d"]),
        (Dropped, (8,), ["relu of a"]),
        (Twice, (8,), ["tanh of a", "tanh of a#2"]),
        (Changed, (8,), ["softplus of a"]),
        (Keyword, (8,), ["input of b"]),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_results_are_read_and_nothing_else(build, shape, names, known):
    model, x = build(), torch.randn(16, *shape)
    state = torch.get_rng_state()
    expected = results_of(model, x)
    for _ in range(2):
        lbe = tr.LBE(model, inputs=x if known else None)
        torch.set_rng_state(state)
        for _ in range(2):  # the first pass copies activations, the second does not
            torch.set_rng_state(state)
            lbe(model(x).square().mean()).backward()
        assert list(lbe.last.entropy) == names
        assert list(lbe.last.entropy.values()) == pytest.approx(expected, rel=1e-5)
        lbe.remove()
        model.eval()  # which the choice does not depend on
        lbe = tr.LBE(model, inputs=x if known else None)
        assert set(lbe.selection.paths) == {name.partition("#")[0] for name in names}
        assert not model.training
        lbe.remove()
        model.train()


@pytest.mark.parametrize("build", [Pooled, Gated, Forms, Changed, Keyword])
def test_gradient_is_that_of_modules_in_their_place(build):
    """Finite differences of the whole loss along a random direction of all weights."""
    model = build().double()
    x = torch.randn(16, *((1, 16, 16) if build is Pooled else (8,)), dtype=torch.float64)
    lbe = tr.LBE(model, inputs=x, beta=3.0)
    if build is Pooled:
        model.drop.eval()
    lbe(model(x).square().mean()).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    direction = [torch.randn_like(p) for p in model.parameters()]
    ours = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    ends = []
    for step in (1e-7, -1e-7):
        with torch.no_grad():
            torch._foreach_add_(list(model.parameters()), direction, alpha=step)
            ends.append(lbe(model(x).square().mean()).item())
            torch._foreach_add_(list(model.parameters()), direction, alpha=-step)
    assert ours == pytest.approx((ends[0] - ends[1]) / 2e-7, rel=1e-5)


@pytest.mark.parametrize("build", [Functional, Pooled, Gated, Changed])
def test_compiles_without_graph_breaks(build):
    model, x = build().double(), torch.randn(16, *((1, 16, 16) if build is Pooled else (8,)), dtype=torch.float64)
    if build is Pooled:
        model.drop.p = 0.0
    lbe = tr.LBE(model, inputs=x)
    expected = lbe(model(x).square().mean())
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        total = lbe(compiled(x).square().mean())
        torch.testing.assert_close(total, expected)
        for a, b in zip(torch.autograd.grad(total, list(model.parameters())), theirs, strict=True):
            torch.testing.assert_close(a, b)


class Unreadable(nn.Module):
    """No module returns the result, is given it, or returned its argument."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return self.c(self.b(h) + F.gelu(h + x))


@pytest.mark.parametrize("inputs", [None, torch.randn(4, 8)])
def test_a_result_without_a_place_is_an_error_of_lbe_and_named_by_select_and_measure(inputs):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Unreadable())
    with pytest.raises(tr.UnsupportedModelError) as caught:
        tr.LBE(model, inputs=inputs)
    assert (caught.value.code, caught.value.path) == ("activation-unread", "2")
    assert "gelu" in caught.value.problem
    assert "nn.GELU()" in caught.value.problem
    selection = tr.select(model, inputs=inputs)
    assert selection.paths == ("1", "input of 2.b")
    assert list(selection.unread) == ["2"]
    assert "gelu" in str(selection)
    assert "gelu" in tr.measure(model, torch.randn(4, 8)).skipped["2"]
    assert tr.LBE(model, where=selection.places).selection.paths == selection.paths


class Cell(nn.Module):
    """Nothing but gates on parts of one product."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.a(x).chunk(2, -1)
        return self.b(torch.tanh(value) * torch.sigmoid(gate))


def test_where_nothing_can_be_read_the_reason_is_said():
    x = torch.randn(4, 8)
    for use in (lambda: tr.measure(Cell(), x), lambda: tr.select(Cell()), lambda: tr.LBE(Cell(), inputs=x)):
        with pytest.raises(tr.UnsupportedModelError) as caught:
            use()
        assert caught.value.code == "activation-unread"
        assert "tanh, sigmoid" in caught.value.problem
    assert "tanh, sigmoid" in tr.diagnose(Cell(), x).not_computed[0]
    assert [layer.name for layer in tr.measure(Cell(), x, where=nn.Linear)] == ["a", "b"]


class Untraceable(nn.Module):
    def __init__(self, function=None) -> None:
        super().__init__()
        self.a, self.relu, self.b, self.c = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4)
        self.functions = [function]

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        h = self.relu(self.a(x))
        h = self.b(h) if h.sum() > -1e9 else h
        return self.c(self.functions[0](h) if self.functions[0] else h) * scale


class Suspect(Untraceable):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.finish(self.b(x))) if x.sum() > -1e9 else x

    def finish(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


def test_what_cannot_be_traced_needs_inputs_where_its_code_calls_activations():
    with pytest.raises(tr.TrainabilityError) as caught:
        tr.LBE(Suspect())
    assert caught.value.code == "inputs-needed"
    assert "tanh in its forward" in str(caught.value)
    assert "LBE(model, inputs=x)" in str(caught.value)
    assert tr.LBE(Suspect(), inputs=torch.randn(4, 8)).selection.paths == ("input of c",)


def test_what_cannot_be_traced_is_looked_at_in_the_first_pass():
    x = torch.randn(4, 8)
    plain, hidden = Untraceable(), Untraceable(torch.tanh)
    lbe = tr.LBE(plain)
    lbe(plain(x).square().mean())
    assert list(lbe.last.entropy) == ["relu"]
    assert len(plain._forward_pre_hooks) == 1  # the check has gone
    tr.LBE(hidden)
    assert [layer.name for layer in tr.measure(hidden, x)] == ["relu", "input of c"]
    for _ in range(2):
        with pytest.raises(tr.UnsupportedModelError) as caught:
            hidden(x, scale=2.0)
        assert caught.value.code == "inputs-needed"
        assert "input of c" in str(caught.value)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * x)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean()


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + 1


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


@pytest.mark.parametrize("known", [True, False])
def test_an_elementwise_module_of_ones_own_is_an_activation(known):
    own = [Sine(), Mean(), Double(), Swish(), nn.Identity()]
    model = nn.Sequential(*[m for a in own for m in (nn.Linear(8, 8), a)], nn.Linear(8, 2))
    x = torch.randn(16, 8)
    assert tr.select(model, inputs=x if known else None).paths == ("1", "7")
    assert [layer.name for layer in tr.measure(model, x)] == ["1", "7"]
    lbe = tr.LBE(model, inputs=x if known else None)
    lbe(model(x).square().mean())
    assert list(lbe.last.entropy) == ["1", "7"]


def test_inputs_of_modules_can_be_chosen():
    model = Gated()
    assert tr.select(model, "input of *").paths == ("input of a", "input of b", "input of c", "input of d")
    for where in (["input of d", "a"], {"input of d", "a"}, (part for part in ("input of d", "a"))):
        assert tr.select(model, where).paths == ("a", "input of d")
    assert tr.select(model, re.compile("input of [ad]")).paths == ("input of a", "input of d")
    assert tr.select(model, nn.Linear).paths == ("a", "b", "c", "d")
    places = tr.select(model, inputs=torch.randn(4, 8)).places
    assert tr.select(model, where=places[1:]).places == places[1:]
    flow = tr.measure(model, torch.randn(4, 8), where=places)
    assert [(layer.name, layer.kind) for layer in flow] == [
        ("sigmoid of b", "sigmoid"), ("leaky_relu of c", "leaky_relu"), ("input of d", "gelu"),
    ]  # fmt: skip
    for where in ("input of x", places[0].__class__("nowhere")):
        with pytest.raises(tr.TrainabilityError) as caught:
            tr.select(model, where)
        assert caught.value.code == "where-matches-nothing"


def test_an_exported_module_is_refused_for_what_it_is():
    x = torch.randn(32, 16)
    net = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(16, 16), nn.ReLU())], nn.Linear(16, 4))
    exported = torch.export.export(net, (x,)).module()
    for use in (lambda: tr.measure(exported, x), lambda: tr.LBE(exported, inputs=x)):
        with pytest.raises(tr.UnsupportedModelError) as caught:
            use()
        assert caught.value.code == "no-module-runs"
