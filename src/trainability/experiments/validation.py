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
        return f"{name} is not a setting" + _meant(kind, where)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{name}: {message}" if where and not message.startswith(f"{name}.") else message
    if first["type"] == "missing":
        return f"{name} is missing"
    given = "nothing is given" if first["input"] is None else f"it is {_shown(first['input'])}"
    if first["type"] in ("model_type", "model_attributes_type"):
        own = ", ".join(f"{name}.{key}" for key in _keys(kind, where)[:3])
        return f"{name} has settings of its own, such as {own}; it cannot be {_shown(first['input'])}"
    return f"{name} {_must(first, message)}, and {given}{_where_lists_go(first)}"


_MUST = {
    ("int_type", "int_parsing", "int_from_float", "int_parsing_size"): "must be a whole number",
    ("float_type", "float_parsing"): "must be a number",
    ("finite_number",): "must be a finite number",
    ("bool_type", "bool_parsing"): "must be true or false",
    ("string_type", "string_unicode"): "must be text",
    ("tuple_type", "list_type"): "must be a list, such as [a, b]",
    ("dict_type",): "must be a mapping, such as {a: 1}",
    ("path_type",): "must be a path",
    ("too_short",): "must hold something",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "greater_than": ("above", "gt"),
    "less_than": ("below", "lt"),
}


def _must(first: ErrorDetails, message: str) -> str:
    """The condition that a value has to meet."""
    sort, context = first["type"], first.get("ctx", {})
    if sort in _BOUNDS:
        words, bound = _BOUNDS[sort]
        return f"must be {words} {context[bound]}"
    if sort == "literal_error":
        return f"must be {str(context['expected']).replace(chr(39), '')}"
    return next((must for sorts, must in _MUST.items() if sort in sorts), message.removeprefix("Input "))


def _where_lists_go(first: ErrorDetails) -> str:
    several = isinstance(first["input"], list) and first["type"] not in ("too_short", "dict_type")
    return "; several values are compared by trainability compare" if several else ""


def _meant(kind: type[BaseModel], where: list[str]) -> str:
    """A question about the setting that was probably meant: beside it, or in another section."""
    if near := difflib.get_close_matches(where[-1], _keys(kind, where[:-1]), n=1):
        return f"; did you mean {'.'.join([*where[:-1], near[0]])}?"
    from trainability.experiments.reference import settings  # which reads the schema, whose values are checked here

    last = {setting.name: setting.name.rpartition(".")[2] for setting in settings()}
    elsewhere = [name for name, own in last.items() if own == where[-1]]
    near = difflib.get_close_matches(where[-1], last.values(), n=1)
    elsewhere = elsewhere or [name for name, own in last.items() if own in near]
    return f"; did you mean {' or '.join(dict.fromkeys(elsewhere))}?" if 0 < len(elsewhere) <= 4 else ""


def _keys(kind: type[BaseModel], path: list[str]) -> list[str]:
    """The settings that exist at a path."""
    for part in path:
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            return []
        kind = inner[0]
    return list(kind.model_fields)
