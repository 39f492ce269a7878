"""Settings that are refused say which one, why, and what was probably meant."""

import difflib
import reprlib
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trainability.errors import ConfigError, TrainabilityError
from trainability.training.addresses import MASK

Settings = TypeVar("Settings", bound=BaseModel)
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 80, 80


def validated(kind: type[Settings], settings: dict[str, Any]) -> Settings:
    """Make settings of a kind, or raise ConfigError with one sentence that names the first that is wrong."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        first = _first(error)
        raise ConfigError(_sentence(kind, first), code=_code(first)) from None
    except UnicodeEncodeError:
        raise ConfigError("a setting holds half of a pair of characters; write it anew", code="setting-type") from None


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
    before, address, _ = _SHORT.repr(value).partition("://")
    return f"{before}://{MASK}'" if address else before


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
