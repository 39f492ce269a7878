"""From a recipe to the networks and the stack that train it."""

import pytest
import torch
from torch import nn

from recipes_for_tests import recipe
from refusals import refused
from stacks import fabric
from trainability.data import load
from trainability.errors import ConfigError
from trainability.experiments.build import architecture_key, build_model, build_training, check_fits
from trainability.experiments.program import Program
from trainability.experiments.recipe import Recipe
from trainability.nn.ic import ICLayer
from trainability.nn.shortcut import Add, ScaledAdd
from trainability.remedies import names
from trainability.remedies.normalization.plan import WeightNorm
from trainability.stack import memory

PLAIN = [name for name in names() if "conv" not in name and name not in ("lbe", "lsuv")]
RESIDUAL = {"name": "resnet", "depth": 8, "width": 4}


@pytest.fixture(scope="module")
def data():
    return load("digits")


def of_remedies(remedies: object, **model: object) -> Recipe:
    model = {"depth": 20, "width": 16, **model}
    return recipe(remedies=remedies, model=model)


def built(made: Recipe, data: object) -> nn.Module:
    return build_model(made, Program(data), 0)[0]


@pytest.mark.parametrize("model", ["fnn", "cnn"])
@pytest.mark.parametrize("name", PLAIN)
def test_every_remedy_can_be_had_of_plain_networks(name, model, data):
    remedies = [{"name": "tat", "eta": 0.5}] if name == "tat" else name
    model = built(of_remedies(remedies, name=model, **({"strides": 2} if model == "cnn" else {})), data)
    outputs = model(data.inputs(data.train.inputs[:8]))
    assert outputs.shape == (8, 10)
    assert bool(outputs.isfinite().all())
    norm = nn.LayerNorm if isinstance(model[1], nn.Linear) else nn.GroupNorm
    kinds = {"ic": ICLayer, "layernorm": norm, "weightnorm": WeightNorm, "selu": nn.SELU, "residual": Add}
    if name in kinds:
        assert any(isinstance(m, kinds[name]) for m in model.modules())


@pytest.mark.parametrize(
    "remedies",
    [
        ["layernorm", {"name": "tat", "eta": 0.5}],
        ["weightnorm", {"name": "tat", "eta": 0.5}],
        "residual+dks",
        "residual+he+groupnorm",
    ],
)
def test_compositions_that_make_sense(remedies, data):
    assert built(of_remedies(remedies), data)(data.inputs(data.train.inputs[:8])).std() > 1e-4


@pytest.mark.parametrize(
    ("remedy", "kind"),
    [
        ({"name": "ic", "keep": 0.8}, ICLayer),
        ("layernorm", nn.LayerNorm),
        ("selu", nn.SELU),
        ("weightnorm", WeightNorm),
        ("rezero", ScaledAdd),
        ("batchnorm", nn.BatchNorm1d),
        ("residual", Add),
    ],
)
def test_a_recipe_takes_remedies_by_name_with_settings(remedy, kind, data):
    model, reports = build_model(of_remedies(remedy, depth=3), Program(data), 0)
    found = [m for m in model.modules() if isinstance(m, kind)]
    assert found
    if kind is ICLayer:
        assert {round(m.dropout.p, 9) for m in found} == {0.2}
    own = remedy if isinstance(remedy, str) else remedy["name"]
    options = own == "batchnorm"  # which the network of the package has built in
    assert [report.to_dict()["remedy"]["name"] for report in reports] == ([] if options else [own])


@pytest.mark.parametrize("name", ["rezero", "skipinit", "fixup", "fixup+batchnorm", "relu-ic-conv+rezero"])
def test_scales_of_a_residual_network_are_options_of_it(name, data):
    model = built(of_remedies(name, name="resnet", depth=11, convolutions=3, width=4), data)
    assert any(isinstance(m, ScaledAdd) for m in model.modules())
    itself = built(recipe(model={**RESIDUAL, "scale": "rezero"}), data)
    assert any(isinstance(m, ScaledAdd) for m in itself.modules())
    unit = built(recipe(model={**RESIDUAL, "unit": "ic-conv-relu", "keep": 0.9}, remedies="lbe"), data)
    assert {round(m.dropout.p, 9) for m in unit.modules() if isinstance(m, ICLayer)} == {0.1}


def test_a_seed_means_the_same_weights_and_others_differ(data):
    def weights(made: Recipe, seed: int) -> torch.Tensor:
        return build_model(made, Program(data), seed)[0].classifier.weight

    assert torch.equal(weights(recipe(), 3), weights(recipe(remedies="lbe"), 3))
    assert not torch.equal(weights(recipe(), 3), weights(recipe(), 4))
    assert built(recipe(engine={"precision": "64-true"}), data).classifier.weight.dtype == torch.float64


OTHERS = {
    "optimizer": {"name": "sgd"},
    "schedule": {"kind": "cosine"},
    "engine": {"precision": "64-true"},
    "data": {"augment": True},
    "probes": 2,
    "checkpoint_every": 3,
}


def test_what_differs_in_rates_and_strengths_alone_trains_as_one_stack(data):
    first = recipe(remedies="he+lbe")
    same = [
        first.with_values(v) for v in ({"optimizer.lr": 0.3}, {"remedies.lbe.beta": 0.9}, {"optimizer.weight_decay": 1})
    ]
    assert {architecture_key(made) for made in same} == {architecture_key(first)}
    names = ("model.depth", "remedies.lbe.convention", "remedies.tat.eta", "epochs", "batch_size")
    values = (3, "published-code", 0.5, 5, 64)
    others = [recipe(remedies="lbe").with_values({n: v}) for n, v in zip(names, values, strict=True)]
    others += [recipe(remedies="lbe", **{part: value}) for part, value in OTHERS.items()]
    others += [recipe(remedies="lbe"), recipe(remedies="he+lbe", seeds=3)]
    assert len({architecture_key(made) for made in [first, *others]}) == 1 + len(others)
    training, _ = build_training([first, *same], Program(data), fabric("32-true"))
    assert [(m.seed, m.lr, m.lbe.beta) for m in training.members][2:6] == [
        (0, 0.3, 0.2), (1, 0.3, 0.2), (0, 0.001, 0.9), (1, 0.001, 0.9)
    ]  # fmt: skip


def test_a_stack_that_does_not_fit_says_how_many_would(data, monkeypatch):
    needs = check_fits(recipe(), 2, Program(data), torch.device("cpu"))
    assert needs > 2 * sum(p.numel() for p in built(recipe(), data).parameters()) * 4
    monkeypatch.setattr("trainability.experiments.build.members_that_fit", lambda *_: 3)
    with refused(ConfigError, "memory", match="3 would fit"):
        check_fits(recipe(), 4, Program(data), torch.device("cpu"))
    assert memory.free_bytes(torch.device("cpu")) > 0


def test_data_are_as_the_recipe_wants_them():
    made = recipe(data={"held_out": 100, "pln": True})
    found = Program.of(made).data
    assert (len(found.val), found.shape[0]) == (100, 2)
