"""Every setting of a recipe with its default and what it means, read off the schema for help and completion."""

import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from inspect import cleandoc
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from trainability.data import registry as data_sets
from trainability.experiments.recipe import Recipe
from trainability.models import registry as models
from trainability.remedies import registry as remedies
from trainability.tasks import registry as tasks

_REGISTRIES = {
    "data.name": data_sets.names,
    "model": models.names,
    "task": tasks.names,
    "remedies": remedies.names,
    "compare.remedies": remedies.names,
}


@dataclass(frozen=True)
class Setting:
    """One setting: its dotted name, default, meaning, and the words to choose from, if it takes some only."""

    name: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    takes_list: bool = False

    @property
    def group(self) -> str:
        """The section that it belongs to."""
        return self.name.rpartition(".")[0] or "run"

    def shown_default(self) -> str:
        """The default as it is written in a recipe; nothing where there is none."""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return "" if self.default in (None, (), {}, "") else str(self.default)


def settings() -> Iterator[Setting]:
    """Yield all of them, section by section.

    >>> next(setting for setting in settings() if setting.name == "model.depth").default
    30
    """
    yield from _of_section(Recipe, "")
    for name in models.names():
        kind = models.architecture(name)
        meanings = meanings_of(kind)
        for setting, field in kind.settings().items():
            help_text = f"of {name}: {meanings.get(setting, '')}"
            yield Setting(f"model.{setting}", field.default, help_text, _words(field.type))
    for name in remedies.names():
        found = remedies.entry(name)
        meanings = meanings_of(found.kind)
        for setting, default in found.settings.items():
            yield Setting(f"remedies.{name}.{setting}", default, meanings.get(setting, ""))
    for name in tasks.names():
        scored = tasks.kind(name)
        meanings = meanings_of(scored)
        for setting, field in scored.settings().items():
            default = None if field.default is MISSING else field.default
            help_text = f"of {name}: {meanings.get(setting, '')}"
            mapping = get_origin(field.type) is dict
            yield Setting(f"task.{setting}", default, help_text, _words(field.type), mapping)


def _of_section(kind: type[BaseModel], path: str) -> Iterator[Setting]:
    meanings = meanings_of(kind)
    for name, field in kind.model_fields.items():
        section = next((a for a in (field.annotation, *get_args(field.annotation)) if _is_section(a)), None)
        if section is not None:
            yield from _of_section(section, f"{path}{name}.")
            continue
        registry = _REGISTRIES.get(path + name)
        choices = registry() if registry else _words(field.annotation)
        default = field.get_default(call_default_factory=True)
        if isinstance(default, tuple):
            default = ", ".join(getattr(value, "name", str(value)) for value in default)
        default = getattr(default, "name", default)
        shown = f"{path}{name}" + (".name" if path + name in ("model", "task") else "")
        yield Setting(shown, default, meanings.get(name, ""), choices, _takes_list(field.annotation))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _takes_list(annotation: Any) -> bool:
    return get_origin(annotation) in (tuple, list, dict)


def _words(annotation: Any) -> tuple[str, ...]:
    if annotation is bool:
        return ("true", "false")
    return tuple(map(str, get_args(annotation))) if get_origin(annotation) is Literal else ()


def meanings_of(kind: type) -> dict[str, str]:
    """The meanings of settings that the docstrings of a class and of its bases give under ``Args:``.

    >>> from trainability.experiments.settings import OptimizerSettings
    >>> meanings_of(OptimizerSettings)["lr"]
    'learning rate'
    """
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        name = ""
        for line in cleandoc(base.__doc__ or "").partition("Args:\n")[2].splitlines():
            if not line.startswith("    "):
                break
            if begins := re.match(r" {4}(\w+): (.*)", line):
                name = begins[1]
                found[name] = begins[2]
            elif name:
                found[name] += " " + line.strip()
    return {name: text.replace("``", "").removesuffix(".") for name, text in found.items()}
