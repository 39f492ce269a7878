"""Choosing the activations that are read: one selection language, and an account of what matched and what did not.

``where`` is a glob that must match the whole path of a module (``*`` crosses dots), a compiled regex (``fullmatch``), a
type (subclasses too), a callable of name and module, a `Place`, or a list of these (a union). What a module returns is
read; a glob or regex that begins with ``input of `` reads what it is given. ``None`` is the default: every hidden
nonlinearity, be it a module or called as a function.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NoReturn

from torch import Tensor, nn

from trainability.errors import ArgumentError, ArgumentTypeError, UnsupportedModelError
from trainability.introspect.activation_calls import (
    ActivationCalls,
    find_activation_calls,
    is_activation_module,
    suspected_calls,
)
from trainability.introspect.activation_table import TABLE
from trainability.introspect.hooks import INPUT_OF, Place
from trainability.introspect.run import unwrap
from trainability.introspect.weight_layers import is_weight_layer

DID_NOT_RUN = "it did not run"

Predicate = Callable[[str, nn.Module], bool]
Where = str | re.Pattern[str] | type[nn.Module] | Predicate | Place | Sequence[Any]


@dataclass(frozen=True)
class Selection:
    """The activations chosen from a model, and why others were not.

    ``places`` say where they are read, in the order in which the modules are defined; ``paths`` are the names of these:
    ``fc1`` for what a module returns, ``input of fc2`` for what it is given, ``relu of fc1`` for a function of what it
    returns. ``notes`` maps some names to a remark, ``skipped`` maps candidates that were left out to the reason, and
    ``unread`` maps modules to why the result of a function that they call cannot be read. Printing it shows the whole
    account.
    """

    places: tuple[Place, ...]
    notes: dict[str, str]
    skipped: dict[str, str]
    unread: dict[str, str]
    remark: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """The names of the readings."""
        return tuple(place.name for place in self.places)

    @property
    def modules(self) -> tuple[str, ...]:
        """The paths of the modules whose outputs are read."""
        return tuple(place.path for place in self.places if not place.given and place.function is None)

    def check_complete(self) -> None:
        """Raise UnsupportedModelError where an activation cannot be read, since a term without it would be another."""
        if self.unread:
            path, reason = next(iter(self.unread.items()))
            more = f" (likewise in {', '.join(list(self.unread)[1:6])})" if len(self.unread) > 1 else ""
            raise UnsupportedModelError(
                path, f"{reason}, or choose what to read with where={more}", code="activation-unread"
            )

    def __str__(self) -> str:
        lines = [f"{len(self.paths)} {'layer' if len(self.paths) == 1 else 'layers'}"]
        lines += [f"  {path}" + (f"  ({self.notes[path]})" if path in self.notes else "") for path in self.paths]
        if self.skipped:
            lines.append(f"{len(self.skipped)} skipped")
            lines += [f"  {path}: {reason}" for path, reason in self.skipped.items()]
        if self.unread:
            lines.append(f"{len(self.unread)} cannot be read")
            lines += [f"  {path or 'the model'}: {reason}" for path, reason in self.unread.items()]
        return "\n".join([*lines, *([self.remark] if self.remark else [])])


def select(model: nn.Module, where: Where | None = None, *, inputs: Any = None) -> Selection:
    """Choose which activations of a model are read.

    Args:
        model: any module; it is not changed.
        where: see the module's own text. ``None`` chooses the default.
        inputs: an example batch, used only by the default. With it the model is run once, unobserved, to find
            activations called as functions; without it they are looked for by symbolic tracing.

    Raises:
        ValueError: nothing matched; or the default needs ``inputs``, as the model calls activations as functions
            and cannot be traced.
        TypeError: ``where`` is none of the accepted kinds.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> select(model).paths
    ('1', '3')
    >>> print(select(model, nn.Linear))
    3 layers
      0
      2
      4
    >>> select(model, "input of *").paths
    ('input of 0', 'input of 1', 'input of 2', 'input of 3', 'input of 4')
    """
    model = unwrap(model)
    if where is None:
        return _default(model, inputs)
    if isinstance(where, Iterable) and not isinstance(where, str | type | Tensor):
        where = list(where)
    seen: dict[tuple[int, bool], Place] = {}
    skipped = {}
    for place, module in _candidates(model, where):
        first = seen.setdefault((id(module), place.given), place)
        if first != place:
            skipped[place.name] = f"the same module as {first.path}"
    places = {place.name: place for place in (*seen.values(), *_places_in(where))}
    paths = {path for path, _ in model.named_modules(remove_duplicate=False)}
    for place in places.values():
        if place.path not in paths:
            raise ArgumentError(f"where={place}: the model has no module of that path", code="where-matches-nothing")
    if not places:
        raise ArgumentError(
            f"where={_shown(where)} matched no layer of {type(model).__name__}{_nearest(model, where)}",
            code="where-matches-nothing",
        )
    return Selection(tuple(places.values()), {}, skipped, {})


def _candidates(model: nn.Module, where: Where) -> Iterator[tuple[Place, nn.Module]]:
    returned, given = _matcher(where), _matcher(_of_inputs(where))
    for path, module in model.named_modules(remove_duplicate=False):
        if path and given(path, module):
            yield Place(path, given=True), module
        if path and returned(path, module):
            yield Place(path), module


def _of_inputs(where: Where) -> Where:
    """The part of ``where`` that is about what modules are given, without its prefix."""
    if isinstance(where, str):
        return where.removeprefix(INPUT_OF) if where.startswith(INPUT_OF) else []
    if isinstance(where, re.Pattern):
        prefixed = isinstance(where.pattern, str) and where.pattern.startswith(INPUT_OF)
        return re.compile(where.pattern.removeprefix(INPUT_OF), where.flags) if prefixed else []
    return [_of_inputs(part) for part in where] if isinstance(where, list | tuple) else []


def _places_in(where: Where) -> Iterator[Place]:
    if isinstance(where, Place):
        yield where
    elif isinstance(where, list | tuple):
        for part in where:
            yield from _places_in(part)


def _default(model: nn.Module, inputs: Any) -> Selection:
    calls = find_activation_calls(model, inputs)
    modules = dict(model.named_modules())
    hidden = [path for path, module in modules.items() if path and is_activation_module(module)]
    remark = ""
    if inputs is None:
        _check_found(model, calls)
    if calls is None:
        calls = ActivationCalls()
        remark = "Activations called as functions could not be looked for; pass inputs= to have them found."
    elif calls.opaque:
        remark = f"Not looked into: {', '.join(sorted(calls.opaque))}; pass inputs= to have its activations found."
    skipped = dict(calls.outputs)
    skipped |= {path: DID_NOT_RUN for path in hidden if path in calls.idle and path not in skipped}
    places = {Place(path): "" for path in hidden if path not in skipped} | calls.places
    chosen = {place.path for place in places if not place.given}
    for path, module in modules.items():
        if is_weight_layer(module) and path not in chosen:
            skipped.setdefault(path, "a weight layer; the nonlinearity after it, if any, is the layer")
    unread = {
        path: f"it calls {', '.join(names)}, and no module returns or is given the result alone: "
        f"make it a module of its own, such as nn.{TABLE[names[0]].module if names[0] in TABLE else 'ReLU'}()"
        for path, names in calls.unread.items()
    }
    if not places:
        Selection((), {}, {}, unread).check_complete()
        _refuse(model, calls, inputs)
    order = {path: number for number, path in enumerate(modules)}
    ordered = sorted(places, key=lambda place: (order[place.path], not place.given))
    notes = {place.name: places[place] for place in ordered if places[place]}
    return Selection(tuple(ordered), notes, skipped, unread, remark)


def _check_found(model: nn.Module, calls: ActivationCalls | None) -> None:
    """Raise ArgumentError where the code seems to call activations that tracing did not see."""
    suspected = suspected_calls(model, None if calls is None else calls.opaque)
    if suspected:
        shown = ", ".join(f"{name} in {path or 'its forward'}" for path, name in list(suspected.items())[:5])
        raise ArgumentError(
            f"{type(model).__name__} calls activations as functions ({shown}), and symbolic tracing cannot tell where "
            "their results go; pass inputs=, a batch on which the model is run once, such as LBE(model, inputs=x), or "
            "say what to read with where=",
            code="inputs-needed",
        )


def _refuse(model: nn.Module, calls: ActivationCalls, inputs: Any) -> NoReturn:
    """Raise ArgumentError, as there is nothing to read."""
    name = type(model).__name__
    if calls.outputs:
        only = next(iter(calls.outputs))
        raise ArgumentError(
            f"{name} has no hidden nonlinearity: of {only}, {calls.outputs[only]}", code="no-hidden-nonlinearity"
        )
    holders = {path for path, module in model.named_modules() if path and module._parameters}
    if inputs is not None and holders and holders <= calls.idle:
        raise UnsupportedModelError(
            "",
            "none of its modules that hold weights is called, so there is nothing to read; pass the model that it "
            "was exported or traced from",
            code="no-module-runs",
        )
    advice = "" if inputs is not None else "pass inputs= to have it looked for, or "
    raise ArgumentError(
        f"{name} has no hidden nonlinearity that could be found; {advice}say which layers are meant with where=, a "
        "glob such as 'blocks.*' or a type such as nn.Linear",
        code="no-hidden-nonlinearity",
    )


def _matcher(where: Where) -> Predicate:
    if isinstance(where, str):
        return lambda path, _: fnmatchcase(path, where)
    if isinstance(where, re.Pattern) and isinstance(where.pattern, str):
        return lambda path, _: where.fullmatch(path) is not None
    if isinstance(where, type):
        return lambda _, module: isinstance(module, where)
    if isinstance(where, Place):
        return lambda _path, _module: False  # taken as it is
    if isinstance(where, Iterable) and not isinstance(where, Tensor):
        parts = [_matcher(part) for part in where]
        return lambda path, module: any(part(path, module) for part in parts)
    if callable(where) and not isinstance(where, Tensor):
        return partial(_asked, where)
    raise ArgumentTypeError(
        f"where must be a glob, a compiled regex, a type, a callable, a place or a list of these, not {where!r}",
        code="wrong-type",
    )


def _asked(where: Predicate, path: str, module: nn.Module) -> bool:
    """The answer of a function of the user's about a module."""
    try:
        return bool(where(path, module))
    except Exception as error:  # code of the user's
        raise ArgumentError(
            f"where={_shown(where)} fails at {path!r} ({type(error).__name__}: {error}); it takes a path and a module",
            code="where-fails",
        ) from error


def _shown(where: Where) -> str:
    if isinstance(where, re.Pattern):
        return f"re.compile({where.pattern!r})"
    if isinstance(where, list | tuple):
        return "[" + ", ".join(_shown(part) for part in where) + "]"
    return repr(where) if isinstance(where, str) else getattr(where, "__name__", repr(where))


def _nearest(model: nn.Module, where: Where) -> str:
    paths = [path for path, _ in model.named_modules() if path]
    if not paths:
        return ", which has no submodules"
    near = difflib.get_close_matches(where, paths, n=3, cutoff=0.4) if isinstance(where, str) else []
    return f"; its paths are like {', '.join(near or paths[:3])}"
