"""The request that a command was given, checked before anything heavy is loaded."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainability.cli.terminal import fail, is_first
from trainability.errors import ConfigError, DataError, FolderError
from trainability.experiments.reading import Command, parse_setting, read_recipe
from trainability.experiments.recipe import Recipe
from trainability.training.addresses import without_password
from trainability.training.places import Existing, check_place, held_recipe
from trainability.training.yaml_files import dump_yaml

CHANGES = "TRAINABILITY_CHANGES"  # to the recipe, for the processes that a command starts

# Settings of the workers of a sweep, which may change while a sweep goes on.
FREE = (
    "engine",
    "loggers",
    "checkpoint_every",
    "data.dir",
    "sweep.stack",
    "sweep.storage",
    "sweep.retries",
    "sweep.heartbeat",
)


@dataclass(frozen=True)
class Request:
    """A recipe and the folder of its results; the file and the changes to it, for other processes."""

    recipe: Recipe
    folder: Path
    existing: Existing
    as_json: bool
    file: Path | None
    changes: dict[str, Any]


def prepare(command: Command, given: dict[str, Any], *, own: bool = True) -> Request | None:
    """Read the recipe and look at the folder; None where the recipe was only to be shown.

    Args:
        command: whose recipe it is.
        given: what was typed.
        own: the changes are what was typed, and not what the process that started this one was given.
    """
    resume, overwrite = given.pop("resume"), given.pop("overwrite")
    out, as_json, print_config = given.pop("out"), given.pop("as_json"), given.pop("print_config")
    try:
        existing = _existing(resume, overwrite)
        file, changes = recipe_and_changes(given.pop("words"), given)
        if not own:
            changes = json.loads(os.environ.get(CHANGES, "{}"))
        recipe = read_recipe(file, changes, command)
        folder = out or Path("runs") / (file.stem if file else command)
        if print_config:
            print(dump_yaml(recipe.resolved()), end="")
            return None
        if own and is_first():
            check_place(folder, existing)
            if existing == "resume":
                free = FREE if command == "sweep" else ()
                held_recipe(folder, recipe.resolved(), free, recipe.fixed_length())
    except (ConfigError, DataError, FolderError) as error:
        fail(str(error))
    return Request(recipe, folder, existing, as_json, file, changes)


def recipe_and_changes(words: Iterable[str], flags: dict[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """The recipe's file and the changes to it, those of flags and of ``name=value`` together.

    Raises:
        ConfigError: two recipes, or a setting that is given twice.
    """
    file: Path | None = flags.pop("config", None)
    changes: dict[str, Any] = {}
    texts = [f"{name.replace('__', '.')}={value}" for name, value in flags.items() if value is not None]
    for word in [*texts, *words]:
        if "=" not in word:
            if "://" in word:
                raise ConfigError(
                    f"{without_password(word)} is an address; give a recipe's file, and settings as name=value",
                    code="setting-syntax",
                )
            if file is not None:
                raise ConfigError(f"{file} and {word}: give one recipe; settings are name=value", code="two-recipes")
            file = Path(word)
            continue
        name, value = parse_setting(word)
        if name in changes:
            raise ConfigError(f"{name} is given twice", code="duplicate")
        changes[name] = value
    return file, changes


def _existing(resume: bool, overwrite: bool) -> Existing:
    if resume and overwrite:
        raise ConfigError(
            "--resume and --overwrite: go on with what the folder holds, or take it away, but not both",
            code="settings-conflict",
        )
    return "resume" if resume else "overwrite" if overwrite else "refuse"


def environment_with(changes: Mapping[str, Any], **more: str) -> dict[str, str]:
    """The environment of a process that a command starts; a command line is there for all to see, and this is not."""
    return {**os.environ, CHANGES: json.dumps(changes), **more}
