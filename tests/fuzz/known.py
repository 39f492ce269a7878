"""Failures that are known and not mended yet, by what is wrong: what each is, its error, and its place.

Delete an entry with the fault that it stands for. When there is none left, delete this file.
"""

from fnmatch import fnmatchcase

from .core import Failure


def _in(*places: str) -> list[tuple[str, str, str]]:
    return [("foreign", "*", place) for place in places]


KNOWN: dict[str, list[tuple[str, str, str]]] = {
    "YAML that cannot be made into values": _in("experiments/validate.py:*"),
    "many keys": [("slow", "Slow", "experiments/validate.py:*")],
    "texts with NUL, or that cannot be encoded": [
        ("foreign", "ValueError", "data/*"),
        ("foreign", "ValueError", "cli/*"),
        ("foreign", "Unicode*", "*"),
    ],
    "messages that are shown as they are": [("printed", "characters *", "*"), ("exit", "refused in *", "*")],
    "states of checkpoints": [
        *_in("training/engine.py:*", "training/folder.py:*", "training/record.py:*", "training/batches.py:*"),
        *_in("training/shards.py:*", "training/updates.py:*", "experiments/train.py:*", "training/optimisers.py:*"),
    ],
    "arguments of another type": [
        *_in(
            "moments.py:*", "entropy.py:*", "independence.py:*", "flow.py:*", "lbe.py:*", "term.py:*", "readings.py:*"
        ),
        *_in(
            "diagnose.py:*",
            "layers.py:*",
            "taps.py:*",
            "observe.py:call",
            "kernels/*",
            "modules/*",
            "training/stack.py:*",
        ),
        *_in("remedies/*:__post_init__", "remedies/*:__init__", "remedies/*:<genexpr>", "remedies/*:extra_repr"),
        *_in("remedies/*:forward", "remedies/apply.py:apply_"),
        ("slow", "Slow", "kernels/*"),
        ("slow", "Slow", "outside the package"),
        ("wrong", "*", "*"),
    ],
    "modules that are their own children, or cannot be copied": [
        ("foreign", "RecursionError", "*"),
        *_in("training/assemble.py:*"),
    ],
    "modules that take no new attributes": _in("observe.py:observing", "remedies/apply.py:restore"),
    "tensors without values": [("foreign", "RuntimeError", "remedies/*")],
    "layers of no width": [("foreign", "IndexError", "activations.py:*"), ("broken", "*", "*")],
    "a layer that is gone after a pass": [("foreign", "KeyError", "activations.py:*")],
    "traces in models": [("trace", "*", "*")],
}


def is_known(failure: Failure) -> bool:
    """Whether a failure is one of these."""
    found = (failure.sort, failure.error, failure.place)
    return any(all(map(fnmatchcase, found, known)) for entries in KNOWN.values() for known in entries)
