"""The remedies that `compare` and recipes know by name."""

import pytest
from torch import nn
from trainability.experiments.compare import _built, _combination, compare
from trainability.experiments.config import CompareConfig, configure
from trainability.experiments.train import build_model

from trainability.data import load
from trainability.errors import ConfigError
from trainability.experiments.recipe import Recipe
from trainability.experiments.validation import validated
from trainability.nn.ic import ICLayer
from trainability.nn.shortcut import Add, ScaledAdd
from trainability.remedies import IC, TAT, Init, LBELoss, Normalize, Residual, combine, names
from trainability.remedies.normalization.plan import WeightNorm


def test_parts_are_joined_in_the_order_in_which_they_can_be_applied():
    joined = combine("layernorm+he+rezero+lbe")
    assert joined.parts == (Residual("rezero"), Init("he"), Normalize("layer"), LBELoss())
    assert joined.applied("fnn") == joined.parts[:3]
    assert joined.loss == LBELoss()
    assert joined.baseline == "layernorm+he+rezero"
    assert combine("default").baseline is None
    assert combine("tat").baseline == "default"
    assert combine("relu-ic-conv").baseline == "batchnorm"
    assert combine("he+relu-ic-conv").baseline == "he+batchnorm"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("tat+he", "settings-conflict"),
        ("selu+dks", "settings-conflict"),
        ("fixup+he", "settings-conflict"),
        ("batchnorm+layernorm", "settings-conflict"),
        ("ic+batchnorm", "settings-conflict"),
        ("rezero+residual", "settings-conflict"),
        ("tat+batchnorm", "settings-conflict"),
        ("ic+dks", "settings-conflict"),
        ("skipinit+tat", "settings-conflict"),
        ("fixup+weightnorm", "settings-conflict"),
        ("fixup+residual", "settings-conflict"),
        ("selu+fixup", "settings-conflict"),
        ("tat+relu-ic-conv", "settings-conflict"),
        ("lbe+lbe", "settings-conflict"),
        ("ic+", "empty"),
        ("default+ic", "settings-conflict"),
        ("tat+lb", "unknown-choice"),
        ("", "unknown-choice"),
    ],
)
def test_what_makes_no_sense_is_refused(name, code):
    with pytest.raises(ConfigError) as caught:
        configure({"remedies": [name]})
    assert caught.value.code == code


@pytest.mark.parametrize("model", ["fnn", "cnn"])
@pytest.mark.parametrize("name", [name for name in names() if "conv" not in name and name not in ("lbe", "lsuv")])
def test_every_part_can_be_had_of_plain_networks(name, model):
    config = CompareConfig(model=model, depth=(20,), width=16, eta=0.5, strides=2 if model == "cnn" else 0)
    data = load("digits")
    built = _built(20, _combination(name, config), config, data)
    outputs = built(data.inputs(data.train.images[:8]))
    assert outputs.shape == (8, 10)
    assert bool(outputs.isfinite().all())
    kinds = {
        "ic": ICLayer,
        "layernorm": nn.LayerNorm if model == "fnn" else nn.GroupNorm,
        "weightnorm": WeightNorm,
        "selu": nn.SELU,
        "residual": Add,
    }
    if name in kinds:
        assert any(isinstance(m, kinds[name]) for m in built.modules())


@pytest.mark.parametrize("name", ["layernorm+tat", "weightnorm+tat", "residual+dks", "residual+he+groupnorm"])
def test_compositions_that_make_sense(name):
    config = CompareConfig(depth=(20,), width=16, eta=0.5, remedies=(name,))
    data = load("digits")
    model = _built(20, _combination(name, config), config, data)
    assert model(data.inputs(data.train.images[:8])).std() > 1e-4


def test_a_comparison_of_residual_units_is_one_command():
    config = CompareConfig(
        model="resnet", depth=(8,), width=4, epochs=1, seeds=2, remedies=("batchnorm", "relu-ic-conv", "conv-relu-ic")
    )
    one = compare(config, load("digits"))
    assert all(history.status == "done" for history in one.histories)
    history = next(r for r in one.histories if r.remedy == "relu-ic-conv")
    assert [point.step for point in history.independence] == [0, history.steps]
    assert {effect.keep for effect in history.dropout.effects} == {0.5, 0.8, 0.95}
    assert next(r for r in one.histories if r.remedy == "batchnorm").dropout is None


@pytest.mark.parametrize(
    ("remedy", "kind"),
    [
        ({"name": "ic", "keep": 0.8}, ICLayer),
        ("layernorm", nn.LayerNorm),
        ("selu", nn.SELU),
        ("weightnorm", WeightNorm),
        ("rezero", nn.Linear),
    ],
)
def test_recipes_take_them_by_name(remedy, kind):
    recipe = validated(Recipe, {"remedy": remedy, "model": {"depth": 3, "width": 16}})
    model = build_model(recipe, load("digits"), 0)
    found = [m for m in model.modules() if isinstance(m, kind)]
    assert found
    if kind is ICLayer:
        assert found[0].dropout.p == pytest.approx(0.2)


def test_recipes_refuse_what_does_not_go_together():
    for settings, code in (
        ({"remedy": {"name": "ic", "eta": 0.5}}, "does-not-apply"),
        ({"remedy": {"name": "tat", "keep": 0.5}}, "does-not-apply"),
        ({"remedy": "selu", "init": "he"}, "settings-conflict"),
        ({"remedy": "tat", "model": {"batchnorm": True}}, "settings-conflict"),
        ({"remedy": {"name": "ic", "keep": 0}}, "out-of-range"),
        ({"model": {"unit": "relu-ic-conv"}}, "does-not-apply"),
        ({"model": {"batchnorm": True}, "remedy": "ic"}, "settings-conflict"),
        ({"model": {"residual": True}, "remedy": "rezero"}, "settings-conflict"),
        ({"data": {"per_class": 5}}, "does-not-apply"),
        ({"remedy": "layernom"}, "unknown-choice"),
    ):
        with pytest.raises(ConfigError) as caught:
            validated(Recipe, settings)
        assert caught.value.code == code
    unit = {"name": "resnet", "depth": 8, "width": 4, "unit": "ic-conv-relu"}
    recipe = validated(Recipe, {"model": {**unit, "keep": 0.9}, "lbe": {}})
    assert any(isinstance(m, ICLayer) for m in build_model(recipe, load("digits"), 0).modules())


@pytest.mark.parametrize("name", ["rezero", "skipinit", "fixup", "fixup+batchnorm", "relu-ic-conv+rezero"])
def test_scales_of_a_residual_network_are_options_of_it(name):
    data = load("digits")
    config = CompareConfig(model="resnet", depth=(11,), convolutions=3, width=4, remedies=(name,))
    model = _built(11, _combination(name, config), config, data)
    assert any(isinstance(m, ScaledAdd) for m in model.modules())
    recipe = validated(Recipe, {"model": {"name": "resnet", "depth": 8, "width": 4, "scale": "rezero"}})
    assert any(isinstance(m, ScaledAdd) for m in build_model(recipe, data, 0).modules())
    with pytest.raises(ConfigError) as caught:
        validated(Recipe, {"model": {"name": "resnet", "depth": 8, "scale": "rezero", "residual": False}})
    assert caught.value.code == "settings-conflict"


def test_the_keep_probability_of_a_comparison_reaches_its_layers():
    config = CompareConfig(depth=(4,), width=16, keep=0.7)
    model = _built(4, _combination("ic", config), config, load("digits"))
    assert {round(m.dropout.p, 9) for m in model.modules() if isinstance(m, ICLayer)} == {0.3}
    assert combine("ic").parts == (IC(),)
    assert combine("tat").parts == (TAT(),)
