"""YAML of settings, good and bad, as text; and words of a command line."""

import random
from collections.abc import Callable
from typing import Any

# Good values of the settings of a recipe, by section, as they are written.
SECTIONS: dict[str, dict[str, list[str]]] = {
    "data": {
        "name": ["digits", "'digits'"],
        "dir": ["null"],
        "held_out": ["100", "null", "360"],
        "augment": ["true", "no", "false"],
        "pln": ["true"],
    },
    "model": {
        **{"name": ["fnn"], "nonlinearity": ["relu", "tanh", "gelu", "elu"], "depth": ["1", "2", "3"]},
        **{"width": ["1", "4", "8", "0x8"], "batchnorm": ["false"], "residual": ["true", "false"]},
    },
    "task": {"name": ["classification"]},
    "optimizer": {
        **{"name": ["adam", "sgd", "Adam", "adamw"], "lr": ["1e-3", "0.01", "1e+0", "1E-3"]},
        **{"weight_decay": ["0", "1e-4"], "options": ["{}"]},
    },
    "schedule": {"kind": ["constant", "cosine", "plateau"], "gamma": ["0.1", "0.5"], "patience": ["1", "5"]},
    "engine": {
        **{"device": ["cpu"], "precision": ["32-true", "64-true"], "members": ["auto", "loop", "vmap", "direct"]},
        **{"compile": ["off", "'off'"], "threads": ["1", "null"], "strategy": ["auto", "ddp"]},
        **{"cuda_graph": ["auto", "off"], "tf32": ["false"]},
    },
}
SINGLE: dict[str, list[str]] = {
    "epochs": ["1", "2", "0o3", "0x2"],
    "batch_size": ["256", "512", "0x100"],
    "seeds": ["1", "2", "[0, 3]", "[4]"],
    "checkpoint_every": ["1", "null", "100"],
    "probes": ["0", "1"],
    "loggers": ["[]"],
    "remedies": [
        *("null", "default", "he", "lecun", "orthogonal", "lsuv", "ic", "layernorm", "batchnorm", "selu", "eoc", "lbe"),
        *("residual", "{name: rezero}", "{name: ic, keep: 0.9}", "ic+he", "layernorm + lbe", "[tat, lbe]"),
        *("[{name: lbe, alpha: 1e-1, beta: 0, alpha_min: 0.1}]", "{name: lbe, convention: published-code}"),
        *("[he, {name: lbe, neurons: channel}]", "[{name: tat, eta: 0.8, version: 1}]"),
    ],
    "compare": ["null"],
    "sweep": ["null"],
}
SWEEPS = [
    "{parameters: {optimizer.lr: [0.1, 0.01]}}",
    "{parameters: {remedies.lbe.alpha: [0.3, 0.5], model.depth: [1, 2]}, stack: 2}",
    "{method: tpe, trials: 3, parameters: {optimizer.lr: {low: 1e-4, high: 1e-1, log: true}}}",
    "{parameters: {batch_size: [256, 512]}, storage: 'sqlite:///x.db'}",
]
COMPARISONS = [
    "{}",
    "{remedies: [default, he]}",
    "{remedies: tat+lbe, parameters: {optimizer.lr: [0.1, 0.01]}}",
    "{remedies: [[he, {name: lbe, beta: 0.1}], ic], parameters: {model.depth: [1, 2]}}",
    "{parameters: {remedies.lbe.alpha: [0.3, 0.5], batch_size: [256, 512]}}",
]
# What YAML has, and what it cannot make.
SCALARS = [
    *("2026-02-30", "2001-13-45", "2001-01-01", "2001-12-14t21:59:43.10-05:00", "0x_", "0b_", "0o9", "1:30", "1e400"),
    "-1e400",
    *("!!int abc", "!!int ''", "!!float ''", "!!float x", "!!bool abc", "!!timestamp abc", "!!binary '%%'"),
    "!!binary YQ==",
    *("!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!omap 3", "!!str 3", "!!null ''", "!!map []", "!!seq {}"),
    *("!!python/object/apply:os.getcwd []", "!!python/name:os.system", "!unknown 3", "! 3", ".nan", ".inf", "-.INF"),
    *("~", "''", "'a'", '"\\ud800"', '"a\\0b"', '"\\x07"', '"\\u2028"', '"\\U0010ffff"', "'\U0001f600'", "yes"),
    *("off", "NULL"),
    *("[]", "{}", "[[]]", "[null]", "[1, a, {}]", "{a: {b: {c: 1}}}", "{1: 2}", "{? [a] : 1}", "{? {a: 1} : 1}"),
    "{null: 1}",
    *("-1", "0", "1", "2", "-0", "1.5", "1e-3", "1_000", "9" * 40, "9" * 5000, "-" + "9" * 400),
    *("0." + "0" * 400 + "1", "1e9", "1e-320"),
    *("a" * 3000, "*a", "&a [*a]", "&a {b: *a}", "<<", "=", "[" * 300, "{a: " * 300, "'", '"', "%", "@", "`", "|"),
    *(">-", "? a", "- a"),
    *(
        "digits",
        "mnist",
        "folder",
        "cifar10",
        "fnn",
        "cnn",
        "resnet",
        "tat",
        "dks",
        "fixup",
        "streams",
        "fsdp",
        "tat+he",
    ),
    *("{name: he}", "{name: fnn}", "{name: tat, etta: 1}", "[he, tat]", "+", "he+", "{name: lbe, version: 2}"),
    *("cuda", "mps", "cpu:0"),
    *("true", "false", "on", "step", "'../../x'", "/dev/null", "/proc/self/mem", "https://u:p@h/x?password=s"),
]
# Settings that take any text, and texts that nobody expects.
TEXTS: list[Callable[[str], dict[str, str]]] = [
    lambda text: {"data": f"{{name: {text}}}"},
    lambda text: {"data": f"{{name: mnist, dir: {text}}}"},
    lambda text: {"data": f"{{name: folder, dir: {text}}}"},
    lambda text: {"model": f"{{nonlinearity: {text}}}"},
    lambda text: {"optimizer": f"{{name: {text}}}"},
    lambda text: {"optimizer": f"{{options: {{{text}: 1}}}}"},
    lambda text: {"engine": f"{{device: {text}}}"},
    lambda text: {"loggers": f"[{text}]"},
    lambda text: {"sweep": f"{{parameters: {{{text}: [1]}}}}"},
    lambda text: {"sweep": f"{{parameters: {{optimizer.name: [{text}]}}}}"},
    lambda text: {"remedies": text},
    lambda text: {"remedies": f"[he, {text}]"},
    lambda text: {"remedies": f"{{name: lbe, {text}: 1}}"},
    lambda text: {"remedies": f"{{name: lbe, alpha: {text}}}"},
    lambda text: {"task": f"{{name: {text}}}"},
    lambda text: {"compare": f"{{remedies: [{text}]}}"},
    lambda text: {"compare": f"{{parameters: {{{text}: [1]}}}}"},
    lambda text: {"compare": f"{{parameters: {{model.nonlinearity: [{text}]}}}}"},
    lambda text: {"sweep": f"{{parameters: {{optimizer.lr: [0.1]}}, storage: {text}}}"},
]
STRANGE = [
    *['"\\ud800"', '"a\\0b"'] * 4,
    '"\\e[31m"',
    '"a\\nb"',
    "''",
    "'é'",
    "a" * 300,
    "/dev/null",
    "'/proc/1/mem'",
    "'~'",
    "..",
    "1",
    "[]",
]
KEYS = [
    *("epoch", "Epochs", "''", "null", "1", "1.5", "true", "[a]", "? [a]", "? {a: 1}", "2001-01-01", "a.b"),
    *("__class__", "<<", "=", "~"),
    *('"\\ud800"', '"\\0"', "'\u00e9'", "name", "self", "model_config", "data", "model", "remedies", "engine"),
    *("seeds", "task", "compare", "sweep", "!!int x"),
]
CHARACTERS = [*"\x00\t\r\n:{}[]&*!%#9|,'\"\\", "- ", "\ufeff", "\ud800", "\x85", "\u2028"]
# A short text of more than forty million values: each list holds the one before it nine times.
LAUGHS = (
    "[&a [x, x], "
    + ", ".join(f"&{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]"
)


DOCUMENTS = [
    *("", "# nothing\n", "---\n---\n", "%YAML 9.9\n---\n{}\n", "- a\n", "3\n", "null\n", "\ufeff{}\n"),
    *(f"{name}: {LAUGHS}\n" for name in ("epochs", "seeds", "unknown", "optimizer", "loggers")),
    f"optimizer: {{options: {{betas: {LAUGHS}}}}}\n",
    f"sweep: {{parameters: {{optimizer.lr: {LAUGHS}}}}}\n",
]


def settings(rng: random.Random) -> dict[str, Any]:
    """Good settings, as texts by section and name."""
    made: dict[str, Any] = {name: rng.choice(values) for name, values in SINGLE.items() if rng.random() < 0.25}
    for section, values in SECTIONS.items():
        if rng.random() < 0.35:
            made[section] = {name: rng.choice(v) for name, v in values.items() if rng.random() < 0.4} or "{}"
    if rng.random() < 0.1:
        made["sweep"] = rng.choice(SWEEPS)
    elif rng.random() < 0.15:
        made["compare"] = rng.choice(COMPARISONS)
        made.pop("remedies", None)
    return made


def spoil(rng: random.Random, made: dict[str, Any]) -> None:
    """Exchange a value, or add a setting, somewhere."""
    if rng.random() < 0.2:
        made |= rng.choice(TEXTS)(rng.choice(STRANGE))
        return
    where = made
    if (sections := [value for value in made.values() if isinstance(value, dict)]) and rng.random() < 0.5:
        where = rng.choice(sections)
    if rng.random() < 0.2:
        where[rng.choice(KEYS)] = rng.choice(SCALARS)
        return
    names = list(where) or ["epochs"]
    if where is made and rng.random() < 0.5:
        names = [*SINGLE, *SECTIONS]
    where[rng.choice(names)] = rng.choice(SCALARS)


def written(rng: random.Random, made: dict[str, Any]) -> str:
    """Settings as YAML, in blocks or in one line."""
    if rng.random() < 0.2:
        return _flow(made) + "\n"
    lines = []
    for name, value in made.items():
        if not isinstance(value, dict):
            lines.append(f"{name}: {value}")
        elif rng.random() < 0.5:
            lines.append(f"{name}: {_flow(value)}")
        else:
            lines += [f"{name}:", *(f"  {key}: {item}" for key, item in value.items())]
    return "\n".join(lines) + "\n" if lines else "{}\n"


def _flow(value: Any) -> str:
    return (
        "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
        if isinstance(value, dict)
        else value
    )


def torn(rng: random.Random, text: str) -> bytes:
    """A text with characters changed, or as bytes that are no text."""
    how = rng.randrange(8)
    if how == 0:
        return text.encode("utf-16")
    if how == 1:
        return text.encode() + bytes([rng.randrange(128, 256)])
    if how == 2:
        return text.encode()[: rng.randrange(len(text) + 1)]
    if how == 3:
        return (text * 2).encode()
    if how == 4:
        return rng.choice(DOCUMENTS).encode()
    if how == 5 and rng.random() < 0.15:
        return "".join(f"k{k}: 1\n" for k in range(rng.choice([300, 40_000]))).encode()
    if how == 6 and rng.random() < 0.3:
        return (rng.choice(["[", "{a: ", "- ", "? "]) * 3000).encode()
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(CHARACTERS) + text[at + rng.choice([0, 1]) :]
    return text.encode("utf-8", "surrogatepass")


def assignments(rng: random.Random) -> list[str]:
    """Settings as they are typed, name=value."""
    names = [*SINGLE, *(f"{section}.{name}" for section, values in SECTIONS.items() for name in values)]
    made = []
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2])):
        name = rng.choice(names)
        if name == "model.name":  # the settings that stand beside it may be those of another model
            continue
        section, _, last = name.rpartition(".")
        good = SECTIONS[section][last] if section else SINGLE[name]
        if rng.random() < 0.85:
            made.append(f"{name}={rng.choice(good)}")
            continue
        name = rng.choice(
            [
                *(*names, "", ".", "a..b", "model", "model.depth.x", "epochs.x", ".epochs", "epochs.", "é", "\ud800"),
                *(
                    "\x00",
                    "remedies.lbe.beta",
                    "remedies.lbe",
                    "remedies.",
                    "remedies.he.x.y",
                    "remedies.he.",
                    "remedies..x",
                ),
                *("compare.remedies", "compare.parameters", "compare.parameters.x", "sweep.parameters.x", "data.x.y"),
                *("compare.parameters.optimizer.lr", "sweep.storage", "model.", "optimizer.options.betas", "task.name"),
            ]
        )
        made.append(rng.choice([f"{name}={rng.choice(SCALARS)}", name, f"{name}=", f"={name}", f"{name}: 3"]))
    return made
