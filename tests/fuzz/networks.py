"""Networks as people write them, each made from a list of names of its parts."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

N = 6  # features, everywhere


@dataclass
class Answer:
    """An output that is a dataclass."""

    name: str
    hidden: Tensor


class Part(nn.Module):
    """A linear layer, an activation, and what a subclass does with them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(N, N), nn.ReLU()

    def forward(self, x: Tensor) -> Any:
        return self.act(self.linear(x))


class Called(Part):
    """Activations that are called as functions."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.second = nn.Linear(N, N)
        del self.act

    def forward(self, x: Tensor) -> Tensor:
        return self.second(FUNCTIONS[self.name](self.linear(x)))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu,
    "torch.relu": torch.relu,
    ".relu()": lambda x: x.relu(),
    "relu_": lambda x: F.relu(x, inplace=True),
    "clamp": lambda x: x.clamp(min=0),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "swish": lambda x: x * torch.sigmoid(x),
    "softmax": lambda x: x.softmax(-1),
    "scaled": lambda x: 0.5 * F.relu(x),
    "square": lambda x: F.relu(x) ** 2,
    "glu": lambda x: F.glu(torch.cat([x, x], -1)),
    "norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "max": lambda x: x - x.max(-1, keepdim=True).values,
    "dropout": lambda x: F.dropout(F.relu(x), 0.1),
    "leaky": lambda x: F.leaky_relu(x, 0.2),
}


class Sum(Part):
    """A sum of branches."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "+=":
            y = self.linear(x)
            y += x
            return self.act(y)
        return cast(Tensor, SUMS[self.how](x, super().forward(x)))


SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+=": lambda x, y: x + y,
    "+": lambda x, y: x + y,
    "add": lambda x, y: torch.add(x, y, alpha=0.5),
    "after": lambda x, y: F.relu(x + y),
    "weighted": lambda x, y: 0.6 * x + 0.8 * y,
    "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    "stack": lambda x, y: torch.stack([x, y]).sum(0),
    "product": lambda x, y: x * y,
    "minus": lambda x, y: x - y,
    "mean": lambda x, y: (x + y) / 2,
    "detached": lambda x, y: x + y.detach(),
    "half": lambda x, y: torch.cat([x[..., : N // 2], y[..., N // 2 :]], -1),
}


class Dense(nn.Module):
    """Every layer takes the sum, or the concatenation, of all before."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.joined = joined
        self.layers = nn.ModuleList(nn.Linear(N * (k + 1) if joined else N, N) for k in range(3))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for layer in self.layers:
            seen.append(F.relu(layer(torch.cat(seen, -1) if self.joined else sum(seen[1:], seen[0]))))
        return seen[-1]


class Shared(Part):
    """A layer and an activation that are used twice."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


class Tied(Part):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(N, N)
        self.other.weight = self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.other(super().forward(x)))


class Noting(Part):
    """Attributes that forward changes."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.last, self.table = 0, None, {"a": 1}

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.last = super().forward(x)
        self.new = self.count
        return self.last


class Listing(Part):
    """A list and a dictionary that forward appends to."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.table: dict[str, int] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(self.seen))
        self.table[str(len(self.seen))] = 1
        return super().forward(x)


class Own(Part):
    """A module that is its own child."""

    def __init__(self) -> None:
        super().__init__()
        self._modules["me"] = self


class ReadOnly(Part):
    """A dictionary that cannot be written to."""

    def __init__(self) -> None:
        super().__init__()
        self.config: Mapping[str, int] = MappingProxyType({"a": 1})


TABLE: dict[str, int] = {"a": 1}


class SharedTable(Part):
    """A dictionary that several modules hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.table = Part(), {"a": 1}
        self.first.table = self.table
        self.everyones = TABLE


class Adding(Part):
    """Forward adds a module, a parameter and a buffer."""

    def forward(self, x: Tensor) -> Tensor:
        self.add_module("new", nn.Linear(N, N))
        self.register_parameter("scale", nn.Parameter(torch.ones(N)))
        self.register_buffer("shift", torch.zeros(N), persistent=False)
        return self.new(super().forward(x)) * self.scale + self.shift


class Deleting(Part):
    """Forward deletes a module."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(N, N)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if "out" in self._modules:
            y = self.out(y)
            del self.out
        return y


class Exchanging(Part):
    """Forward puts another parameter, and another activation, in the place of one."""

    def forward(self, x: Tensor) -> Tensor:
        self.linear.weight = nn.Parameter(self.linear.weight.detach() * 1.1)
        self.act = nn.Tanh()
        return super().forward(x)


class Moving(Part):
    """Forward changes a parameter in place."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.linear.weight.mul_(1.1)
        return super().forward(x)


class Averaging(Part):
    """A buffer that forward updates, in place and by another."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(N))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        self.mean.lerp_(x.detach().reshape(-1, N).mean(0).to(self.mean.dtype), 0.1)
        self.calls = self.calls + 1
        return super().forward(x)


class Scaled(Part):
    """A fixed matrix, and a learned scale, beside the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(N))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x @ self.matrix) * self.scale


class Masked(Part):
    """The weight is changed in forward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(F.linear(x, 0.5 * self.linear.weight, self.linear.bias))


class Random(Part):
    """Draws from torch and from Python."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn_like(x) * random.random())


class Deciding(Part):
    """Control flow that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if bool(x.sum() > -1e9) else x


class Wrapping(Part):
    """An inner module whose output is a tuple, a dictionary or a dataclass."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = Giving(how), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if isinstance(y, Answer):
            return y.hidden
        return cast(Tensor, y["hidden"] if isinstance(y, dict) else y[1])


class Giving(Part):
    """Gives more than a tensor."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        if self.how == "dict":
            return {"name": "a", "hidden": y, "none": None}
        return Answer("a", y) if self.how == "dataclass" else (3, y, [y])


class Checkpointed(Part):
    """Recomputed in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, checkpoint(super().forward, x, use_reentrant=False))


class Uncopied(Part):
    """Refuses to be copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise NotImplementedError("not to be copied")


class Falsy(nn.Sequential):
    """Is false."""

    def __bool__(self) -> bool:
        return False


class Raising(Part):
    """A property that raises, which dir() shows."""

    @property
    def missing(self) -> int:
        raise KeyError("not there yet")


class Strict(Part):
    """Takes no new attributes once it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["closed"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("closed") and name != "training":
            raise AttributeError(f"{name} cannot be set")
        super().__setattr__(name, value)


class Named(nn.Module):
    """Children of the names that remedies give to theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.ic, self.shortcut, self.selu = nn.Linear(N, N), nn.ReLU(), nn.Linear(N, N), nn.Tanh()
        for name in ("norm", "ic", "shortcut", "selu"):
            self.norm.add_module(name, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.selu(self.shortcut(self.ic(self.norm(x))))


class Gated(nn.Module):
    """A gate, recurrent layers or attention over the features."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.linear = how, nn.Linear(N, N)
        inner: dict[str, Callable[[], nn.Module]] = {
            "gate": lambda: nn.Linear(N, N),
            "lstm": lambda: nn.LSTM(1, 1, batch_first=True),
            "attention": lambda: nn.MultiheadAttention(1, 1, batch_first=True),
            "convolution": lambda: nn.Conv1d(1, 1, 3, padding=1),
            "transposed": lambda: nn.ConvTranspose1d(1, 1, 3, padding=1),
            "encoder": lambda: nn.TransformerEncoderLayer(2, 1, 4, batch_first=True),
            "bilinear": lambda: nn.Bilinear(N, N, N),
        }
        self.inner = inner[how]()

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.how == "gate":
            return cast(Tensor, torch.sigmoid(self.inner(x)) * y)
        if self.how == "bilinear":
            return cast(Tensor, self.inner(x, y))
        rows = y.reshape(-1, N)
        if self.how == "lstm":
            z = self.inner(rows.unsqueeze(-1))[0]
        elif self.how == "attention":
            z = self.inner(*[rows.unsqueeze(-1)] * 3)[0]
        elif self.how == "encoder":
            z = self.inner(rows.unflatten(1, (3, 2)))
        else:
            z = self.inner(rows.unsqueeze(1))
        return cast(Tensor, z.reshape(x.shape))


def _hooked(how: str) -> nn.Module:
    """A layer with a hook of the user's."""
    part = Part()
    if how == "removes itself":
        handles = [part.act.register_forward_hook(lambda *_: handles[0].remove())]
    elif how == "changes the output":
        part.act.register_forward_hook(lambda module, args, output: output * 0.9)
    elif how == "before":
        part.linear.register_forward_pre_hook(lambda module, args: (args[0] * 1.1,))
    elif how == "with names":
        part.register_forward_hook(lambda module, args, names, output: None, with_kwargs=True, always_call=True)
    elif how == "backward":
        part.register_full_backward_hook(lambda *_: None)
    else:
        part.register_state_dict_post_hook(lambda *_: None)
    return part


def _own_forward() -> nn.Module:
    """A forward that stands in the instance."""
    part = Part()
    inner = part.forward
    part.forward = lambda x: inner(x) * 1.0  # type: ignore[method-assign]
    return part


def _frozen() -> nn.Module:
    part = Part()
    part.linear.weight.requires_grad_(False)
    return part


def _with_gradients() -> nn.Module:
    part = Part()
    part.linear.weight.grad = torch.ones(N, N)
    return part


def _evaluating() -> nn.Module:
    return nn.Sequential(nn.Linear(N, N), nn.BatchNorm1d(N).eval(), nn.ReLU(), nn.Dropout(0.2).eval())


class Folded(nn.Module):
    """Layers over the rows of an input of any shape."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.inner(x.reshape(-1, N)).reshape(x.shape))


class Unused(nn.Module):
    """A layer that does not run, and parameters that belong to none."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(N, N), nn.ReLU()
        self.free = nn.ParameterList([torch.zeros(2)])

    def forward(self, x: Tensor) -> Tensor:
        return x


class Image(nn.Module):
    """Convolutions over the features as an image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 1)
        self.norm, self.act, self.pool = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.first(x.reshape(-1, 1, 2, 3))))
        return cast(Tensor, self.pool(self.second(y)).reshape(x.shape))


# Parts of networks: each maps (..., 6) to (..., 6).
PARTS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(N, N),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "softmax": lambda: nn.Softmax(-1),
    "rrelu": nn.RReLU,
    "dropout": lambda: nn.Dropout(0.1),
    "identity": nn.Identity,
    "layernorm": lambda: nn.LayerNorm(N),
    "rmsnorm": lambda: nn.RMSNorm(N),
    "batchnorm": lambda: Folded(nn.BatchNorm1d(N)),
    "no bias": lambda: nn.Linear(N, N, bias=False),
    "part": Part,
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(N, N)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(N, N)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(N, N)),
    "frozen": _frozen,
    "gradients": _with_gradients,
    "evaluating": lambda: Folded(_evaluating()),
    "own forward": _own_forward,
    "narrow": lambda: nn.Sequential(nn.Linear(N, 1), nn.ReLU(), nn.Linear(1, N)),
    "empty": lambda: nn.Sequential(nn.Linear(N, 0), nn.ReLU(), nn.Linear(0, N)),
    "nothing": nn.Sequential,
    "double": lambda: nn.Sequential(nn.Linear(N, N), nn.ModuleDict({"relu": nn.ReLU()})["relu"]),
    "unused": lambda: nn.Sequential(nn.Linear(N, N), Unused()),
    "falsy": lambda: Falsy(nn.Linear(N, N), nn.ReLU()),
    "image": Image,
    "dense sum": lambda: Dense(False),
    "dense": lambda: Dense(True),
    **{kind.__name__: kind for kind in (Shared, Tied, Noting, Listing, Own, ReadOnly, SharedTable, Adding, Deleting)},
    **{kind.__name__: kind for kind in (Exchanging, Moving, Averaging, Scaled, Masked, Random, Deciding, Checkpointed)},
    **{kind.__name__: kind for kind in (Uncopied, Raising, Strict, Named)},
    **{f"sum {how}": (lambda how=how: Sum(how)) for how in SUMS},
    **{f"call {name}": (lambda name=name: Called(name)) for name in FUNCTIONS},
    **{f"gives {how}": (lambda how=how: Wrapping(how)) for how in ("tuple", "dict", "dataclass")},
    **{
        f"inner {how}": (lambda how=how: Gated(how))
        for how in ("gate", "lstm", "attention", "convolution", "transposed", "encoder", "bilinear")
    },
    **{
        f"hook {how}": (lambda how=how: _hooked(how))
        for how in ("removes itself", "changes the output", "before", "with names", "backward", "state")
    },
}
PLAIN = ["linear", "relu", "part", "tanh", "gelu", "layernorm", "batchnorm", "dropout", "sum +", "call F.relu"]


class Net(nn.Module):
    """Parts in a row, called by names; the output is a tensor or more."""

    def __init__(self, parts: list[nn.Module], gives: str) -> None:
        super().__init__()
        self.names = [f"layer{k}" for k in range(len(parts))]
        for name, part in zip(self.names, parts, strict=True):
            self.add_module(name, part)
        self.head, self.gives = nn.Linear(N, 3), gives

    def forward(self, x: Tensor) -> Any:
        for name in self.names:
            x = getattr(self, name)(x)
        y = self.head(x)
        if self.gives == "features":
            return y, x
        return {"logits": y, "hidden": x} if self.gives == "dict" else y


def build(parts: list[str], form: str = "sequential") -> nn.Module:
    """A network of parts: an `nn.Sequential`, or a module with a forward of its own, in some condition."""
    torch.manual_seed(len(parts))
    made = [PARTS[name]() for name in parts]
    if form in ("net", "features", "dict"):
        return Net(made, form)
    if form == "repeated":
        return nn.Sequential(*made, *made, nn.Linear(N, 3))
    model = nn.Sequential(*made, nn.Linear(N, 3))
    return FORMS[form](model)


FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "sequential": lambda model: model,
    "eval": lambda model: model.eval(),
    "double": lambda model: model.double(),
    "bfloat16": lambda model: model.bfloat16(),
    "meta": lambda model: model.to("meta"),
    "nested": lambda model: nn.Sequential(nn.Sequential(model), nn.Identity()),
    "wrapped": nn.DataParallel,
    "lazy": lambda model: nn.Sequential(nn.LazyLinear(N), model),
    "frozen": lambda model: model.requires_grad_(False),
    "children": lambda model: nn.ModuleDict({"a": model}),
}
BUILT = ["sequential", "net", "features", "dict", "repeated", *FORMS]
