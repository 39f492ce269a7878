"""The registry of remedies: names, settings, serial form, and which go together. Nothing in it loads torch."""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from itertools import combinations
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from trainability.errors import ArgumentError, ArgumentTypeError, suggestion

if TYPE_CHECKING:
    from torch import nn

    from trainability.introspect.select import Where
    from trainability.remedies.changes import Plan

Sets = Literal["shortcuts", "weights", "normalization", "loss"]
_VERBS = {
    "shortcuts": "bring shortcuts",
    "weights": "set the weights",
    "normalization": "normalize",
    "loss": "change the loss",
}
_MACHINERY = {"apply", "changes", "registry"}  # modules of this package that declare no remedy


class Remedy(ABC):
    """A way to make a network trainable. Subclasses are frozen dataclasses, and registered by `register`."""

    @abstractmethod
    def plan(self, model: "nn.Module", where: "Where | None", inputs: Any) -> "Plan":
        """Decide on every change, and change nothing yet."""

    def options(self, model: str) -> Mapping[str, Any] | None:
        """Options with which the package's own model of that name is built with this remedy in it.

        None, the default, where there are none, so that `apply_` changes the finished model.
        """
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: name, version and every setting, from which `from_dict` makes it again."""
        found = entry_of(self)
        return {"name": found.name, "version": found.version, **{key: getattr(self, key) for key in found.settings}}


class BuiltIn(Remedy):
    """A remedy of the package, which the module ``plan`` beside its declaration plans, so that this loads no torch."""

    def plan(self, model: "nn.Module", where: "Where | None", inputs: Any) -> "Plan":
        """Plan the changes that the class describes."""
        home = next(kind.__module__ for kind in type(self).__mro__ if kind.__module__.startswith(f"{__package__}."))
        planned: Plan = importlib.import_module(f"{home}.plan").plan(self, model, where, inputs)
        return planned


@dataclass(frozen=True)
class Entry:
    """One remedy by name.

    Attributes:
        name: what it is called in recipes, on the command line and in reports.
        kind: the class.
        sets: what only one remedy of a network can set.
        title: a noun phrase.
        order: when it is applied: shortcuts (0), then weights and activations (1), then what stands between layers (2).
        baseline: the remedy that it is compared with by itself.
        claim: what its authors say of it.
        conflicts: remedies that it does not go with though they set other things, and why.
        preset: fields of the class that the name fixes.
        version: of the serial form.
        settings: the other fields, and their defaults.
    """

    name: str
    kind: type[Remedy]
    sets: tuple[Sets, ...]
    title: str
    order: int
    baseline: str | None
    claim: str
    conflicts: Mapping[str, str]
    preset: Mapping[str, Any]
    version: int
    settings: Mapping[str, Any]


_entries: dict[str, Entry] = {}
_Kind = TypeVar("_Kind", bound=type[Remedy])


def register(
    name: str,
    *,
    title: str,
    sets: Sets | tuple[Sets, ...] = (),
    order: int = 0,
    baseline: str | None = "default",
    claim: str = "",
    conflicts: Mapping[str, str] = MappingProxyType({}),
    preset: Mapping[str, Any] = MappingProxyType({}),
    version: int = 1,
) -> Callable[[_Kind], _Kind]:
    """Register a frozen dataclass as a remedy; several of these over one class make several names of it.

    The arguments are the attributes of `Entry`.

    Raises:
        ArgumentError: the name is taken by another class, or holds what separates names.

    >>> register("two words", title="weights of zero", sets="weights")
    Traceback (most recent call last):
    ...
    trainability.errors.ArgumentError: a remedy cannot be named 'two words'; use lower-case letters, digits and hyphens
    """
    if not name or name != name.strip().lower() or set(name) & set("+, ="):
        raise ArgumentError(
            f"a remedy cannot be named {name!r}; use lower-case letters, digits and hyphens", code="remedy-name"
        )

    def add(kind: _Kind) -> _Kind:
        taken = _entries.get(name)
        same = taken and (taken.kind.__module__, taken.kind.__qualname__) == (kind.__module__, kind.__qualname__)
        if taken and not same:
            raise ArgumentError(f"{taken.kind.__qualname__} is registered as {name!r} already", code="name-taken")
        settings = {
            field.name: field.default if field.default_factory is MISSING else field.default_factory()
            for field in fields(kind)  # type: ignore[arg-type]
            if field.name not in preset
        }
        one = (sets,) if isinstance(sets, str) else sets
        _entries[name] = Entry(
            name, kind, one, title, order, baseline, claim, dict(conflicts), dict(preset), version, settings
        )
        return kind

    return add


@cache
def _registered() -> dict[str, Entry]:
    """The entries, once every module beside this one is loaded but those that declare no remedy."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if module.name not in _MACHINERY:
            importlib.import_module(f"{package}.{module.name}")
    return _entries


def names() -> tuple[str, ...]:
    """Every name, in the order in which remedies are applied.

    >>> names()[:2]
    ('default', 'fixup')
    """
    return tuple(sorted(_registered(), key=lambda name: (_entries[name].order, name)))


def entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
        ArgumentError: there is none, with a suggestion and the names that there are.

    >>> entry("tat").settings["eta"]
    0.9
    """
    if not isinstance(name, str) or name not in _registered():
        raise ArgumentError(
            f"there is no remedy {name!r}; {suggestion(name, names())}choose from {', '.join(names())}",
            code="unknown-choice",
        )
    return _entries[name]


def entry_of(remedy: Remedy) -> Entry:
    """The entry of an object: of the names of its class, the one whose preset it has.

    Raises:
        ArgumentTypeError: its class is not registered.

    >>> from trainability import Residual
    >>> entry_of(Residual("rezero")).name
    'rezero'
    """
    for found in _registered().values():
        if type(remedy) is found.kind and all(getattr(remedy, key) == value for key, value in found.preset.items()):
            return found
    raise ArgumentTypeError(
        f"{remedy!r} has no name; decorate {type(remedy).__name__} with trainability.remedies.register",
        code="not-registered",
    )


def make(name: str, **settings: Any) -> Remedy:
    """The remedy of a name, with these settings and otherwise its defaults.

    Raises:
        ArgumentError: an unknown name or setting, or a value that the remedy refuses.

    >>> make("fixup", layers=2)
    Residual(scale='fixup', layers=2)
    """
    found = entry(name)
    for key in settings:
        if key not in found.settings:
            takes = f"it takes {', '.join(found.settings)}" if found.settings else "it takes none"
            raise ArgumentError(
                f"{name} has no setting {key!r}; {suggestion(key, found.settings)}{takes}", code="unknown-setting"
            )
    return found.kind(**found.preset, **settings)


def from_dict(content: Mapping[str, Any]) -> Remedy:
    """The remedy of a JSON form: ``name``, its ``version`` (by default today's) and settings.

    Raises:
        ArgumentError: as `make`, and for a version that this one does not know.

    >>> from_dict({"name": "tat", "eta": 0.8})
    TAT(eta=0.8, tau=0.3, init='suo', shortcut=None, batchnorm='refuse')
    """
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise ArgumentTypeError(f"a remedy is a name with settings, not {content!r}", code="wrong-type")
    if "name" not in content:
        raise ArgumentError(f"a remedy needs its name: {dict(content)!r} has none", code="missing-setting")
    found = entry(content["name"])
    version = content.get("version", found.version)
    if version != found.version:
        raise ArgumentError(
            f"{found.name}: its settings are of version {version!r}, and this package knows version {found.version}",
            code="version",
        )
    return make(found.name, **{key: value for key, value in content.items() if key not in ("name", "version")})


@dataclass(frozen=True)
class Combination:
    """Remedies that one network gets.

    Attributes:
        name: their names, joined by ``+`` in the order given.
        parts: the remedies, in the order in which they are applied; none for ``"default"``.
        title: the last of those given in words, as what is compared with ``baseline``.
        claim: what its authors say of it.
        baseline: the name of the combination that differs from this one in that.
    """

    name: str
    parts: tuple[Remedy, ...]
    title: str
    claim: str
    baseline: str | None

    @property
    def loss(self) -> Remedy | None:
        """The part that changes the loss."""
        return next((part for part in self.parts if "loss" in entry_of(part).sets), None)

    def options(self, model: str) -> dict[str, Any]:
        """Options with which the package's own model of that name is built.

        Raises:
            ArgumentError: a part can be had of another model only.

        >>> combine("rezero+batchnorm").options("resnet")
        {'residual': True, 'scale': 'rezero', 'batchnorm': True}
        """
        return {key: value for part in self.parts for key, value in (part.options(model) or {}).items()}

    def applied(self, model: str) -> tuple[Remedy, ...]:
        """The parts that are neither options of the model of that name nor in the loss, for `apply_` in turn.

        >>> combine("rezero+he+lbe").applied("resnet")
        (Init(scheme='he', nonlinearity='relu'),)
        """
        return tuple(part for part in self.parts if part != self.loss and part.options(model) is None)

    def to_list(self) -> list[dict[str, Any]]:
        """Return the JSON form of every part in the order of the name, from which `combine` makes it again.

        >>> combine(combine("ic+he").to_list()).name
        'ic+he'
        """
        names = self.name.split("+")
        return [part.to_dict() for part in sorted(self.parts, key=lambda part: names.index(entry_of(part).name))]


def combine(parts: "str | Mapping[str, Any] | Remedy | Sequence[str | Mapping[str, Any] | Remedy]") -> Combination:
    """Remedies for one network: names joined by ``+``, or a list of names, JSON forms and objects.

    Raises:
        ArgumentError: an unknown name or setting; two parts that do not go together, with the reason.

    >>> combine("tat+lbe").baseline
    'tat'
    >>> combine("tat+he")
    Traceback (most recent call last):
    ...
    trainability.errors.ArgumentError: tat+he cannot be combined: tat and he both set the weights; leave one out
    """
    given: Iterable[Any] = parts if isinstance(parts, list | tuple) else [parts]
    remedies = [remedy for part in given for remedy in _parsed(part)] or [Default()]
    entries = [entry_of(remedy) for remedy in remedies]
    name = "+".join(found.name for found in entries)
    for first, second in combinations(entries, 2):
        if reason := _conflict(first, second):
            raise ArgumentError(f"{name} cannot be combined: {reason}", code="settings-conflict")
    last, own = entries[-1], entries[-1].baseline
    others = [found.name for found in entries[:-1]] + ([own] if own not in (None, "default") else [])
    ordered = sorted(remedies, key=lambda remedy: entry_of(remedy).order)
    applied = tuple(remedy for remedy in ordered if not isinstance(remedy, Default))
    return Combination(name, applied, last.title, last.claim, "+".join(map(str, others)) or own)


def _parsed(part: object) -> list[Remedy]:
    if isinstance(part, Remedy):
        return [part]
    if isinstance(part, Mapping):
        return [from_dict(part)]
    if not isinstance(part, str):
        raise ArgumentTypeError(
            f"a remedy is a name, a mapping or an object such as TAT(), not {part!r}", code="wrong-type"
        )
    pieces = [piece.strip().lower() for piece in part.split("+")]
    if len(pieces) > 1 and "" in pieces:
        raise ArgumentError(f"{part}: a name is missing beside +", code="empty")
    return [make(piece) for piece in pieces]


def _conflict(first: Entry, second: Entry) -> str | None:
    """The reason why two remedies do not go together, if any."""
    if first.name == second.name:
        return f"{first.name} is there twice"
    if "default" in (first.name, second.name):
        return "default is the network without the others; leave it out"
    if shared := [kind for kind in first.sets if kind in second.sets]:
        what = _VERBS.get(shared[0], f"set {shared[0]}")
        return f"{first.name} and {second.name} both {what}; leave one out"
    reason = first.conflicts.get(second.name) or second.conflicts.get(first.name)
    return f"{first.name} does not go with {second.name}, since {reason}" if reason else None


@register("default", title="PyTorch's default initialization", order=-1, baseline=None)
@dataclass(frozen=True)
class Default(Remedy):
    """The network as it is made, without a remedy: what others are compared with."""

    def plan(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: there is nothing to apply."""
        raise ArgumentError("default is the model as it is; there is nothing to apply", code="nothing-to-change")
