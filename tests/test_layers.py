import re

import pytest
import torch
from torch import nn

import trainability as tr
from models_for_tests import Functional, Reused, Untraceable, mlp


class MyLinear(nn.Linear):
    pass


def nested() -> nn.Module:
    model = nn.Module()
    model.blocks = nn.ModuleList([mlp(1), mlp(1)])
    model.head = MyLinear(4, 2)
    return model


@pytest.mark.parametrize(
    ("where", "paths"),
    [
        ("blocks.*.1", ("blocks.0.1", "blocks.1.1")),
        ("head", ("head",)),
        (re.compile(r"blocks\.1\.\d"), ("blocks.1.0", "blocks.1.1", "blocks.1.2")),
        (nn.ReLU, ("blocks.0.1", "blocks.1.1")),
        (nn.Linear, ("blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2", "head")),
        (lambda name, module: name.endswith("2"), ("blocks.0.2", "blocks.1.2")),
        (["head", nn.ReLU, re.compile("blocks.0.0")], ("blocks.0.0", "blocks.0.1", "blocks.1.1", "head")),
    ],
)
def test_every_kind_of_where(where, paths):
    assert tr.select(nested(), where).paths == paths


def test_a_glob_must_match_the_whole_path():
    with pytest.raises(ValueError, match=r"where='hea' matched no layer of Module; its paths are like head"):
        tr.select(nested(), "hea")


@pytest.mark.parametrize("where", [re.compile("x"), nn.Conv2d, lambda n, m: False, ["x", nn.Conv2d], []])
def test_nothing_matched_is_an_error(where):
    with pytest.raises(ValueError, match="matched no layer"):
        tr.select(nested(), where)


def test_wrong_kind_of_where():
    with pytest.raises(TypeError, match="a glob, a compiled regex"):
        tr.select(nested(), 3)


def test_default_is_every_hidden_nonlinearity():
    selection = tr.select(mlp(3))
    assert selection.paths == ("1", "3", "5")
    assert "a weight layer" in selection.skipped["0"]


def test_default_leaves_out_a_nonlinearity_that_is_the_output():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4), nn.Sigmoid())
    for inputs in (None, torch.randn(2, 8)):
        selection = tr.select(model, inputs=inputs)
        assert selection.paths == ("1",)
        assert "output of the model" in selection.skipped["3"]


class FunctionalOutput(Functional):
    def forward(self, x):
        return torch.sigmoid(super().forward(x))


@pytest.mark.parametrize("inputs", [None, torch.randn(4, 8)])
def test_default_leaves_out_a_function_that_makes_the_output(inputs):
    selection = tr.select(FunctionalOutput(), inputs=inputs)
    assert selection.paths == ("first", "second")
    assert selection.skipped["out"] == "the sigmoid after it is the output of the model"


@pytest.mark.parametrize("inputs", [None, torch.randn(4, 8)])
def test_functional_activations_are_tapped_at_their_weight_layer_and_said_so(inputs):
    selection = tr.select(Functional(), inputs=inputs)
    assert selection.paths == ("first", "second")
    assert "before relu, which is called as a function" in str(selection)
    assert "before tanh" in str(selection)


def test_untraceable_model_without_inputs_says_what_it_does_not_know():
    selection = tr.select(Untraceable())
    assert selection.paths == ("first", "second")
    assert "cannot be traced" in str(selection)
    assert "called as a function" in str(tr.select(Untraceable(), inputs=torch.randn(4, 8)))


def test_shared_modules_count_once():
    model = nn.Module()
    model.a = nn.ReLU()
    model.b = model.a
    selection = tr.select(model, nn.ReLU)
    assert selection.paths == ("a",)
    assert selection.skipped == {"b": "the same module as a"}
    assert tr.select(Reused()).paths == ("relu",)


def test_a_linear_model_has_no_hidden_layer():
    with pytest.raises(ValueError, match="say which layers are meant with where="):
        tr.select(nn.Linear(3, 3))


class Block(nn.Module):
    """The usual residual block: functional ReLUs after a normalisation and after the addition."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, padding=1), nn.BatchNorm2d(o)
        self.short = nn.Sequential(nn.Conv2d(i, o, 1), nn.BatchNorm2d(o))

    def forward(self, x):
        h = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(h)) + self.short(x))


def test_functional_activations_are_read_where_their_value_is():
    model = nn.Sequential(Block(3, 4), Block(4, 4), nn.Flatten(), nn.Linear(64, 2))
    selection = tr.select(model, inputs=torch.randn(2, 3, 4, 4))
    assert selection.paths == ("0", "0.bn1", "1", "1.bn1")
    assert "returns the result of relu" in selection.notes["0"]
    assert "before relu" in selection.notes["0.bn1"]


def test_what_tracing_did_not_look_into_is_said():
    inner = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1, enable_nested_tensor=False)
    model = nn.Sequential(inner, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    assert "Not looked into: 0; pass inputs=" in str(tr.select(model))
    assert "0.layers.0.linear1" in tr.select(model, inputs=torch.randn(2, 3, 8)).paths


def test_modules_that_do_not_run_are_left_out():
    model = Functional()
    model.spare = nn.ReLU()
    assert tr.select(model, inputs=torch.randn(2, 8)).skipped["spare"] == "it did not run"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_is_refused():
    with pytest.raises(tr.UnsupportedModelError, match="a ScriptModule takes no hooks"):
        tr.select(torch.jit.script(mlp(1)))
