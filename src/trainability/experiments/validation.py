"""Settings that are refused say which one, why, and what was probably meant."""

import difflib
import re
import reprlib
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trainability.errors import ConfigError, TrainabilityError
from trainability.training.addresses import MASK

Settings = TypeVar("Settings", bound=BaseModel)
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3


def validated(kind: type[Settings], settings: dict[str, Any]) -> Settings:
    """Make settings of a kind, or raise ConfigError with one sentence that names the first that is wrong."""
    try:
        return kind.model_validate(settings)
    except UnicodeEncodeError:  # of a text that no file or terminal can show
        raise ConfigError("a setting holds half of a pair of characters", code="setting-type") from None
    except ValidationError as error:
        first = _first(error)
        raise ConfigError(_sentence(kind, first), code=_code(first)) from None


def _first(error: ValidationError) -> ErrorDetails:
    """An unknown key comes first: what it misspells may be what another message misses."""
    return min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")


def _code(first: ErrorDetails) -> str:
    """The code of an error that was raised within, or of the parser's own kinds."""
    own = first.get("ctx", {}).get("error")
    if isinstance(own, TrainabilityError):
        return own.code
    kinds = {"extra_forbidden": "unknown-setting", "missing": "missing-setting", "literal_error": "unknown-choice"}
    if first["type"].startswith(("greater_than", "less_than", "too_short", "finite_number")):
        return "out-of-range"
    return kinds.get(first["type"], "setting-type")


def _shown(value: Any) -> str:
    """A refused value, shortened; what may be an address of a database is cut, since it may hold a password."""
    before, address, _ = (value if isinstance(value, str) else _SHORT.repr(value)).partition("://")
    return f"{before}://{MASK}" if address else before


def _sentence(kind: type[BaseModel], first: ErrorDetails) -> str:
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
        own = ", ".join(_keys(kind, where)[:4])
        return f"{name}: {_shown(first['input'])} cannot be; it has settings of its own: {own}, …"
    return f"{name} {message.removeprefix('Input ').partition(', unable')[0]} (it is {_shown(first['input'])})"


def _keys(kind: type[BaseModel], path: list[str]) -> list[str]:
    """The settings that exist at a path."""
    for part in path:
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            return []
        kind = inner[0]
    return list(kind.model_fields)


_MOST_BYTES = 10**7  # a device or a pipe may have no end


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as everybody means it, and not a text, and what cannot be made has a place."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Make what a node stands for; whatever the constructors raise becomes YAML's own error, with its line."""
        try:
            made = super().construct_object(node, deep)
            if isinstance(made, str):
                made.encode()  # no system takes half of a character pair, or a zero
                if "\0" in made:
                    raise yaml.constructor.ConstructorError(None, None, "a zero character", node.start_mark)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None
        return made


_Loader.yaml_implicit_resolvers = {key: list(kinds) for key, kinds in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = set()
    for at, _ in node.value:
        key = loader.construct_object(at, deep=True)
        if key in keys:
            raise yaml.constructor.ConstructorError(None, None, f"{key} is there twice", at.start_mark)
        keys.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_yaml(text: str) -> Any:
    """Read YAML without running code from it; all that can be wrong with it is a YAMLError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def read_yaml(file: Path, what: str) -> dict[str, Any]:
    """Read a mapping from a YAML file, or raise ConfigError."""
    try:
        with file.open("rb") as opened:
            raw = opened.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise ConfigError(f"the {what} {file} is larger than {_MOST_BYTES // 10**6} MB", code="file-too-large")
        content = load_yaml(raw.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"the {what} {file} cannot be read: {error.strerror}", code="file-unreadable") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        twice = getattr(error, "problem", None) or ""
        why = f": {twice}" if twice.endswith("is there twice") else ""
        raise ConfigError(f"the {what} {file} is not valid YAML{place}{why}", code="yaml") from None
    if not isinstance(content, dict):
        raise ConfigError(f"the {what} {file} must be a mapping of settings", code="setting-type")
    return {str(key): value for key, value in content.items()}
