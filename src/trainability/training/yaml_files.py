"""YAML 1.2, read without running code from it and without a surprise: all that is wrong with it is one error."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.reader import ReaderError

from trainability.errors import ConfigError

_MOST_BYTES = 10**6  # a device or a pipe may have no end
_MOST_VALUES = 10**4  # an alias stands for all that it names
_DEEPEST = 50


class _Values(SafeConstructor):
    """Values, of which one that cannot be made is an error with its line, and not what Python says of it."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Make the value of a node."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            raise ConstructorError(None, None, "a value that cannot be read", node.start_mark) from None


class _TooMuch(YAMLError):
    """More nodes than are read, or deeper ones."""


class _Nodes(Composer):
    """Nodes, of which there are not too many, nor too deep ones; the rest of the text is not looked at."""

    _count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Make one more."""
        self._count += 1
        if self._count > _MOST_VALUES:
            raise _TooMuch(f"has more than {_MOST_VALUES} values")
        if self.depth > _DEEPEST:
            raise _TooMuch(f"is nested more than {_DEEPEST} deep")
        return super().compose_node(parent, index)


def load_yaml(text: str, what: str) -> Any:
    """Plain values from YAML.

    Raises:
        ConfigError: it is not valid, or too large or too deeply nested; the message names ``what`` and the line.

    >>> load_yaml("lr: 1e-3", "the recipe")
    {'lr': 0.001}
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer, yaml.Constructor = _Nodes, _Values
    try:
        with warnings.catch_warnings():  # of what version 1.1 thought of numbers
            warnings.simplefilter("ignore")
            content = yaml.load(text)
    except _TooMuch as error:
        raise ConfigError(f"{what} {error}", code="file-too-large") from None
    except YAMLError as error:
        raise ConfigError(f"{what} is not valid YAML{_why(error)}", code="yaml") from None
    except RecursionError:
        raise ConfigError(f"{what} is nested too deeply", code="file-too-large") from None
    _check(content, what)
    return content


def _why(error: YAMLError) -> str:
    """The line, and the reason where it can be said in a few words."""
    mark = getattr(error, "problem_mark", None)
    place = f" at line {mark.line + 1}" if mark else ""
    if isinstance(error, ReaderError):
        return f": it holds the character {chr(error.character)!r}"
    said = str(getattr(error, "problem", None) or "")
    if "duplicate key" in said:
        return f"{place}: {said.removeprefix('found ').partition(' with value')[0]}"
    return f"{place}: {said}" if said == "a value that cannot be read" else place


def _check(content: Any, what: str) -> None:
    """Refuse what expands beyond bounds, and characters that no file or terminal takes."""
    waiting, count = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > _MOST_VALUES:
            raise ConfigError(f"{what} has more than {_MOST_VALUES} values", code="file-too-large")
        if depth > _DEEPEST:
            raise ConfigError(f"{what} is nested more than {_DEEPEST} deep", code="file-too-large")
        if isinstance(value, dict):
            waiting += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple | set):
            waiting += [(part, depth + 1) for part in value]
        elif isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
            raise ConfigError(f"{what} holds a zero character or half of a pair of characters", code="yaml")


def read_yaml(file: Path, what: str) -> dict[str, Any]:
    """A mapping from a file.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        with file.open("rb") as opened:
            raw = opened.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # the latter of a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{what} {file} cannot be read: {reason}", code="file-unreadable") from None
    if len(raw) > _MOST_BYTES:
        raise ConfigError(f"{what} {file} is larger than {_MOST_BYTES // 10**6} MB", code="file-too-large")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{what} {file} is not UTF-8", code="yaml") from None
    content = load_yaml(text, f"{what} {file}")
    if not isinstance(content, dict):
        raise ConfigError(f"{what} {file} must be a mapping of settings, name: value", code="setting-type")
    return {str(key): value for key, value in content.items()}


def dump_yaml(content: Mapping[str, Any]) -> str:
    """YAML that `load_yaml` reads back to the same."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump(dict(content), stream)
    return stream.getvalue()
