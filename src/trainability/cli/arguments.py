"""Options, help and completion of the commands, derived from the schema of recipes."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from trainability.experiments.reference import Setting, settings
from trainability.remedies import registry as remedies

# Settings that are typed most, and their flags.
_FLAGS = {
    "data": "data.name",
    "data-dir": "data.dir",
    "model": "model.name",
    "depth": "model.depth",
    "width": "model.width",
    "lr": "optimizer.lr",
    "epochs": "epochs",
    "seeds": "seeds",
    "remedies": "remedies",
    "device": "engine.device",
}


@cache
def known_settings() -> dict[str, Setting]:
    """All settings by name; of those that several models have, the one of the default model."""
    found: dict[str, Setting] = {}
    for setting in settings():  # the default model's come before those of others
        found.setdefault(setting.name, setting)
    return found


class _Words(click.ParamType[str]):
    """A recipe's file, or a setting as name=value."""

    name = "words"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete names of settings, and the words that one may have."""
        name, equals, begun = incomplete.partition("=")
        if not equals:
            names = [CompletionItem(f"{s}=", help=v.help) for s, v in known_settings().items() if s.startswith(name)]
            return [*names, CompletionItem(incomplete, type="file")]
        setting = known_settings().get(name)
        choices = setting.choices if setting else ()
        return [CompletionItem(f"{name}={choice}") for choice in choices if choice.startswith(begun)]


class _Value(click.ParamType[str]):
    """The value of one setting, as text."""

    name = "value"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the last of several words."""
        before, comma, begun = incomplete.rpartition(",")
        return [CompletionItem(f"{before}{comma}{c}") for c in self.setting.choices if c.startswith(begun)]


class _Place(click.Path):
    """A file or folder, at which only those look that use it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Make it a path, whatever the system may say of such a name."""
        return Path(value)


def _once(_: click.Context, param: click.Parameter, values: tuple[Any, ...]) -> Any:
    """The value of an option that may be given once: the callback of one with ``multiple``."""
    if len(values) > 1:
        raise click.UsageError(f"{param.opts[0]} is given twice")
    return values[0] if values else None


def once_option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """An option that is refused when it is given twice, instead of forgetting the first value."""
    return click.option(*names, multiple=True, callback=_once, **settings)


class ExperimentCommand(click.Command):
    """A command that takes a recipe and settings; its help shows them in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, the remedies, and then every setting of the schema by section."""
        typed = {f"--{flag}" for flag in _FLAGS}
        records = [
            (bool(typed & set(param.opts)), record)
            for param in self.get_params(ctx)
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx))
        ]
        for title, is_setting in (("Settings with a flag", True), ("Options", False)):
            with formatter.section(title):
                formatter.write_dl([record for which, record in records if which is is_setting])
        with formatter.section("Remedies, of which several can be joined, as in tat+lbe"):
            formatter.write_dl([(name, remedies.entry(name).title) for name in remedies.names()])
        formatter.write_paragraph()
        formatter.write_text("Every setting with its default, as it is typed as a word of its own:")
        groups: dict[str, list[Setting]] = {}
        for setting in settings():
            groups.setdefault(setting.group, []).append(setting)
        for group, own in groups.items():
            with formatter.section(group):
                formatter.write_dl([(f"{s.name}={s.shown_default()}", s.described() or "-") for s in own], col_max=34)


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what all commands take: a recipe and settings, flags of some settings, and where results go."""
    known = dict(known_settings())
    if command.__name__ == "compare":
        known["remedies"] = replace(known["compare.remedies"], name="remedies")
    resuming = "Go on with what the folder holds" + ("." if command.__name__ == "sweep" else "; also to more epochs.")
    decorators = [
        click.argument("words", nargs=-1, type=_Words(), metavar="[RECIPE.yaml] [name=value]..."),
        *(_flag(flag, known[name]) for flag, name in _FLAGS.items()),
        once_option("--config", type=_Place(), help="The recipe's file, another way to give RECIPE.yaml."),
        once_option("--out", type=_Place(), help="Folder of results; by default runs/ and the recipe's name."),
        click.option("--resume", is_flag=True, help=resuming),
        click.option("--overwrite", is_flag=True, help="Delete the results that the folder holds, and begin anew."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object to standard output, nothing else."),
        click.option("--print-config", is_flag=True, help="Print the whole recipe as YAML, and train nothing."),
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def _flag(flag: str, setting: Setting) -> Callable[[Any], Any]:
    default = setting.shown_default()
    named = " (names: below)" if setting.choices == remedies.names() else ""
    text = f"{setting.described()}{named}" + (f" [{default}]" if default else "")
    return once_option(f"--{flag}", setting.name.replace(".", "__"), type=_Value(setting), metavar="VALUE", help=text)
