import copy
import json
import random

import numpy as np
import pytest
import torch
from torch import nn

import trainability as tr
from models_for_tests import Checkpointed, Functional, Overwritten, Reused, Structured, mlp
from reference import numpy_neuron_entropy
from refusals import refused
from trainability.errors import (
    ArgumentError,
    ArgumentTypeError,
    UnknownIndexError,
    UnknownKeyError,
    UnsupportedModelError,
)
from trainability.flow import measure


def normed() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.utils.parametrizations.spectral_norm(nn.Linear(16, 8)),
        nn.Tanh(),
        nn.Linear(8, 4),
    )


def snapshot(model: nn.Module) -> dict[str, object]:
    return {
        "state": copy.deepcopy(model.state_dict()),
        "modes": [m.training for m in model.modules()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "random": torch.get_rng_state(),
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "requires": [p.requires_grad for p in model.parameters()],
    }


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("look", [measure, tr.diagnose])
def test_observing_changes_nothing(look, training):
    model = normed().train(training)
    model[1].eval()
    x, y = torch.randn(32, 8), torch.randint(4, (32,))
    nn.functional.cross_entropy(model(x), y).backward()
    before = snapshot(model)
    look(model, x, y, nn.functional.cross_entropy)
    assert same(before, snapshot(model))


def test_a_backward_pass_that_waits_is_not_disturbed():
    model, x = normed(), torch.randn(8, 8)
    loss = model(x).sum()
    measure(model, x)
    loss.backward()


def test_random_state_of_numpy_and_python_and_new_buffers():
    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.relu, self.b = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)
            self.register_buffer("odd", torch.tensor([float("inf"), -0.0]))
            self.register_buffer("eight", torch.ones(2).to(torch.float8_e4m3fn))

        def forward(self, x):
            self.odd.fill_(np.random.rand() + random.random())
            self.register_buffer("late", x)
            return self.b(self.relu(self.a(x)))

    model = Draws()
    before = (np.random.get_state()[1].tolist(), random.getstate(), model.odd)
    measure(model, torch.randn(4, 8))
    assert before == (np.random.get_state()[1].tolist(), random.getstate(), model.odd)
    assert model.odd.tolist() == [float("inf"), 0.0]
    assert "late" not in model.state_dict()


def test_a_layer_with_one_sample_is_skipped_and_the_others_are_measured():
    model = mlp(2)
    model[3].forward = lambda h: h.relu()[:1]
    flow = measure(model, torch.randn(4, 8))
    assert [layer.name for layer in flow] == ["1"]
    assert flow.skipped["3"] == "one sample per neuron (shape (1, 8)); two are the least"


def test_observing_restores_after_an_error():
    model = normed()
    x = torch.randn(8, 8)
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError):
        measure(model, x, torch.zeros(8), lambda out, y: 1 // 0)
    assert same(before, snapshot(model))


def test_numbers_equal_numpy():
    model, x = mlp(2), torch.randn(64, 8)
    flow = measure(model, x)
    h = x
    for index, layer in zip((1, 3), flow, strict=True):
        h = model[index](model[index - 1](h))
        a = h.detach().double().numpy()
        assert layer.entropy == pytest.approx(numpy_neuron_entropy(a).mean(), rel=1e-4)
        assert layer.mean == pytest.approx(a.mean(), rel=1e-4)
        assert layer.std == pytest.approx(np.sqrt(a.var(axis=0).mean()), rel=1e-4)
        assert layer.dead == pytest.approx((a.std(axis=0) == 0).mean())
        assert layer.shape == (64, 8)


@pytest.mark.parametrize("model", [mlp(3), mlp(3, inplace=True), Functional()])
def test_gradient_norms_equal_those_of_retained_activations(model):
    x, y = torch.randn(64, 8), torch.randint(4, (64,))
    flow = measure(model, x, y, nn.functional.cross_entropy)
    kept = []
    for place in flow.selection.places:
        module = model.get_submodule(place.path)
        if place.given:
            module.register_forward_pre_hook(lambda _m, i: kept.append(i[0].clone()) or kept[-1])
        else:
            module.register_forward_hook(lambda _m, _i, o: kept.append(o.clone()) or kept[-1])
    for a in [nn.functional.cross_entropy(model(x), y)]:
        grads = torch.autograd.grad(a, kept)
    assert [layer.gradient for layer in flow] == pytest.approx([g.norm().item() for g in grads], rel=1e-5)


def test_gradient_before_an_in_place_change():
    model, x, y = Overwritten(), torch.randn(64, 8), torch.randint(4, (64,))
    flow = measure(model, x, y, nn.functional.cross_entropy, where=["a", "b"])
    a = model.a(x)
    b = model.b(a.relu())
    grads = torch.autograd.grad(nn.functional.cross_entropy(model.out((b * 2).relu()), y), [a, b])
    assert [layer.gradient for layer in flow] == pytest.approx([g.norm().item() for g in grads], rel=1e-5)


@pytest.mark.parametrize(
    "inputs", [torch.randn(4, 8), (torch.randn(4, 8),), [torch.randn(4, 8)], {"x": torch.randn(4, 8)}]
)
def test_every_form_of_inputs(inputs):
    assert len(measure(Functional(), inputs)) == 2


def test_calls_of_one_module_are_told_apart():
    flow = measure(Reused(), torch.randn(4, 8))
    assert [layer.name for layer in flow] == ["relu", "relu#2"]
    assert flow["relu#2"] is flow[1]
    with refused(UnknownKeyError, "unknown-reading"):
        flow["x"]
    with refused(ArgumentTypeError, "wrong-type"):
        flow[1.0]


@pytest.mark.parametrize("kind", ["integer", "empty", "none"])
def test_outputs_without_entropy_are_skipped_and_said_so(kind):
    flow = measure(Structured(kind), torch.randn(4, 8), where=["wrap", "relu"])
    assert [layer.name for layer in flow] == ["relu"]
    assert "skipped wrap: its output holds no floating-point tensor" in repr(flow)


def test_a_layer_that_does_not_run_is_named():
    model = mlp(2)
    model.spare = nn.ReLU()
    model.forward = lambda x: model[4](model[3](model[2](model[1](model[0](x)))))
    assert "did not run" in measure(model, torch.randn(4, 8), where=nn.ReLU).skipped["spare"]


def test_a_checkpoint_is_read_once():
    x, y = torch.randn(8, 16), torch.randint(4, (8,))
    model = Checkpointed(16, True)
    flow = measure(model, x, y, nn.functional.cross_entropy, where=nn.ReLU)
    assert [layer.name for layer in flow] == [f"blocks.{i}.{j}" for i in range(3) for j in (1, 3)]
    model.on = False
    plain = measure(model, x, y, nn.functional.cross_entropy, where=nn.ReLU)
    assert [a.gradient for a in flow] == pytest.approx([a.gradient for a in plain])


def test_compiled_and_wrapped_models_are_unwrapped():
    model = mlp(2)
    assert repr(measure(torch.compile(model), torch.ones(4, 8))) == repr(measure(model, torch.ones(4, 8)))


def test_frozen_model_has_no_gradient():
    model = mlp(2).requires_grad_(False)
    flow = measure(model, torch.randn(4, 8), torch.randint(4, (4,)), nn.functional.cross_entropy)
    assert [layer.gradient for layer in flow] == [None, None]
    assert flow.loss is not None


def test_to_dict_is_json_and_repr_is_a_table():
    flow = measure(mlp(2), torch.randn(4, 8))
    assert json.loads(json.dumps(flow.to_dict()))["layers"][0]["name"] == "1"
    assert repr(flow).splitlines()[0].split() == ["layer", "kind", "shape", "entropy", "mean", "std", "dead"]


def test_plot_draws_every_layer():
    figure = measure(mlp(2), torch.randn(4, 8)).plot()
    assert list(figure.data[0].x) == ["1", "3"]


class ChildOfItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self._modules["me"] = nn.Linear(8, 8), self

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [
        (lambda m, x: measure(m, torch.randn(1, 8)), UnsupportedModelError, "nothing-measured"),
        (lambda m, x: measure("m", x), ArgumentTypeError, "not-a-module"),
        (lambda m, x: measure(ChildOfItself(), x, where="*"), UnsupportedModelError, "in-itself"),
        (lambda m, x: measure(m.to("meta"), x), UnsupportedModelError, "no-values"),
        (lambda m, x: measure(m, x.to("meta")), ArgumentError, "no-values"),
        (lambda m, x: measure(m, {1: x}), ArgumentTypeError, "wrong-type"),
        (lambda m, x: measure(m, x, x, 3), ArgumentTypeError, "wrong-type"),
        (lambda m, x: measure(m, x, x, lambda o, y: 3.0), ArgumentError, "loss-not-a-number"),
        (lambda m, x: measure(m, x, x, lambda o, y: o), ArgumentError, "loss-not-a-number"),
        (lambda m, x: measure(m, x, x, lambda o, y: o.sum() * 1j), ArgumentError, "loss-not-a-number"),
        (lambda m, x: measure(m, x, neurons="chanel"), ArgumentError, "unknown-choice"),
        (lambda m, x: measure(m, x, convention="chanel"), ArgumentError, "unknown-choice"),
        (lambda m, x: measure(m, x, channel_dim="a"), ArgumentTypeError, "wrong-type"),
        (lambda m, x: measure(m, x, independence="yes"), ArgumentTypeError, "wrong-type"),
        (lambda m, x: measure(m, x)[9], UnknownIndexError, "unknown-reading"),
        (
            lambda m, x: measure(nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.Linear(3, 2)), x),
            UnsupportedModelError,
            "lazy",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_wrong_arguments(call, error, code):
    with refused(error, code):
        call(Functional(), torch.randn(4, 8))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.full((4, 8), float("nan")), r"32 of 32"),
        (torch.full((4, 8), float("nan")).to(torch.float8_e4m3fn), r"32 of 32"),
        ({"x": torch.full((4, 8), float("nan"))}, r"\['x'\]"),
    ],
)
def test_inputs_that_are_not_numbers(inputs, words):
    with refused(ArgumentError, "nan", match=words):
        measure(Functional(), inputs)


def test_an_output_of_a_kind_without_entropy_is_skipped():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    model[1].forward = lambda x: x.to(torch.float8_e4m3fn)
    model[2].forward = lambda x: x.float()
    flow = measure(model, torch.randn(4, 8), where="*")
    assert [layer.name for layer in flow] == ["0", "2"]
    assert "1" in flow.skipped


def test_activations_beyond_the_squares_of_float32_are_finite():
    model = nn.Sequential(*[m for _ in range(30) for m in (nn.Linear(100, 100), nn.ReLU())], nn.Linear(100, 4))
    for layer in model[::2]:
        nn.init.normal_(layer.weight)
    x, y = torch.randn(64, 100), torch.randint(4, (64,))
    flow = measure(model, x, y, nn.functional.cross_entropy)
    with torch.no_grad():
        last = model[:-1](x).double().numpy()
    assert last.max() > 1e20
    assert flow[-1].entropy == pytest.approx(numpy_neuron_entropy(last).mean(), rel=1e-6)
    assert flow[-1].std == pytest.approx(np.sqrt(last.var(axis=0).mean()), rel=1e-6)
    assert all(np.isfinite([layer.entropy, layer.mean, layer.std, layer.gradient]).all() for layer in flow)
