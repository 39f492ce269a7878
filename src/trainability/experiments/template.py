"""A recipe to begin with: every setting at its default, with its meaning and its choices as comments."""

import io
import textwrap
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from trainability._lazy import Configured
from trainability.experiments.reading import Command, read_recipe
from trainability.experiments.recipe import Recipe
from trainability.experiments.reference import Setting, settings
from trainability.models import registry as models
from trainability.tasks import registry as tasks

_COLUMN = 26  # of the comments
_WIDTH = 110  # of lines that are comments alone
_SWEPT = {"sweep.parameters.optimizer.lr": [0.001, 0.003]}  # a sweep has to vary something


def template(command: Command) -> str:
    """A commented recipe for a command, as YAML.

    >>> print(template("train").splitlines()[2])
      name: digits            # digits, mnist, fashion-mnist, cifar10, cifar100; folder, ...
    """
    recipe = read_recipe(None, _SWEPT if command == "sweep" else {}, command)
    content = _content(recipe, command)
    usual = ("", recipe.model.name, recipe.task.name)
    known = {setting.name: setting for setting in settings() if setting.of in usual}
    commented = _commented(content, known)
    commented.yaml_set_start_comment(
        f"trainability {command} my.yaml: every setting at its default; delete what you do not change.\n"
    )
    _note(commented, "model", "; ".join(_takes(name, models.architecture(name)) for name in models.names()))
    _note(commented, "task", "; ".join(_takes(name, tasks.kind(name)) for name in tasks.names()))
    remedies = f"to choose from: {', '.join(known['remedies'].choices)}"
    if command == "compare":
        _note(commented["compare"], "remedies", remedies, indent=2)
    else:
        _note(commented, "remedies", remedies)
    return _dumped(commented)


def _content(recipe: Recipe, command: Command) -> dict[str, Any]:
    """The plain values, without the parts of other commands; that of the command itself first."""
    content = {name: value for name, value in recipe.resolved().items() if name not in ("compare", "sweep")}
    if command == "train":
        return content
    part = recipe.resolved()[command]
    if recipe.compare is not None:
        content.pop("remedies")
        part["remedies"] = [combination.name for combination in recipe.compare.remedies]
    return {command: part, **content}


def _commented(content: Mapping[str, Any], known: Mapping[str, Setting], section: str = "") -> CommentedMap:
    made = CommentedMap()
    for key, value in content.items():
        name = f"{section}{key}"
        setting = known.get(name) or known.get(f"{name}.name")
        if isinstance(value, dict) and name not in known:
            made[key] = _commented(value, known, f"{name}.")
            continue
        made[key] = _in_one_line(value)
        if setting is not None:
            made.yaml_add_eol_comment(setting.described(), key, column=_COLUMN)
    return made


def _in_one_line(value: Any) -> Any:
    if isinstance(value, dict):
        value = CommentedMap({key: _in_one_line(inner) for key, inner in value.items()})
    elif isinstance(value, list):
        value = CommentedSeq(map(_in_one_line, value))
    else:
        return value
    value.fa.set_flow_style()
    return value


def _takes(name: str, kind: type[Configured]) -> str:
    return f"{name} takes {', '.join(kind.settings()) or 'no settings'}"


def _note(place: CommentedMap, key: str, text: str, indent: int = 0) -> None:
    """Write comment lines above a key."""
    place.yaml_set_comment_before_after_key(
        key, before="\n".join(textwrap.wrap(text, _WIDTH, break_on_hyphens=False)), indent=indent
    )


def _dumped(content: CommentedMap) -> str:
    yaml = YAML()
    yaml.width = 10**4
    yaml.representer.add_representer(
        type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()
