"""Settings that are refused say which one, why, and what was probably meant."""

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from trainability.errors import ConfigError

Settings = TypeVar("Settings", bound=BaseModel)


def validated(kind: type[Settings], settings: dict[str, Any]) -> Settings:
    """Make settings of a kind, or raise ConfigError with one sentence that names the first that is wrong."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(_sentence(kind, error)) from None


def _sentence(kind: type[BaseModel], error: ValidationError) -> str:
    # An unknown key comes first: what it misspells may be what another message misses.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    where = [part for part in first["loc"] if isinstance(part, str) and not part.startswith("function-")]
    name = ".".join(where) or "settings"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where[-1], _keys(kind, where[:-1]), n=1)
        return f"{name} is not a setting" + (f"; did you mean {'.'.join([*where[:-1], near[0]])}?" if near else "")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{name}: {message}" if where else message
    if first["type"] == "missing":
        return f"{name} is missing"
    if first["type"] == "model_type":
        return f"{name}: {first['input']} cannot be; it has settings of its own: {', '.join(_keys(kind, where)[:4])}, …"
    return f"{name} {message.removeprefix('Input ').partition(', unable')[0]} (it is {first['input']})"


def _keys(kind: type[BaseModel], path: list[str]) -> list[str]:
    """The settings that exist at a path."""
    for part in path:
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            return []
        kind = inner[0]
    return list(kind.model_fields)


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as everybody means it, and not a text."""


_Loader.yaml_implicit_resolvers = {key: list(kinds) for key, kinds in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for number, key in enumerate(keys):
        if key in keys[:number]:
            raise yaml.constructor.ConstructorError(
                None, None, f"{key} is there twice", node.value[number][0].start_mark
            )
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_yaml(text: str) -> Any:
    """Read YAML without running code from it."""
    return yaml.load(text, Loader=_Loader)


def read_yaml(file: Path, what: str) -> dict[str, Any]:
    """Read a mapping from a YAML file, or raise ConfigError."""
    try:
        content = load_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the {what} {file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        twice = getattr(error, "problem", None) or ""
        why = f": {twice}" if twice.endswith("is there twice") else ""
        raise ConfigError(f"the {what} {file} is not valid YAML{place}{why}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"the {what} {file} must be a mapping of settings")
    return {str(key): value for key, value in content.items()}
