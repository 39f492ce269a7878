"""The flow of information through a model on one batch: `measure`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainability.dependence.pairs import Independence, independence as independence_of
from trainability.entropy import Convention, entropy_constant, entropy_from_variance, is_activation
from trainability.errors import (
    ArgumentError,
    ArgumentTypeError,
    UnknownIndexError,
    UnknownKeyError,
    UnsupportedModelError,
    check_flag,
)
from trainability.introspect.hooks import Taps, reading_name, tensors_in
from trainability.introspect.readings import OneCall
from trainability.introspect.run import call, observing, unwrap
from trainability.introspect.select import DID_NOT_RUN, Selection, Where, select
from trainability.moments import Neurons, careful_statistics, check_neurons, sample_count, samples

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


_LEAST = 9  # samples, below which nothing can be said of pairs


@dataclass(frozen=True)
class LayerFlow:
    """The information that one layer passed on.

    ``entropy`` is the batch entropy in nats; ``mean`` the mean of all its values; ``std`` the root mean square
    over neurons of their standard deviation over the batch; ``dead`` the share of neurons that gave every input
    the same value; ``gradient`` the Frobenius norm of dloss/dactivation, ``None`` where no gradient was asked for or
    none arrives; ``independence`` how dependent its neurons are, where it was asked for and they vary.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    entropy: float
    mean: float
    std: float
    dead: float
    gradient: float | None = None
    independence: Independence | None = None


@dataclass(frozen=True)
class Flow:
    """The flow of a model on a batch: one `LayerFlow` per reading, in the order in which they ran.

    ``skipped`` has the reason for every reading that is missing, and ``notes`` are remarks on those that are there.
    """

    layers: tuple[LayerFlow, ...]
    skipped: dict[str, str]
    selection: Selection
    convention: Convention
    neurons: Neurons
    loss: float | None = None
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[LayerFlow]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, key: int | str) -> LayerFlow:
        if not isinstance(key, str):
            if isinstance(key, bool) or not isinstance(key, int):
                raise ArgumentTypeError(f"a reading is found by its name or number, not by {key!r}", code="wrong-type")
            if not -len(self) <= key < len(self):
                raise UnknownIndexError(f"reading {key} of a flow with {len(self)} readings", code="unknown-reading")
            return self.layers[key]
        for layer in self.layers:
            if layer.name == key:
                return layer
        raise UnknownKeyError(
            f"no reading named {key!r}; there are {', '.join(layer.name for layer in self.layers)}",
            code="unknown-reading",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts and numbers, ready for JSON."""
        return {
            "layers": [{**asdict(layer), "shape": list(layer.shape)} for layer in self.layers],
            "skipped": dict(self.skipped),
            "notes": list(self.notes),
            "convention": self.convention,
            "neurons": self.neurons,
            "loss": self.loss,
        }

    def plot(self) -> "Figure":
        """Draw entropy, standard deviation and gradient norm per layer (needs plotly)."""
        from trainability.report.layer_plot import layer_figure

        panels: list[tuple[str, list[float | None], str]] = [
            ("batch entropy, nats", [layer.entropy for layer in self], "linear"),
            ("std over the batch", [layer.std for layer in self], "log"),
        ]
        gradients = [layer.gradient for layer in self]
        if any(gradient is not None for gradient in gradients):
            panels.append(("gradient norm", gradients, "log"))
        return layer_figure([layer.name for layer in self], panels)

    def __repr__(self) -> str:
        columns: dict[str, Callable[[LayerFlow], str]] = {
            "layer": lambda layer: layer.name,
            "kind": lambda layer: layer.kind,
            "shape": lambda layer: "×".join(map(str, layer.shape)),
            "entropy": lambda layer: f"{layer.entropy:.4f}",
            "mean": lambda layer: f"{layer.mean:.3g}",
            "std": lambda layer: f"{layer.std:.3g}",
            "dead": lambda layer: f"{layer.dead:.0%}",
        }
        if any(layer.gradient is not None for layer in self):
            columns["gradient"] = lambda layer: "-" if layer.gradient is None else f"{layer.gradient:.3g}"
        if any(layer.independence is not None for layer in self):
            for title, key in (("|corr|", "correlation"), ("MI gauss, nats", "gaussian"), ("MI knn, nats", "knn")):
                columns[title] = partial(_pair_number, key)
        table = [[*columns], *([shown(layer) for shown in columns.values()] for layer in self)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]
        lines += [f"skipped {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join([*lines, *(f"note {note}" for note in self.notes)])


def measure(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    *,
    where: Where | None = None,
    convention: Convention = "paper",
    neurons: Neurons = "position",
    channel_dim: int | None = None,
    independence: bool = False,
) -> Flow:
    """Measure how much information every layer of a model passes on, on one batch.

    The model runs in the mode it is in. Afterwards its mode, buffers, gradients and the random state are what they
    were, to the bit.

    Args:
        model: any module.
        inputs: a batch of at least two; a tensor means ``model(x)``, a tuple or list ``model(*x)``, a mapping
            ``model(**x)``.
        targets: second argument of ``loss``.
        loss: ``loss(output, targets)``, a scalar; adds the gradient norm of every layer.
        where: which layers (`trainability.select`); the default is every hidden nonlinearity.
        convention: the constant of the entropy (`trainability.batch_entropy`).
        neurons: what counts as a neuron (`trainability.batch_entropy`).
        channel_dim: as in `trainability.batch_entropy`.
        independence: whether to measure the dependence of pairs of neurons, too (`trainability.dependence.pairs`).

    Raises:
        ValueError: NaN in the input, ``where`` that matches nothing, or a batch of one.
        UnsupportedModelError: no selected layer ran, or none had an entropy.

    >>> import torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> deep = nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(64, 64), nn.ReLU())], nn.Linear(64, 2))
    >>> flow = measure(deep, torch.randn(256, 64))
    >>> flow[0].entropy > 0.5, flow[-1].entropy < 0.001  # PyTorch's default initialization lets it die
    (True, True)
    """
    model = unwrap(model)
    constant = entropy_constant(convention)
    check_neurons(neurons, channel_dim)
    _check_inputs(inputs)
    _check_values(model)
    check_flag("independence", independence)
    if loss is not None and not callable(loss):
        raise ArgumentTypeError(f"loss is a function of output and targets, not {loss!r}", code="wrong-type")
    selection = select(model, where, inputs=inputs)
    kinds = {place.name: place.kind or type(model.get_submodule(place.path)).__name__ for place in selection.places}
    reader = _FlowReader(kinds, constant, neurons, channel_dim, loss is not None, independence)
    value = None
    with observing(model), Taps(model, selection.places, reader), torch.set_grad_enabled(loss is not None):
        output = call(model, inputs)
        if loss is not None:
            result = loss(output, targets)
            if not isinstance(result, Tensor) or result.numel() != 1 or result.is_complex():
                what = type(result).__name__
                if isinstance(result, Tensor) and not result.is_nested:
                    what = f"{result.dtype} {tuple(result.shape)}"
                raise ArgumentError(
                    f"loss(output, targets) must return a tensor with one real value, not {what}",
                    code="loss-not-a-number",
                )
            value = float(result.detach())
            trained = [p for p in model.parameters() if p.requires_grad]
            if result.requires_grad and trained:  # past the readings, and accumulated nowhere
                torch.autograd.grad(result, trained, allow_unused=True)
    layers = reader.layers()
    skipped = reader.skipped | {path: DID_NOT_RUN for path in selection.paths if path not in reader.ran}
    if not layers:
        raise UnsupportedModelError(
            "",
            "no selected layer could be measured\n" + "\n".join(f"{k}: {v}" for k, v in skipped.items()),
            code="nothing-measured",
        )
    return Flow(
        layers,
        {**selection.unread, **(selection.skipped if where is not None else {}), **skipped},
        selection,
        convention,
        neurons,
        value,
        (
            *(f"{path}: {note}" for path, note in selection.notes.items()),
            *reader.notes,
            *([selection.remark] if selection.remark else []),
        ),
    )


class _FlowReader(OneCall):
    """Collects the statistics of every reading, and the norm of its gradient once a backward pass has come by."""

    def __init__(
        self,
        kinds: dict[str, str],
        constant: float,
        neurons: Neurons,
        channel_dim: int | None,
        gradients: bool,
        pairs: bool,
    ) -> None:
        self._kinds = kinds
        self._constant = constant
        self._neurons: Neurons = neurons
        self._channel_dim = channel_dim
        self._gradients = gradients
        self._pairs = pairs
        self._records: list[tuple[str, str, tuple[int, ...], Tensor, Independence | None]] = []
        self._norms: dict[str, Tensor] = {}
        self.skipped: dict[str, str] = {}
        self.notes: list[str] = []
        self.ran: set[str] = set()

    def read(self, path: str, call: int, activation: Tensor | None) -> None:
        """Reduce one activation to its statistics."""
        self.ran.add(path)
        name = reading_name(path, call)
        if not is_activation(activation):
            self.skipped[name] = "its output holds no floating-point tensor with values"
            return
        x = samples(activation.detach(), self._neurons, self._channel_dim)
        count = sample_count(x)
        if count < 2:
            self.skipped[name] = f"one sample per neuron (shape {tuple(activation.shape)}); two are the least"
            return
        mean, variance = careful_statistics(x)
        entropy = entropy_from_variance(variance, count, self._constant)
        first = x[:1] if x.dim() == 2 else x[:1, :, :1]
        constant = (x == first).all(0) if x.dim() == 2 else (x == first).all(0).all(-1)
        numbers = torch.stack([t.double().mean() for t in (entropy, mean, variance, constant)])
        pairs = None
        if self._pairs and count < _LEAST:
            self.notes.append(
                f"{name}: its independence was not measured, on {count} samples per neuron; {_LEAST} are the least"
            )
        elif self._pairs:
            pairs = independence_of(activation, neurons=self._neurons, channel_dim=self._channel_dim)
        self._records.append((name, self._kinds[path], tuple(activation.shape), numbers, pairs))
        if self._gradients and activation.requires_grad:
            activation.register_hook(partial(self._note_gradient, name))

    def _note_gradient(self, name: str, gradient: Tensor | None) -> None:
        if gradient is not None:
            self._norms[name] = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float64)

    def layers(self) -> tuple[LayerFlow, ...]:
        """Bring the numbers to the host."""
        layers = []
        for name, kind, shape, numbers, pairs in self._records:
            entropy, mean, variance, dead = numbers.tolist()
            gradient = float(self._norms[name]) if name in self._norms else None
            layers.append(LayerFlow(name, kind, shape, entropy, mean, variance**0.5, dead, gradient, pairs))
        return tuple(layers)


def _pair_number(key: str, layer: LayerFlow) -> str:
    return "-" if layer.independence is None else f"{getattr(layer.independence, key):.3f}"


def _check_inputs(inputs: Any) -> None:
    for position, tensor in enumerate(tensors_in(inputs)):
        where = "the input" if isinstance(inputs, Tensor) else f"tensor {position} of the input"
        if isinstance(inputs, Mapping):
            where = f"input {[key for key, value in inputs.items() if value is tensor]}"
        if tensor.is_meta:
            raise ArgumentError(f"{where} is on the meta device and has no values", code="no-values")
        if missing := _count_of_nan(tensor):
            raise ArgumentError(f"{where} contains NaN ({missing} of {tensor.numel()} values)", code="nan")


def _count_of_nan(tensor: Tensor) -> int:
    if not tensor.is_floating_point():
        return 0
    values = tensor.values() if tensor.is_nested and tensor.layout == torch.jagged else tensor
    if values.is_nested or values.layout != torch.strided:  # torch cannot tell for these
        return 0
    try:
        return int((values.float() if values.dtype.itemsize == 1 else values).isnan().sum())
    except NotImplementedError:  # torch cannot tell for these either, such as negated views of float8
        return 0


def _check_values(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if any(t is not None and t.is_meta for t in (*module._parameters.values(), *module._buffers.values())):
            raise UnsupportedModelError(
                path,
                "it is on the meta device and has no values; load its weights first",
                code="no-values",
            )
