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
    with pytest.raises(tr.TrainabilityError, match="head") as caught:
        tr.select(nested(), "hea")
    assert caught.value.code == "where-matches-nothing"


@pytest.mark.parametrize("where", [re.compile("x"), nn.Conv2d, lambda n, m: False, ["x", nn.Conv2d], []])
def test_nothing_matched_is_an_error(where):
    with pytest.raises(tr.TrainabilityError) as caught:
        tr.select(nested(), where)
    assert caught.value.code == "where-matches-nothing"


@pytest.mark.parametrize("where", [3, b"x", re.compile(b"x"), [3.0]])
def test_wrong_kind_of_where(where):
    with pytest.raises(TypeError) as caught:
        tr.select(nested(), where)
    assert caught.value.code == "wrong-type"


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
    assert selection.paths == ("input of second", "input of out")
    assert selection.skipped["out"] == "the sigmoid after it is the output of the model"


@pytest.mark.parametrize("inputs", [None, torch.randn(4, 8)])
def test_functional_activations_are_read_at_the_module_that_is_given_them(inputs):
    selection = tr.select(Functional(), inputs=inputs)
    assert selection.paths == ("input of second", "input of out")
    assert "input of second  (the result of relu)" in str(selection)
    assert "input of out  (the result of tanh)" in str(selection)


def test_untraceable_model_without_inputs_says_what_it_needs():
    with pytest.raises(tr.TrainabilityError) as caught:
        tr.select(Untraceable())
    assert caught.value.code == "inputs-needed"
    assert tr.select(Untraceable(), inputs=torch.randn(4, 8)).paths == ("input of second", "input of out")


def test_shared_modules_count_once():
    model = nn.Module()
    model.a = nn.ReLU()
    model.b = model.a
    selection = tr.select(model, nn.ReLU)
    assert selection.paths == ("a",)
    assert selection.skipped == {"b": "the same module as a"}
    assert tr.select(Reused()).paths == ("relu",)


def test_a_linear_model_has_no_hidden_layer():
    for inputs in (None, torch.randn(2, 3)):
        with pytest.raises(tr.TrainabilityError) as caught:
            tr.select(nn.Linear(3, 3), inputs=inputs)
        assert caught.value.code == "no-hidden-nonlinearity"
        assert ("pass inputs=" in str(caught.value)) is (inputs is None)


class Block(nn.Module):
    """The usual residual block: functional ReLUs after a normalization and after the addition."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, padding=1), nn.BatchNorm2d(o)
        self.short = nn.Sequential(nn.Conv2d(i, o, 1), nn.BatchNorm2d(o))

    def forward(self, x):
        h = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(h)) + self.short(x))


@pytest.mark.parametrize("inputs", [None, torch.randn(2, 3, 4, 4)])
def test_functional_activations_are_read_where_their_value_is(inputs):
    model = nn.Sequential(Block(3, 4), Block(4, 4), nn.Flatten(), nn.Linear(64, 2))
    selection = tr.select(model, inputs=inputs)
    assert selection.paths == ("0", "input of 0.conv2", "1", "input of 1.conv2")
    assert selection.notes["0"] == "the result of relu, which it returns"
    assert selection.notes["input of 0.conv2"] == "the result of relu"


def test_what_tracing_does_not_look_into_needs_inputs():
    inner = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1, enable_nested_tensor=False)
    model = nn.Sequential(inner, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(tr.TrainabilityError) as caught:
        tr.select(model)
    assert caught.value.code == "inputs-needed"
    assert "relu in 0.layers.0" in str(caught.value)
    assert tr.select(model, inputs=torch.randn(2, 3, 8)).paths == ("input of 0.layers.0.dropout", "2")


def test_modules_that_do_not_run_are_left_out():
    model = Functional()
    model.spare = nn.ReLU()
    assert tr.select(model, inputs=torch.randn(2, 8)).skipped["spare"] == "it did not run"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_is_refused():
    with pytest.raises(tr.UnsupportedModelError):
        tr.select(torch.jit.script(mlp(1)))
