"""Recipes: what cannot be is refused with a code, and what a comparison or a sweep makes of one."""

from pathlib import Path

import pytest

from recipes_for_tests import recipe
from refusals import code_of, refused
from trainability.errors import ConfigError
from trainability.experiments.recipe import Recipe, put
from trainability.experiments.template import template
from trainability.experiments.validation import validated
from trainability.remedies import IC, LBELoss, combine
from trainability.training.yaml_files import dump_yaml, load_yaml

RESIDUAL = {"name": "resnet", "depth": 8}
FSDP = {"strategy": "fsdp", "devices": 2}
GRID = {"parameters": {"optimizer.lr": [0.1, 0.01]}}


def tpe(**parameters: object) -> dict[str, object]:
    return {"method": "tpe", "trials": 2, "parameters": {name.replace("__", "."): v for name, v in parameters.items()}}


@pytest.mark.parametrize(
    ("changes", "code", "names"),
    [
        ({"modle": {}}, "unknown-setting", "model"),
        ({"model": {"dept": 3}}, "unknown-setting", "model.depth"),
        ({"model": {"strides": 1}}, "does-not-apply", "cnn"),
        ({"model": {"unit": "relu-ic-conv"}}, "does-not-apply", "resnet"),
        ({"model": {"nonlinearity": "rellu"}}, "unknown-choice", "rellu"),
        ({"model": {"depth": 0}}, "out-of-range", "depth"),
        ({"model": {"width": []}}, "setting-type", "width"),
        ({"model": {"name": "resnet", "depth": 9}}, "depth", "9"),
        ({"model": {"name": "resnet", "depth": 26, "convolutions": 3}}, "depth", "26"),
        ({"model": {**RESIDUAL, "scale": "rezero", "residual": False}}, "settings-conflict", "rezero"),
        ({"model": "fn"}, "unknown-choice", "fnn"),
        ({"model": 3}, "setting-type", "model"),
        ({"data": "cifar"}, "setting-type", "data"),
        ({"data": {"name": "cifar"}}, "unknown-choice", "cifar10"),
        ({"data": {"name": "mnist"}}, "missing-setting", "data.dir"),
        ({"data": {"hub": True}}, "does-not-apply", "data.hub"),
        ({"data": {"per_class": 5}}, "does-not-apply", "data.per_class"),
        ({"data": {"held_out": 0}, "schedule": {"kind": "plateau"}}, "needs-validation", "held_out"),
        ({"task": {"name": "clasification"}}, "unknown-choice", "classification"),
        ({"optimizer": {"name": "adm"}}, "unknown-choice", "did you mean adam"),
        ({"optimizer": {"name": "lbfgs"}}, "optimizer-unfit", "lbfgs"),
        ({"optimizer": {"name": "scalableshampoo"}}, "optimizer-unfit", "optimizer"),
        ({"optimizer": {"name": "adahessian"}}, "optimizer-unfit", "optimizer"),
        ({"optimizer": {"name": "\ud800"}}, "setting-type", "character"),
        ({"optimizer": {"options": {"betaz": 1}}}, "unknown-setting", "betas"),
        ({"optimizer": {"options": {"betas": [0.9]}}}, "optimizer-options", "Adam"),
        ({"optimizer": {"options": {"lr": 1}}}, "duplicate", "lr"),
        ({"optimizer": {"lr": float("nan")}}, "out-of-range", "optimizer.lr"),
        ({"epochs": 0}, "out-of-range", "epochs"),
        ({"epochs": "x"}, "setting-type", "epochs"),
        ({"batch_size": 1}, "out-of-range", "batch_size"),
        ({"schedule": {"kind": "step"}}, "settings-conflict", "milestones"),
        ({"schedule": {"kind": "step", "milestones": [9]}}, "out-of-range", "schedule.milestones"),
        ({"schedule": {"kind": "cosine", "warmup": 6}}, "out-of-range", "schedule.warmup"),
        ({"schedule": {"warmup": 1}}, "does-not-apply", "cosine"),
        ({"engine": {"tf32": True}}, "needs-cuda", "tf32"),
        ({"engine": {"precision": "16-mixed"}}, "unknown-choice", "engine.precision"),
        ({"engine": {"devices": 3}}, "batch-not-shareable", "batch_size"),
        ({"engine": {"devices": 128}}, "batch-not-shareable", "batch_size"),
        ({"engine": {"members": "streams"}}, "needs-cuda", "members"),
        ({"engine": {"cuda_graph": "on"}}, "needs-cuda", "cuda_graph"),
        ({"engine": {"device": "cpu:1"}}, "device", "cpu:1"),
        ({"engine": {"device": "cuda:1", "devices": 2}}, "settings-conflict", "cuda:1"),
        ({"engine": {"strategy": "fsdp"}}, "settings-conflict", "devices"),
        ({"engine": FSDP, "seeds": 2}, "settings-conflict", "seeds"),
        ({"engine": FSDP, "seeds": 1, "remedies": "rezero"}, "settings-conflict", "ddp"),
        ({"engine": FSDP, "seeds": 1, "optimizer": {"name": "soap"}}, "settings-conflict", "adam, adamw, sgd"),
        ({"seeds": [1, 1]}, "duplicate", "seeds"),
        ({"seeds": [2**64]}, "out-of-range", "seeds"),
        ({"seeds": 0}, "out-of-range", "seeds"),
        ({"seeds": []}, "setting-type", "seeds"),
        ({"seeds": "0-3"}, "setting-type", "seeds"),
        ({"loggers": ["paper"]}, "unknown-choice", "loggers"),
        ({"remedies": "lba"}, "unknown-choice", "lbe"),
        ({"remedies": "tat+he"}, "settings-conflict", "tat"),
        ({"remedies": ["tat", "he"]}, "settings-conflict", "tat"),
        ({"remedies": {"name": "dks", "eta": 0.5}}, "unknown-setting", "zeta"),
        ({"remedies": [{"name": "tat", "keep": 0.5}]}, "unknown-setting", "keep"),
        ({"remedies": [{"name": "ic", "keep": 0}]}, "out-of-range", "keep"),
        ({"remedies": [{"name": "lbe", "beta": -1}]}, "out-of-range", "beta"),
        ({"remedies": [{"eta": 0.5}]}, "missing-setting", "name"),
        ({"remedies": True}, "wrong-type", "remedies"),
        ({"remedies": [[]]}, "wrong-type", "remedies"),
        ({"remedies": "tat", "model": {"batchnorm": True}}, "settings-conflict", "batchnorm"),
        ({"remedies": "ic", "model": {"batchnorm": True}}, "settings-conflict", "ic"),
        ({"remedies": "rezero", "model": {"residual": True}}, "settings-conflict", "rezero"),
        ({"remedies": "relu-ic-conv", "model": {"name": "cnn"}}, "does-not-apply", "relu-ic-conv"),
        ({"remedies": "residual", "model": {"name": "resnet", "depth": 8}}, "nothing-to-change", "residual"),
        ({"compare": {"remedies": ["he", "he"]}}, "duplicate", "he"),
        ({"compare": {"remedies": []}}, "out-of-range", "compare.remedies"),
        ({"compare": {"remedies": ["lba"]}}, "unknown-choice", "lbe"),
        ({"compare": {"remedeis": ["he"]}}, "unknown-setting", "compare.remedies"),
        ({"compare": {"parameters": {"model.depth": []}}}, "out-of-range", "model.depth"),
        ({"compare": {"parameters": {"model.dept": [3]}}}, "unknown-setting", "model.depth"),
        ({"compare": {"parameters": {"model.depth": [3, 0]}}}, "out-of-range", "model.depth = 0"),
        ({"compare": {"parameters": {"model.depth": [3, 3]}}}, "duplicate", "model.depth"),
        ({"compare": {"parameters": {"seeds": [1, 2]}}}, "cannot-vary", "seeds"),
        ({"compare": {}, "sweep": GRID}, "settings-conflict", "compare"),
        ({"compare": {"remedies": ["he", "residual"]}, "model": RESIDUAL}, "nothing-to-change", "residual"),
        ({"sweep": {}}, "missing-setting", "sweep.parameters"),
        ({"sweep": {"parameters": {}}}, "out-of-range", "sweep.parameters"),
        ({"sweep": {"parameters": {"remedies.lbe.alpa": [1]}}}, "unknown-setting", "alpha"),
        ({"sweep": {"parameters": {"model.depth": [0]}}}, "out-of-range", "model.depth"),
        ({"sweep": {"parameters": {"optimizer.lr": {"low": 1, "high": 2}}}}, "needs-a-list", "optimizer.lr"),
        ({"sweep": {"method": "tpe", "parameters": {"optimizer.lr": [1]}}}, "missing-setting", "trials"),
        ({"sweep": {**GRID, "trials": 3}}, "does-not-apply", "trials"),
        ({"sweep": tpe(optimizer__lr={"low": 2, "high": 1})}, "out-of-range", "low"),
        ({"sweep": tpe(optimizer__lr={"low": 0, "high": 1, "log": True})}, "out-of-range", "low"),
        ({"sweep": tpe(model__depth={"low": 2, "high": 4})}, "needs-a-list", "model.depth"),
        ({"sweep": GRID, "engine": {"devices": 2}}, "does-not-apply", "--workers"),
        ({"sweep": GRID, "loggers": ["tensorboard"]}, "does-not-apply", "loggers"),
        ({"sweep": GRID, "data": {"held_out": 0}}, "needs-validation", "held_out"),
        ({"sweep": {"parameters": {"seeds": [1, 2]}}}, "cannot-vary", "seeds"),
        ({"sweep": {"parameters": {"data.name": ["digits", "mnist"]}}}, "cannot-vary", "data.name"),
        ({"sweep": {"parameters": {"optimizer.lr": [0.1, 0.1]}}}, "duplicate", "optimizer.lr"),
        (
            {"sweep": {"parameters": {f"remedies.lbe.{n}": list(range(99)) for n in ("alpha", "beta", "alpha_min")}}},
            "too-many-trials",
            "970299",
        ),
        (
            {"sweep": {"parameters": {"epochs": [2, 10], "schedule.warmup": [0.5, 5]}}, "schedule": {"kind": "cosine"}},
            "out-of-range",
            "epochs = 2, schedule.warmup = 5",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_its_name(changes, code, names):
    with pytest.raises(ConfigError) as caught:
        recipe(**changes)
    assert caught.value.code == code, caught.value
    assert names in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_nest_that_is_huge_when_written_out_is_not_written_out():
    nest: object = "x"
    for _ in range(40):
        nest = [nest] * 9
    with pytest.raises(ConfigError) as caught:
        validated(Recipe, {"model": {"depth": nest}, "epochs": nest})
    assert len(str(caught.value)) < 10**4


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"remedies": ["tat", {"name": "lbe", "beta": 0.1}], "model": {"name": "cnn", "depth": 20, "strides": 1}},
        {"model": {"name": "resnet", "depth": 8, "unit": "ic-conv-relu", "keep": 0.9}, "seeds": [3, 5]},
        {"compare": {"remedies": ["he", ["ic", {"name": "lbe", "alpha": 1.0}]], "parameters": {"model.depth": [2, 3]}}},
        {"sweep": tpe(optimizer__lr={"low": 0.01, "high": 1, "log": True}), "schedule": {"kind": "cosine"}},
    ],
)
def test_a_resolved_recipe_is_the_same_recipe(changes):
    made = recipe(**changes)
    again = validated(Recipe, load_yaml(dump_yaml(made.resolved()), "the recipe"))
    assert again == made
    assert again.digest() == made.digest()


def test_the_digest_is_of_the_experiment_and_not_of_where_it_runs():
    first = recipe()
    assert recipe(engine={"threads": 1}, loggers=["tensorboard"], checkpoint_every=3).digest() == first.digest()
    swept = recipe(sweep=GRID)
    assert recipe(sweep={**GRID, "stack": 2, "storage": "sqlite:///x.db"}).digest() == swept.digest()
    others = [recipe(epochs=3), recipe(remedies="he"), recipe(seeds=1), recipe(model={"depth": 3}), swept]
    assert len({other.digest() for other in [first, *others]}) == 6


def test_seeds_are_a_number_or_a_list():
    assert recipe(seeds=3).seeds == (0, 1, 2)
    assert recipe(seeds=[3]).seeds == (3,)
    assert (Recipe().seeds, Recipe().epochs) == ((0, 1, 2), 100)


def test_values_at_dotted_names_make_another_recipe():
    made = recipe(remedies="he+lbe", compare={"remedies": ["he"]})
    other = made.with_values({"remedies.lbe.beta": 0.1, "model.depth": 5, "optimizer.lr": 0.01})
    assert (other.remedies.loss, other.model.depth, other.optimizer.lr) == (LBELoss(beta=0.1), 5, 0.01)
    assert (other.compare, made.remedies.loss, made.model.depth) == (None, LBELoss(), 2)
    assert made.with_values({"remedies.ic.keep": 0.5}).remedies.parts[1] == IC(keep=0.5)
    assert made.with_values({"model.name": "cnn"}).model.name == "cnn"
    for name in ("nothing.here", "epochs.here", "model.dept", "remedies.tat", "remedies.tat.eta.more"):
        assert code_of(lambda name=name: made.with_values({name: 1})) in ("unknown-setting", "setting-type"), name
    assert code_of(lambda: made.with_values({"remedies.tat.eta": 0.5})) == "settings-conflict"
    assert code_of(lambda: put({}, "model.name", "fn")) == "unknown-choice"
    with refused(ConfigError, "unknown-choice"):
        put({}, "model.name", "fn")


def test_a_comparison_is_every_remedy_with_every_choice_of_its_parameters():
    compare = {
        "remedies": ["default", "tat+lbe", "ic"],
        "parameters": {"model.depth": [20, 30], "remedies.lbe.beta": [0.1, 0.2]},
    }
    cells = [(cell.recipe.remedies.name, tuple(cell.values.values())) for cell in recipe(compare=compare).cells()]
    every = {(name, (depth,)) for name in ("default", "ic") for depth in (20, 30)}
    assert set(cells) == every | {("tat+lbe", (depth, beta)) for depth in (20, 30) for beta in (0.1, 0.2)}
    assert len(cells) == len(set(cells))
    assert all(cell.recipe.compare is None for cell in recipe(compare=compare).cells())
    assert [cell.values for cell in recipe().cells()] == [{}]
    default = recipe(compare={})
    assert default.compare.remedies == tuple(map(combine, ("default", "he", "lbe")))


def test_every_recipe_in_the_documentation_is_one_and_the_first_is_what_the_command_prints():
    text = (Path(__file__).parents[2] / "docs/recipes.md").read_text()
    shown = [part.partition("```")[0] for part in text.split("```yaml\n")[1:]]
    for content in shown:
        validated(Recipe, load_yaml(content, "the recipe"))
    assert shown[0] == template("train")
