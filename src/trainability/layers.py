"""Which layers of a model: one selection language, and an account of what matched and what did not.

``where`` is a glob that must match the whole path (``*`` crosses dots), a compiled regex (``fullmatch``), a type
(subclasses too), a callable of name and module, or a list of these (a union). ``None`` is the default: every
hidden nonlinearity, and every weight layer whose nonlinearity is called as a function and has no module to tap.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from trainability.activations import ActivationCalls, find_activation_calls, is_nonlinearity, is_weight_layer
from trainability.errors import ArgumentError, ArgumentTypeError
from trainability.observe import unwrap

Predicate = Callable[[str, nn.Module], bool]
Where = str | re.Pattern[str] | type[nn.Module] | Predicate | Sequence[Any]


@dataclass(frozen=True)
class Selection:
    """The layers chosen from a model, and why the others were not.

    ``paths`` are module paths in the order of definition, ``notes`` maps some of them to a remark, and
    ``skipped`` maps candidates that were left out to the reason. Printing it shows the whole account.
    """

    paths: tuple[str, ...]
    notes: dict[str, str]
    skipped: dict[str, str]
    remark: str = ""

    def __str__(self) -> str:
        lines = [f"{len(self.paths)} {'layer' if len(self.paths) == 1 else 'layers'}"]
        lines += [f"  {path}" + (f"  ({self.notes[path]})" if path in self.notes else "") for path in self.paths]
        if self.skipped:
            lines.append(f"{len(self.skipped)} skipped")
            lines += [f"  {path}: {reason}" for path, reason in self.skipped.items()]
        return "\n".join([*lines, *([self.remark] if self.remark else [])])


def select(model: nn.Module, where: Where | None = None, *, inputs: Any = None) -> Selection:
    """Choose layers of a model.

    Args:
        model: any module; it is not changed.
        where: see the module's own text. ``None`` chooses the default.
        inputs: an example batch, used only by the default. With it the model is run once, unobserved, to find
            activations called as functions; without it they are looked for by symbolic tracing, and where
            that fails the account says so.

    Raises:
        ValueError: nothing matched.
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
    """
    model = unwrap(model)
    if where is None:
        return _default(model, find_activation_calls(model, inputs))
    matches = _matcher(where)
    seen: dict[int, str] = {}
    skipped = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if not path or not matches(path, module):
            continue
        if id(module) in seen:
            skipped[path] = f"the same module as {seen[id(module)]}"
        else:
            seen[id(module)] = path
    if not seen:
        raise ArgumentError(f"where={_shown(where)} matched no layer of {type(model).__name__}{_nearest(model, where)}")
    return Selection(tuple(seen.values()), {}, skipped)


def _default(model: nn.Module, calls: ActivationCalls | None) -> Selection:
    modules = dict(model.named_modules())
    weights = [path for path, module in modules.items() if is_weight_layer(module)]
    hidden = [path for path, module in modules.items() if path and is_nonlinearity(module)]
    notes: dict[str, str] = {}
    skipped: dict[str, str] = {}
    remark = ""
    if calls is not None:
        skipped |= calls.outputs | calls.orphans
        skipped |= {path: "it did not run" for path in hidden if path in calls.idle}
        hidden = [path for path in hidden if path not in skipped]
        notes |= calls.at
        if calls.opaque:
            remark = f"Not looked into: {', '.join(sorted(calls.opaque))}; pass inputs= to have its activations found."
    elif hidden:
        remark = "Activations called as functions could not be looked for; pass inputs= to have them found."
    else:
        for path in weights[:-1]:
            notes[path] = "the weight layer; no nonlinearity has a module, and the model cannot be traced"
    chosen = set(hidden) | set(notes)
    for path in weights:
        if path not in chosen:
            skipped.setdefault(path, "a weight layer; the nonlinearity after it, if any, is the layer")
    if not chosen:
        if calls is not None and calls.outputs:
            only = next(iter(calls.outputs))
            raise ArgumentError(f"{type(model).__name__} has no hidden nonlinearity: of {only}, {calls.outputs[only]}")
        raise ArgumentError(
            f"{type(model).__name__} has no hidden nonlinearity that could be found; pass inputs= to have it looked "
            "for, or say which layers are meant with where=, a glob such as 'blocks.*' or a type such as nn.Linear"
        )
    return Selection(tuple(path for path in modules if path in chosen), notes, skipped, remark)


def _matcher(where: Where) -> Predicate:
    if isinstance(where, str):
        return lambda path, _: fnmatchcase(path, where)
    if isinstance(where, re.Pattern):
        return lambda path, _: where.fullmatch(path) is not None
    if isinstance(where, type):
        return lambda _, module: isinstance(module, where)
    if isinstance(where, Iterable):
        parts = [_matcher(part) for part in where]
        return lambda path, module: any(part(path, module) for part in parts)
    if callable(where):
        return where
    raise ArgumentTypeError(
        f"where must be a glob, a compiled regex, a type, a callable or a list of these, not {where!r}"
    )


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
