"""Calls of the library on tensors and numbers, good and bad, written as Python expressions."""

import math
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np  # noqa: F401  expressions name it
import torch
from torch import Tensor, nn

import trainability as tr
from trainability import signal  # noqa: F401
from trainability.data.pln import PLN  # noqa: F401
from trainability.dependence.pairs import independence, mutual_information  # noqa: F401
from trainability.errors import TrainabilityError
from trainability.nn.weighted_sum import WeightedSum  # noqa: F401
from trainability.stack.module import Stack

from .core import Case, Fault, Users, is_the_users

DTYPES = [
    *("float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "complex64"),
    *("complex128", "complex32", "bool", "uint8", "int8", "int64", "uint16", "uint64", "float4_e2m1fn_x2"),
]
FILLS = ["randn", "zeros", "nan", "inf", "huge", "tiny", "mixed", "constant"]
FORMS = [
    *("plain", "transposed", "expanded", "sparse", "csr", "nested", "jagged", "meta", "quantized", "grad", "conj"),
    *("parameter", "subclass", "inference", "named", "overlapping", "neg"),
]


class Own(Tensor):
    """A subclass of Tensor."""


def t(*shape: int, dtype: str = "float32", fill: str = "randn", form: str = "plain") -> Tensor:
    """A tensor of some kind; plain where torch has none of that kind."""
    values = torch.randn(shape)
    if fill in ("nan", "inf", "huge", "tiny", "constant", "zeros"):
        number = {"nan": float("nan"), "inf": float("inf"), "huge": 3e38, "tiny": 1e-42, "constant": 1.1e30, "zeros": 0}
        values = torch.full(shape, float(number[fill]))
    if fill == "mixed" and values.numel():
        values.view(-1)[0] = float("inf")
    try:
        return _FORMS[form](values.to(getattr(torch, dtype)))
    except (RuntimeError, TypeError, NotImplementedError, AttributeError, ValueError, IndexError):
        return values


def _inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x + 0


_FORMS: dict[str, Callable[[Tensor], Any]] = {
    "plain": lambda x: x,
    "transposed": lambda x: x.transpose(0, -1),
    "expanded": lambda x: x[:1].expand(5, *x.shape[1:]),
    "sparse": lambda x: x.to_sparse(),
    "csr": lambda x: x.to_sparse_csr(),
    "nested": lambda x: torch.nested.nested_tensor([x, x[:1]]),
    "jagged": lambda x: torch.nested.nested_tensor([x, x[:1]], layout=torch.jagged),
    "meta": lambda x: x.to("meta"),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
    "grad": lambda x: x.requires_grad_(),
    "conj": lambda x: x.to(torch.complex64).conj(),
    "parameter": nn.Parameter,
    "subclass": lambda x: x.as_subclass(Own),
    "inference": _inference,
    "named": lambda x: x.refine_names(..., "C"),
    "overlapping": lambda x: x.as_strided(x.shape, (0,) * x.dim()),
    "neg": torch._neg_view,
}


def plain(depth: int = 2, width: int = 6) -> nn.Sequential:
    """A network of rectifiers."""
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def own() -> nn.Module:
    """A module that is its own child."""
    model = plain()
    model._modules["me"] = nn.Identity()
    model.me._modules["me"] = model.me
    return model


def ce(output: Any, targets: Any) -> Any:
    """A loss as a user writes it, which fails by itself where output and targets do not fit."""
    return nn.functional.cross_entropy(output, targets)


def step(loss: Any = None, x: Any = None, **options: Any) -> Tensor:
    """One training step with LBE."""
    model = plain()
    lbe = tr.LBE(model, **options)
    model(t(8, 6) if x is None else x)
    total: Tensor = lbe(loss)
    if total.requires_grad:
        total.backward()
    return total.detach()


def entropy(x: Any, **options: Any) -> Tensor:
    """The entropy of an activation, which is finite where its values are."""
    h = tr.batch_entropy(x, **options)
    exact = h.dtype in (torch.float32, torch.float64) and h.device.type == "cpu" and x.layout is torch.strided
    if exact and not 0 <= float(h) < math.inf and bool(x.double().isfinite().all()):
        raise Fault("wrong", "the entropy of finite values is not a finite number of at least 0")
    return h


def stacked(models: Any = None, x: Any = None, predict: Any = None, **options: Any) -> Any:
    """A pass of a stack."""
    stack = Stack(models, **options)
    passed = stack(x)
    return passed if predict is None else stack.predict(predict)


def looked_up(key: Any) -> Any:
    """A layer of a flow."""
    return tr.measure(plain(), t(8, 6))[key]


JUNK = [
    *("None", "True", "'a'", "''", "b'x'", "0", "1", "3", "-1", "-7", "2.5", "-0.0", "1e400", "float('nan')"),
    *("-float('inf')", "10**30", "-(10**400)", "1e-320", "[]", "[1, 2]", "[None]", "()", "{}", "{'a': 1}"),
    *("{1: t(3, 6)}"),
    *("object()", "Tensor", "lambda *a: None", "...", "1j", "np.float64(0.5)", "np.ones((4, 6))", "np.int64(2)"),
    *("torch.float32", "torch.device('cpu')", "range(3)", "{1, 2}", "'\\ud800'", "'a' * 5000", "nn.ReLU()"),
    *("nn.Linear",),
    *("plain()", "[t(4, 6), 'a']", "(t(8, 6), t(8, 6))", "t()", "t(0)", "t(4, 6)", "t(1)", "'relu'", "tr.TAT()"),
]
GOOD = ["t(8, 6)", "t(16, 3, 4, 4)", "t(12, 5, 6)", "t(9, 6, dtype='float64')", "t(8, 6, dtype='bfloat16')", "t(20, 1)"]
MODELS = ["plain()", "plain(1)", "plain(20)", "nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))"]
CONVENTIONS = ["'paper'", "'published-code'"]
NEURONS = ["'position'", "'channel'"]
ACTIVATIONS = ["'relu'", "'tanh'", "'gelu'", "torch.tanh", "lambda z: torch.tanh(2 * z)", "nn.ELU()", "'leaky_relu'"]
GRAPHS = ["signal.chain(4)", "signal.chain(30)", "signal.residual(signal.chain(2), 0.8)"]
TARGETS = ["tr.DKS(zeta=1.5)", "tr.TAT(eta=0.3)", "tr.TAT(tau=0.2)", "tr.EOC()"]
NUMBERS = ["0.1", "0.5", "1.0", "2.0"]
X = ["t(8, 6)", "(t(8, 6),)", "[t(8, 6)]", "{'input': t(8, 6)}"]
WHERE = ["'*'", "'1'", "nn.ReLU", "nn.Linear", "['1', nn.Linear]", "lambda name, module: '1' in name"]
SETTINGS = {"convention": CONVENTIONS, "neurons": NEURONS, "channel_dim": ["None", "1", "-1"]}

KEPT = "\t"  # the name of an argument without a name, which is not exchanged

# What is called; good values of its arguments that are always given, and of those that may be.
CALLS: list[tuple[str, dict[str, list[str]], dict[str, list[str]]]] = [
    ("entropy", {"": GOOD}, SETTINGS),
    ("entropy", {"": GOOD}, {}),
    ("tr.neuron_entropy", {"": GOOD}, SETTINGS),
    (
        "tr.differential_entropy",
        {"": GOOD},
        {"method": ["'gaussian'", "'knn'"], "k": ["1", "3"], "neurons": NEURONS, "channel_dim": ["None", "1", "-1"]},
    ),
    (
        "independence",
        {"": GOOD},
        {
            **{"neurons": NEURONS, "channel_dim": ["None", "1"], "k": ["1", "3"]},
            **{"most_neurons": ["4", "64"], "most_pairs": ["4"], "most_samples": ["64"]},
        },
    ),
    ("mutual_information", {"": ["t(9, 2)"], " ": ["t(9, 2)"]}, {"method": ["'knn'", "'gaussian'"], "k": ["1", "3"]}),
    ("tr.differential_entropy", {"": GOOD}, {"method": ["'gaussian'"], "neurons": NEURONS}),
    (
        "step",
        {"loss": ["t().abs()", "t()", "t().requires_grad_()", "t(1)"]},
        {
            **{"alpha": NUMBERS, "beta": NUMBERS, "alpha_min": NUMBERS, "where": WHERE, "inputs": X, "x": ["t(8, 6)"]},
            **SETTINGS,
        },
    ),
    (
        "tr.measure",
        {"": MODELS, " ": X},
        {"targets": ["torch.arange(8) % 3"], "loss": ["ce"], "where": WHERE, "independence": ["True"], **SETTINGS},
    ),
    (
        "tr.diagnose",
        {"": MODELS[:2], " ": X},
        {
            "targets": ["torch.arange(8) % 3"],
            "loss": ["ce"],
            "where": WHERE,
            "history": ["{0: tr.measure(plain(), t(8, 6))}"],
        },
    ),
    ("tr.predict", {"": MODELS[:2], " ": X}, {}),
    ("signal.read", {"": MODELS[:2], " ": X}, {}),
    ("signal.measured", {"": MODELS[:2], " ": X}, {}),
    ("tr.select", {"": MODELS}, {" where": WHERE, "inputs": X}),
    ("looked_up", {"": ["0", "'1'", "-1"]}, {}),
    (
        "tr.apply_",
        {"": MODELS, " ": ["tr.Init('he')", "tr.IC()", "tr.SELU()"]},
        {"where": ["nn.Linear"], "inputs": X, "dry_run": ["True"]},
    ),
    (
        "tr.apply_",
        {"": MODELS, " ": ["tr.Normalize('layer')", "tr.Residual('rezero')", "tr.Init('lsuv')"], "inputs": X},
        {"where": ["nn.Linear"], "dry_run": ["True"]},
    ),
    ("tr.apply_", {"": MODELS[:2], " ": TARGETS, "inputs": X}, {"dry_run": ["True"]}),
    (
        "tr.Init",
        {"scheme": ["'he'", "'default'", "'lsuv'", "'orthogonal'", "'suo'"]},
        {"nonlinearity": ["'relu'", "'tanh'"]},
    ),
    ("tr.Normalize", {"kind": ["'batch'", "'group'", "'layer'"]}, {"groups": ["None", "2"]}),
    ("tr.Residual", {"scale": ["'identity'", "'rezero'", "'fixup'"]}, {"layers": ["1", "2"]}),
    ("tr.SELU", {}, {"init": ["'lecun'", "None"]}),
    ("tr.IC", {}, {"keep": ["0.9", "1"], "dropout": ["'element'", "'channel'"], "batchnorm": ["'keep'"]}),
    ("tr.DKS", {}, {"zeta": ["1.5", "2"], "shortcut": ["0.5"], "init": ["None", "'suo'"], "batchnorm": ["'remove'"]}),
    ("tr.TAT", {}, {"eta": ["0.5"], "tau": ["0.5"], "shortcut": ["0.5"], "init": ["None"], "batchnorm": ["'remove'"]}),
    ("tr.EOC", {}, {"shortcut": ["0.5"], "init": ["None", "'gaussian'"], "batchnorm": ["'remove'"]}),
    ("signal.c_map", {"": ACTIVATIONS, " ": ["0.0", "0.5", "-0.5", "1.0"]}, {"q": NUMBERS}),
    ("signal.c_slope", {"": ACTIVATIONS}, {"c": ["0.5", "1.0"], "q": NUMBERS}),
    ("signal.c_curvature", {"": ["'tanh'", "'gelu'"]}, {"c": ["0.5", "1.0"], "q": NUMBERS}),
    ("signal.q_map", {"": ACTIVATIONS}, {"q": NUMBERS}),
    ("signal.q_slope", {"": ACTIVATIONS}, {"q": NUMBERS}),
    ("signal.mean", {"": ACTIVATIONS}, {"q": NUMBERS}),
    ("signal.kernel", {"": ACTIVATIONS, " ": ["0.5"]}, {"q": NUMBERS, "order": ["0", "1"]}),
    (
        "signal.expectation",
        {"": ["torch.tanh", "torch.relu", "lambda z: z**2"]},
        {"kinks": ["[0.0]", "()"], "tolerance": ["1e-9"]},
    ),
    ("signal.as_activation", {"": ACTIVATIONS}, {}),
    ("signal.solve", {"": ["'relu'", "'tanh'"], " ": TARGETS, "  ": GRAPHS}, {}),
    ("signal.chain", {"": ["1", "4", "50"]}, {}),
    ("signal.residual", {"": GRAPHS, " ": ["0.5", "1.0"]}, {}),
    ("signal.series", {"": GRAPHS, " ": GRAPHS}, {}),
    ("tr.ICLayer", {"": ["6", "3"]}, {"keep": ["0.5", "1.0"], "dropout": ["'element'"]}),
    ("ShapedActivation", {"": ["'tanh'", "'relu'"], " ": ["{'input_scale': 0.5}", "{'negative_slope': 0.1}"]}, {}),
    ("WeightedSum", {"": ["[0.6, 0.8]"]}, {}),
    (
        "stacked",
        {"models": ["[plain() for _ in range(3)]", "(plain(), plain(), plain())"], "x": ["t(3, 8, 6)"]},
        {"taps": ["['1']", "['1', '3']", "[]"], "neurons": NEURONS, "predict": ["t(8, 6)"]},
    ),
]


def tensors(rng: random.Random) -> Case:
    """A call of the library: half of them as they should be, the others with one or two arguments exchanged."""
    name, always, sometimes = rng.choice(CALLS)
    arguments = {key: rng.choice(values) for key, values in always.items()}
    arguments |= {key: rng.choice(values) for key, values in sometimes.items() if rng.random() < 0.4}
    if rng.random() < 0.5:
        keys = [key for key in (*always, *sometimes) if key != KEPT]
        for key in rng.sample(keys, min(rng.choice([1, 1, 2]), len(keys))):
            arguments[key] = _exchanged(rng, arguments.get(key) or rng.choice(sometimes[key]))
    given = [value if not key.strip() else f"{key.strip()}={value}" for key, value in arguments.items()]
    text = f"{name}({', '.join(given)})"

    def run(accept: Callable[[], None]) -> None:
        try:
            result = eval(compile(text, "<fuzz>", "eval"), globals())
            if isinstance(result, Tensor) and result.requires_grad and result.grad_fn is not None:
                result.sum().backward()
            str(result)
        except (TrainabilityError, Fault):
            raise
        except Exception as error:
            if is_the_users(error):
                raise Users from error
            raise
        accept()

    return Case(text, run)


def _exchanged(rng: random.Random, value: str) -> str:
    """Something else in the place of an argument: anything, or what is nearly of the kind."""
    if rng.random() < 0.3:
        return rng.choice(JUNK)
    if "t(" in value and not value.startswith(("tr.", "signal.")):
        return _tensor(rng, value)
    for begins, values in NEARLY.items():
        if value.startswith(tuple(begins.split())):
            return rng.choice(values)
    return rng.choice(JUNK)


def _tensor(rng: random.Random, value: str) -> str:
    """Another tensor, or a container of tensors where there was one; in half of them the shape stays."""
    kept = re.search(r"\bt\(([\d, ]*)", value)
    sizes = [
        (),
        (0,),
        (1,),
        (2,),
        (8,),
        (1, 6),
        (2, 6),
        (8, 0),
        (0, 6),
        (8, 6, 1),
        (3, 8, 6),
        (2, 3, 4, 5),
        (300, 2),
        (1,) * 6,
    ]
    shape = ", ".join(map(str, rng.choice(sizes))) if kept is None or rng.random() < 0.5 else kept[1].strip(" ,")
    options = [
        *([f"dtype={rng.choice(DTYPES)!r}"] if rng.random() < 0.5 else []),
        *([f"fill={rng.choice(FILLS)!r}"] if rng.random() < 0.4 else []),
        *([f"form={rng.choice(FORMS)!r}"] if rng.random() < 0.5 else []),
    ]
    made = f"t({', '.join([shape, *options] if shape else options)})"
    if value.startswith("t("):
        return made
    return rng.choice(
        [
            made,
            f"({made},)",
            f"[{made}, 'a']",
            f"{{'input': {made}}}",
            f"{{1: {made}}}",
            f"({made}, {made})",
            "{}",
            "()",
        ]
    )


# What is nearly of a kind, by how good values of the kind begin.
NEARLY: dict[str, list[str]] = {
    "'": ["''", "'Paper'", "'he '", "'\\ud800'", "'a' * 5000", "b'paper'", "None", "1", "['paper']", "{'a': 1}", "t()"],
    "0 1 2 3 4 5 6 -": [
        *("-1", "0", "0.0", "1", "2", "7", "10**6", "10**30", "2.5", "1e-320", "1e308", "float('nan')"),
        *("float('inf')", "-2.0"),
        *("True", "'a'", "'1'", "None", "1j", "t()", "t(1)", "t(2)", "np.float32(0.5)", "np.int64(2)", "[1]"),
        *("t(dtype='complex64')",),
    ],
    "tr. signal.": [
        *("tr.TAT", "tr.LBE", "tr.LBE(plain())", "None", "'he'", "tr.Init()", "{'remedy': 'init'}", "signal.chain(1)"),
        *("signal.SignalGraph(())", "signal.SignalGraph((signal.Node('input'),))", "signal.DKSTarget(2)"),
        *("signal.chain(3).nodes",),
    ],
    "plain nn.Sequential": [
        *("nn.Sequential()", "nn.ReLU()", "nn.Linear(6, 6)", "None", "'a'", "[plain()]"),
        *("nn.ModuleDict({'a': nn.ReLU()})", "plain(0)"),
        *("nn.Sequential(nn.Linear(6, 0), nn.ReLU(), nn.Linear(0, 6))", "own()", "plain(3, 6).to('meta')"),
        *("lambda x: x",),
        *("plain().half()", "plain().to(torch.complex64)", "nn.LazyLinear(3)", "nn.LSTM(6, 6)", "type(plain())"),
    ],
    "[plain (plain": [
        *("[]", "plain()", "[plain(), None]", "[plain(), plain(3)]", "[plain(), nn.ReLU()]", "[plain()] * 2"),
        *("[plain(), plain(2, 7)]"),
        *("nn.ModuleList([plain()])", "[own(), own()]", "[1]", "{'a': plain()}"),
    ],
    "ce": [
        "lambda o, t: o.sum() * 1j",
        "lambda o, t: o",
        "lambda o, t: None",
        "lambda o, t: 3.0",
        "lambda o, t: t",
        "'mse'",
        "3",
    ],
    "['1 []": ["['nothing']", "['']", "[3]", "[None]", "'1'", "['1', '1']", "[nn.ReLU]", "None"],
    "nn.R nn.L lambda ['1',": [
        "re.compile('1')",
        "[]",
        "['nothing']",
        "'['",
        "[[['1']]]",
        "int",
        "3",
        "[3]",
        "lambda name: True",
    ],
    "{0": ["[1]", "{0: 1}", "{'a': None}", "{}", "[(0, 1)]", "{0: tr.measure(plain(), t(8, 6))}"],
    "torch. lambda": [
        "lambda z: z.sum()",
        "lambda z: None",
        "lambda z: 1.0",
        "torch.sum",
        "nn.Softmax(-1)",
        "nn.BatchNorm1d(3)",
        "'nothing'",
    ],
    "()": ["[0.0, 'a']", "None", "0.0", "[float('nan')]", "t(3)", "[1e308]"],
}
