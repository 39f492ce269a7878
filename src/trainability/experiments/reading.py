"""Reading a recipe from a file and from what was typed; lists go where a comparison has its place for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from trainability.errors import ConfigError
from trainability.experiments.recipe import Recipe, put
from trainability.experiments.reference import settings
from trainability.experiments.validation import validated
from trainability.training.yaml_files import load_yaml, read_yaml

Command = Literal["train", "compare", "sweep"]


def read_recipe(file: Path | None, changes: Mapping[str, Any], command: Command) -> Recipe:
    """Read a recipe, apply changes at dotted names, and make it one of a command.

    A comparison takes lists: a setting of one value that is given several is compared over them.

    Raises:
        ConfigError: it cannot be read, a setting is unknown or impossible, or another command runs it.

    >>> recipe = read_recipe(None, {"remedies": ["he", "tat"], "model.depth": [10, 30]}, "compare")
    >>> [(cell.recipe.remedies.name, cell.values) for cell in recipe.cells()][1:3]
    [('tat', {'model.depth': 10}), ('he', {'model.depth': 30})]
    """
    content = read_yaml(file, "the recipe") if file else {}
    if command == "compare":
        _compare(content, dict(changes))
    else:
        for name, value in changes.items():
            put(content, name, value)
    for section in ("compare", "sweep"):
        if content.get(section) is not None and section != command:
            raise ConfigError(
                f"the recipe describes a {'comparison' if section == 'compare' else section}; run it with trainability "
                f"{section}, or leave that part out with {section}=null",
                code=f"is-a-{section}",
            )
    if command == "sweep" and content.get("sweep") is None:
        raise ConfigError(
            "sweep: the recipe has no such part; add one, or run it with trainability train", code="not-a-sweep"
        )
    return validated(Recipe, content)


def _compare(content: dict[str, Any], changes: dict[str, Any]) -> None:
    """Give a recipe's content its part ``compare``."""
    remedies = changes.pop("remedies", None)
    own = {name: changes.pop(name) for name in list(changes) if name.startswith("remedies.")}
    for name, value in changes.items():
        put(content, name, value)
    section = content.get("compare") or {}
    if not isinstance(section, dict) or not isinstance(section.get("parameters") or {}, dict):
        raise ConfigError(
            "compare is a mapping with remedies, and with parameters: lists of values by name", code="setting-type"
        )
    parameters = {name: values for name, values in (section.get("parameters") or {}).items() if name not in changes}
    for name, value in own.items():
        parameters[name] = value if isinstance(value, list) else [value]
    lists = {setting.name for setting in settings() if setting.takes_list}
    for place in ("", "data", "model", "optimizer", "schedule", "engine"):
        holder = content.get(place) if place else content
        if not isinstance(holder, dict):
            continue
        for key, value in list(holder.items()):
            name = f"{place}.{key}".lstrip(".")
            if isinstance(value, list) and name not in lists and key not in ("remedies", "compare"):
                parameters[name] = value
                holder.pop(key)
    if remedies is not None:
        section["remedies"] = remedies
    elif "remedies" not in section and content.get("remedies"):
        section["remedies"] = ["default", content["remedies"]]
    content.pop("remedies", None)
    content["compare"] = {**section, "parameters": parameters}


def parse_setting(text: str) -> tuple[str, Any]:
    """A name and the value of ``name=value``, which is YAML, or several values with commas between them.

    Raises:
        ConfigError: there is no ``=``, or the value is not YAML.

    >>> parse_setting("optimizer.lr=1e-3,3e-3")
    ('optimizer.lr', [0.001, 0.003])
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not name.isprintable():
        raise ConfigError(f"{name}: write name=value, such as optimizer.lr=0.01", code="setting-syntax")
    several = "," in value and not value.lstrip().startswith(("[", "{", '"', "'"))
    return name.strip(), load_yaml(f"[{value}]" if several else value, name.strip())
