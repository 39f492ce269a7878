"""Kinds of weight layer: what is known of torch's, and a kind of somebody else's that is registered."""

import math

import pytest
import torch
from torch import Tensor, nn

import trainability as tr
from refusals import code_of
from trainability.diagnosis.decay import predict_std
from trainability.errors import ArgumentError
from trainability.introspect.weight_layers import fan_in, is_weight_layer, matrices, mean_fan_in, weight_layout


class Mixing(nn.Module):
    """A dense layer that somebody wrote, with a weight (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / (3 * inputs) ** 0.5)
        self.bias = nn.Parameter(torch.ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Named(Mixing):
    """The same, and registered by its full name."""


class Wrong(Mixing):
    """The same, and registered with a layout that does not fit it."""


class Unknown(Mixing):
    """The same, and registered with something else than a layout."""


class Failing(Mixing):
    """The same, and registered with a function that fails."""


tr.register_weight_layer(Mixing)(lambda m: tr.WeightLayout(*m.weight.shape, axes="io"))
tr.register_weight_layer(f"{Named.__module__}.Named")(lambda m: tr.WeightLayout(*m.weight.shape, axes="io"))
tr.register_weight_layer(Wrong)(lambda m: tr.WeightLayout(*m.weight.shape))
tr.register_weight_layer(Unknown)(lambda m: "io")
tr.register_weight_layer(Failing)(lambda m: m.no_such_thing)


def network(kind: type[nn.Module] = Mixing, depth: int = 3, width: int = 200) -> nn.Sequential:
    return nn.Sequential(*[m for _ in range(depth) for m in (kind(width, width), nn.ReLU())], kind(width, 2))


@pytest.mark.parametrize(
    ("module", "inputs", "views"),
    [
        (nn.Linear(4, 6), 4, [(6, 4)]),
        (nn.Conv1d(4, 6, 3), 12, [(6, 4, 3)]),
        (nn.Conv2d(4, 6, (3, 5), groups=2), 30, [(3, 2, 3, 5)] * 2),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), None, [(3, 2, 3, 3)] * 2),
        (Mixing(4, 6), 4, [(6, 4)]),
        (nn.Bilinear(4, 4, 6), None, None),
    ],
)
def test_fan_in_and_matrices_are_those_of_the_output_that_one_input_reaches(module, inputs, views):
    found = matrices(module)
    assert fan_in(module) == inputs
    assert (None if found is None else [tuple(view.shape) for view in found]) == views


def test_the_mean_fan_in_of_a_transposed_convolution_is_the_number_of_taps_that_meet_in_an_output():
    layer = nn.ConvTranspose2d(3, 5, 4, stride=2, bias=False)
    nn.init.ones_(layer.weight)
    reached = layer(torch.ones(1, 3, 16, 16))[0, 0, 4:-4, 4:-4]  # the edges are reached by fewer
    assert mean_fan_in(layer) == reached.mean().item() == 12


def test_matrices_are_views_of_the_weight():
    layer = nn.ConvTranspose1d(2, 3, 3)
    x = torch.zeros(1, 2, 5)
    x[0, 1, 2] = 1
    with torch.no_grad():
        layer.bias.zero_()
        layer.weight.zero_()
        matrices(layer)[0][2, 1] = torch.tensor([1.0, 2.0, 3.0])  # from channel 1 to channel 2
    assert layer(x)[0, :, 2:5].tolist() == [[0, 0, 0], [0, 0, 0], [1, 2, 3]]


@pytest.mark.parametrize("kind", [Mixing, Named])
def test_a_registered_kind_is_initialized(kind):
    torch.manual_seed(0)
    model = network(kind)
    tr.apply_(model, tr.Init("he"))
    assert model[2].weight.std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.02)
    assert not model[2].bias.any()
    tr.apply_(model, tr.Init("orthogonal"))
    last = model[-1].weight.detach()  # two outputs: orthogonal columns of length √2
    assert torch.allclose(last.T @ last, 2 * torch.eye(2), atol=1e-4)


def test_a_registered_kind_takes_part_in_the_diagnosis():
    torch.manual_seed(0)
    predicted = list(predict_std(network(), torch.randn(64, 200)).values())
    assert len(predicted) == 3
    assert predicted[1] / predicted[0] < 0.7  # the weights are of variance 1 / (3n), and too small


def test_a_registered_kind_gets_layers_of_its_features():
    model = nn.Sequential(Mixing(8, 12), nn.ReLU(), Mixing(12, 6), nn.ReLU(), Mixing(6, 2))
    tr.apply_(model, tr.IC(), inputs=torch.randn(16, 8))
    assert [model[i].ic.norm.num_features for i in (2, 4)] == [12, 6]
    model = nn.Sequential(Mixing(8, 12), nn.ReLU(), Mixing(12, 6), nn.ReLU(), Mixing(6, 2))
    tr.apply_(model, tr.Normalize("batch"), inputs=torch.randn(16, 8))
    assert [model[i].norm.num_features for i in (0, 2)] == [12, 6]
    model = nn.Sequential(Mixing(8, 12), nn.ReLU(), Mixing(12, 2))
    tr.apply_(model, tr.Normalize("weight"))
    assert model[0].parametrizations.weight.original0.shape == (1, 12)  # one length per neuron


def test_a_subclass_is_found_by_its_base():
    class Derived(nn.Linear):
        pass

    assert weight_layout(Derived(3, 4)) == tr.WeightLayout(3, 4)


def test_what_has_children_is_a_weight_layer_where_its_kind_is_known():
    model = network(depth=1)
    model[0].add_module("child", nn.Identity())
    assert is_weight_layer(model[0])
    assert not is_weight_layer(model)


def test_a_layout_that_does_not_fit_is_refused():
    assert code_of(lambda: tr.apply_(network(Wrong), tr.Init("he")), ArgumentError) == "weight-layout"
    assert code_of(lambda: tr.apply_(network(Failing), tr.Init("he")), ArgumentError) == "weight-layout"
    assert code_of(lambda: tr.apply_(network(Unknown), tr.Init("he")), TypeError) == "wrong-type"
    assert code_of(lambda: tr.register_weight_layer(3), TypeError) == "wrong-type"
