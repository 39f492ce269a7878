"""Every setting of a recipe with its default and what it means, read off the schema for help and completion."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass
from inspect import cleandoc
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

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

# Sections that name something with settings of its own: the names, and how one is found.
_NAMED = {"model": (models.names, models.architecture), "task": (tasks.names, tasks.kind)}

_FEW = 10  # words that are listed beside a meaning


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: with dots, as in ``model.depth``.
        default: a plain value; None where there is none.
        help: its meaning.
        choices: the words to choose from, if it takes some only.
        takes_list: true where one value of it is a list or a mapping.
        of: the architecture or task that it belongs to, if there are others without it.
    """

    name: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    takes_list: bool = False
    of: str = ""

    @property
    def group(self) -> str:
        """The section that it belongs to."""
        if self.of:
            section = self.name.partition(".")[0]
            return f"{section}, where {section}.name={self.of}"
        return self.name.rpartition(".")[0] or "run"

    def described(self) -> str:
        """The meaning, and those words to choose from that it leaves out; the many names of remedies are listed apart.

        >>> next(setting for setting in settings() if setting.name == "engine.strategy").described()
        'over several processes: ddp; or fsdp, which shares out the weights of one network (auto, ddp, fsdp)'
        """
        named = set(re.findall(r"[\w-]+", self.help))
        if set(self.choices) <= {*named, "true", "false"} or len(self.choices) > _FEW:
            return self.help
        return f"{self.help} ({', '.join(self.choices)})"

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
    for name in remedies.names():
        found = remedies.entry(name)
        meanings = meanings_of(found.kind)
        for setting, default in found.settings.items():
            yield Setting(f"remedies.{name}.{setting}", default, meanings.get(setting, ""))


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
            default = ",".join(getattr(value, "name", str(value)) for value in default)
        default = None if default is PydanticUndefined else getattr(default, "name", default)
        named = _NAMED.get(path + name)
        shown = f"{path}{name}" + (".name" if named else "")
        yield Setting(shown, default, meanings.get(name, ""), choices, _takes_list(field.annotation))
        if named:
            yield from _of_each(name, str(default), *named)


def _of_each(
    section: str, usual: str, names: Callable[[], Sequence[str]], find: Callable[[str], Any]
) -> Iterator[Setting]:
    """Yield the settings of everything that a section may name, the usual one's first."""
    for name in sorted(names(), key=lambda name: name != usual):
        kind = find(name)
        meanings = meanings_of(kind)
        for setting, field in kind.settings().items():
            default = None if field.default is MISSING else field.default
            lists = get_origin(field.type) is dict
            yield Setting(
                f"{section}.{setting}", default, meanings.get(setting, ""), _words(field.type), lists, of=name
            )


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
    return {name: re.sub(r"(?<!\.)\.$", "", text.replace("``", "")) for name, text in found.items()}
