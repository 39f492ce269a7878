"""The registry: names, serial form, and which remedies go together."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass, fields
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import trainability as tr
from refusals import code_of, refused
from trainability.errors import ArgumentError, ArgumentTypeError
from trainability.models.fnn import FNN
from trainability.remedies import (
    Change,
    ICUnit,
    LBELoss,
    Plan,
    Remedy,
    combine,
    entry,
    from_dict,
    make,
    names,
    register,
    registry,
)
from trainability.remedies.initialization import Init

# Written by hand: what only one remedy of a network can set, and what does not go together though it sets other things.
WEIGHTS = {"delta-orthogonal", "dks", "eoc", "he", "lecun", "lsuv", "orthogonal", "pytorch", "selu", "suo", "tat"}
SHORTCUTS = {"residual", "rezero", "skipinit", "fixup"}
UNITS = {"relu-ic-conv", "ic-conv-relu", "conv-relu-ic"}
NORMS = {"batchnorm", "layernorm", "groupnorm", "weightnorm", "ic"} | UNITS
EVERY = {"default", "lbe"} | WEIGHTS | SHORTCUTS | NORMS
SHAPING = {"dks", "tat", "eoc"}


def goes_together(one: str, other: str) -> bool:
    if one == other or "default" in (one, other):
        return False
    if any({one, other} <= group for group in (WEIGHTS | {"fixup"}, SHORTCUTS, NORMS)):
        return False
    if {one, other} == {"fixup", "weightnorm"}:
        return False
    undone = {"batchnorm", "ic", "rezero", "skipinit"} | UNITS
    return not any(a in SHAPING and b in undone for a, b in ((one, other), (other, one)))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[m for _ in range(20) for m in (nn.Linear(16, 16), nn.ReLU())], nn.Linear(16, 2))


def test_every_remedy_has_a_name():
    assert set(names()) == EVERY
    assert names()[0] == "default"
    assert names()[-1] == "lbe"


@pytest.mark.parametrize("name", sorted(EVERY))
def test_serial_form_goes_around(name):
    remedy = make(name)
    content = remedy.to_dict()
    assert content["name"] == name
    assert content["version"] == 1
    assert from_dict(json.loads(json.dumps(content, allow_nan=False))) == remedy
    assert {**entry(name).preset, **entry(name).settings} == {f.name: getattr(remedy, f.name) for f in fields(remedy)}
    assert combine(combine(name).to_list()) == combine(name)
    with pytest.raises((FrozenInstanceError, AttributeError)):
        remedy.something = 1


@pytest.mark.parametrize(
    "remedy",
    [
        tr.TAT(eta=0.8, shortcut=0.5, init=None, batchnorm="remove"),
        tr.DKS(zeta=2.0),
        tr.IC(keep=0.8, dropout="channel", batchnorm="keep"),
        tr.Normalize("group", 4),
        tr.Residual("skipinit", layers=2),
        tr.Init("orthogonal", "tanh"),
        tr.Init("default"),
        tr.SELU(init=None),
        ICUnit("conv-relu-ic", keep=0.7),
        LBELoss(alpha=1.0, beta=0.1, alpha_min=0.0, convention="published-code", neurons="channel"),
    ],
    ids=repr,
)
def test_settings_go_around(remedy):
    assert from_dict(json.loads(json.dumps(remedy.to_dict(), allow_nan=False))) == remedy
    assert combine(remedy).parts == (remedy,)


@pytest.mark.parametrize("one", sorted(EVERY))
def test_every_pair_goes_together_or_says_why_not(one):
    for other in sorted(EVERY):
        both = f"{one}+{other}"
        if not goes_together(one, other):
            with refused(ArgumentError, "settings-conflict", match=re.escape(both)):
                combine(both)
            continue
        found = combine(both)
        assert set(found.parts) == {make(one), make(other)}, both
        assert found.parts == combine(f"{other}+{one}").parts or entry(one).order == entry(other).order
        assert found.baseline == (f"{one}+batchnorm" if other in UNITS else one)


def test_order_of_application_is_that_of_the_entries_and_not_of_the_names():
    for parts in ("layernorm+he+rezero+lbe", "lbe+layernorm+rezero+he"):
        joined = combine(parts)
        assert joined.name == parts
        assert joined.parts == (tr.Residual("rezero"), tr.Init("he"), tr.Normalize("layer"), LBELoss())
        assert joined.loss == LBELoss()
        assert joined.applied("fnn") == joined.parts[:3]
    mixed = combine(["TAT ", {"name": "layernorm"}, LBELoss(beta=0.1)])
    assert (mixed.name, mixed.loss) == ("tat+layernorm+lbe", LBELoss(beta=0.1))
    assert combine([]) == combine("default")


def test_what_a_network_of_the_package_builds_in_is_not_applied():
    cells = {
        ("batchnorm", "fnn"): {"batchnorm": True},
        ("batchnorm", "cnn"): {"batchnorm": True},
        ("batchnorm", "resnet"): {"batchnorm": True},
        ("rezero", "resnet"): {"residual": True, "scale": "rezero"},
        ("ic-conv-relu", "resnet"): {"unit": "ic-conv-relu", "keep": 0.95},
        **{key: {} for key in product(("layernorm", "ic", "tat", "he", "default", "lbe"), ("fnn", "resnet", "own"))},
        **{key: {} for key in product(("batchnorm", "residual"), ("own",))},
        ("rezero", "fnn"): {},
    }
    for (name, model), options in cells.items():
        one = combine(name)
        assert one.options(model) == options, (name, model)
        assert one.applied(model) == (() if options or name in ("default", "lbe") else one.parts), (name, model)
    assert code_of(lambda: combine("ic-conv-relu").options("fnn")) == "does-not-apply"
    assert code_of(lambda: combine("ic-conv-relu").applied("fnn")) == "does-not-apply"


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda: make("tta"), "unknown-choice"),
        (lambda: combine("tat+lb"), "unknown-choice"),
        (lambda: combine(""), "unknown-choice"),
        (lambda: combine("ic+"), "empty"),
        (lambda: entry(3), "unknown-choice"),
        (lambda: make("tat", ete=0.5), "unknown-setting"),
        (lambda: make("he", scheme="lecun"), "unknown-setting"),
        (lambda: make("layernorm", groups=2), "unknown-setting"),
        (lambda: make("ic", keep=0.0), "out-of-range"),
        (lambda: make("tat", eta=1), "eta"),
        (lambda: make("orthogonal", nonlinearity="rleu"), "unknown-activation"),
        (lambda: make("lbe", beta=-1), "out-of-range"),
        (lambda: make("lbe", alpha=float("nan")), "out-of-range"),
        (lambda: make("lbe", convention="own"), "unknown-choice"),
        (lambda: from_dict({"eta": 0.5}), "missing-setting"),
        (lambda: from_dict({"name": "tat", "version": 2}), "version"),
        (lambda: register("tat", title="another")(Halved), "name-taken"),
        (lambda: register("Two Words", title=""), "remedy-name"),
    ],
)
def test_what_cannot_be_is_refused(call, code):
    assert code_of(call) == code


def test_a_wrong_name_or_setting_suggests_the_right_one():
    with refused(ArgumentError, "unknown-choice", match="did you mean 'tat'"):
        make("tta")
    with refused(ArgumentError, "unknown-setting", match="did you mean 'eta'"):
        make("tat", ete=0.5)


@pytest.mark.parametrize("given", [3, 2.5, None, [3]])
def test_what_is_no_remedy_is_refused(given):
    assert code_of(lambda: combine(given if isinstance(given, list) else [given]), TypeError) == "wrong-type"
    assert code_of(lambda: combine(given), TypeError) == "wrong-type"
    assert code_of(lambda: from_dict(given), TypeError) == "wrong-type"


def test_what_belongs_to_the_loss_or_to_a_model_of_the_package_is_not_applied():
    model = plain()
    for remedy in (LBELoss(), tr.LBE, tr.LBE(model)):
        assert code_of(partial(tr.apply_, model, remedy), TypeError) == "remedy-of-the-loss"
    assert code_of(lambda: tr.apply_(model, ICUnit())) == "does-not-apply"
    assert code_of(lambda: tr.apply_(model, make("default"))) == "nothing-to-change"
    lbe = LBELoss(alpha=1.0, beta=0.1, neurons="channel").module(model)
    assert (lbe.beta, lbe.neurons, lbe.alpha[0].item()) == (0.1, "channel", 1.0)


@pytest.mark.parametrize("name", sorted(EVERY - UNITS - {"default", "lbe"}))
def test_a_report_is_json(name):
    report = tr.apply_(plain(), make(name), inputs=torch.randn(8, 16, generator=torch.Generator().manual_seed(1)))
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert from_dict(content["remedy"]) == report.remedy
    assert [change["path"] for change in content["changes"]] == [change.path for change in report.changes]
    assert content["applied"]
    assert (content["check"] is not None) == (name in SHAPING)
    if name in SHAPING:
        measured = [layer["measured_q"] for layer in content["check"]["layers"]]
        assert measured == [layer.measured_q for layer in report.check.layers]


@dataclass(frozen=True)
class Halved(Remedy):
    """Halve every weight matrix."""

    times: int = 1

    def plan(self, model, where, inputs):
        def halve(module):
            module.weight.mul_(0.5**self.times)

        found = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear)}
        changes = [(Change(path, "w", "w / 2", "halved"), partial(halve, m)) for path, m in found.items()]
        return Plan(changes, {}, notes=("it is made up",))


@pytest.fixture
def halved() -> Iterator[type[Halved]]:
    """A remedy of a user's own, registered for one test."""
    before = names()
    register("halved", title="weights halved", sets="weights", order=1, conflicts={"groupnorm": "it is made up"})(
        Halved
    )
    yield Halved
    del registry._entries["halved"]
    assert names() == before


@pytest.mark.usefixtures("halved")
def test_a_remedy_of_ones_own_is_one_of_them():
    assert "halved" in names()
    assert combine("halved+lbe").parts == (Halved(), LBELoss())
    assert combine([Halved(times=2), "rezero"]).applied("resnet") == (Halved(times=2),)
    assert from_dict({"name": "halved", "times": 3}) == Halved(3)
    assert combine("lbe+halved").baseline == "lbe"
    for other in ("he", "fixup", "groupnorm"):
        assert code_of(partial(combine, f"{other}+halved")) == "settings-conflict"
    with refused(ArgumentError, "unknown-choice", match="halved"):
        combine("nothing of the kind")
    model, untouched = plain(), plain()
    report = tr.apply_(model, make("halved"))
    assert torch.equal(model[0].weight, untouched[0].weight / 2)
    assert report.to_dict()["remedy"] == {"name": "halved", "version": 1, "times": 1}
    assert report.to_dict()["notes"] == ["it is made up"]
    assert "it is made up" in str(report)


def test_a_remedy_without_a_name_works_and_has_no_serial_form():
    report = tr.apply_(plain(), Halved())
    with refused(ArgumentTypeError, "not-registered"):
        report.to_dict()


def test_names_settings_and_refusals_load_no_torch():
    code = """
import sys
from trainability.remedies import combine, entry, from_dict, make, names
for name in names():
    assert from_dict(make(name).to_dict()) == make(name), name
    combine(name)
try:
    combine("tat+he")
except ValueError as error:
    assert error.code == "settings-conflict"
for call in (lambda: make("ic", keep="a"), lambda: make("tat", eta=2), lambda: make("residual", layers="a")):
    try:
        call()
    except (ValueError, TypeError):
        continue
    raise AssertionError
assert not {"torch", "pydantic"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["ic+he", "he+ic", "layernorm+lbe+orthogonal", "lbe+tat"])
def test_a_combination_is_written_in_the_order_in_which_it_was_given(name):
    again = combine(combine(name).to_list())
    assert (again.name, again.baseline, again.parts) == (name, combine(name).baseline, combine(name).parts)


@pytest.mark.parametrize("word", [np.ones((4, 6)), ["relu"], 3, "rulu"])
def test_a_nonlinearity_that_is_none_is_refused(word):
    for make_one in (Init, FNN):
        assert code_of(lambda make_one=make_one: make_one(nonlinearity=word))
