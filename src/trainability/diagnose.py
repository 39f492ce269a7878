"""A verdict in words: whether information gets through, where it dies, why, and what to do about it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainability.activations import is_nonlinearity, is_weight_layer
from trainability.flow import Flow, first_not_finite, measure
from trainability.layers import Where
from trainability.moments import samples, statistics
from trainability.observe import call, observing, unwrap
from trainability.taps import Taps, activation_of

# A layer whose neurons vary by a thirtieth of a unit has 0.01 nats; networks that train stay above that at the start.
SILENT = 0.01
# Permuting the labels changes a live gradient by about its own size; below a hundredth, labels hardly matter.
LABEL_BLIND = 0.01
_NORMALISATION = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Verdict:
    """What `diagnose` found. ``print`` shows all of it; ``healthy`` is the answer in one word."""

    healthy: bool
    summary: str
    evidence: tuple[str, ...]
    remedies: tuple[str, ...]
    not_computed: tuple[str, ...]
    flow: Flow | None = None
    dies_at: str | None = None
    label_dependence: float | None = None
    predicted_std: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        sections = [
            ("Evidence", self.evidence),
            ("What to try, in this order", self.remedies),
            ("Not computed", self.not_computed),
        ]
        lines = [self.summary]
        for title, items in sections:
            if items:
                lines += [f"{title}:", *(f"  - {item}" for item in items)]
        return "\n".join(lines)

    __repr__ = __str__


def diagnose(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    *,
    where: Where | None = None,
    history: Mapping[int, Flow] | None = None,
) -> Verdict:
    """Say in words whether information gets through a model, and why not.

    Put to the test are: where the batch entropy falls below 0.01 nats and stays there; whether the variance of the
    weights and the nonlinearity explain it (the standard deviation over the batch that they predict, layer by layer,
    beside the measured one); whether the gradient vanishes or explodes; and whether the gradient depends on
    the labels at all (the gradient for the true labels against that for permuted ones). A part that cannot be
    computed is named in the verdict and does not stop the others. The model is left as it was, to the bit.

    Args:
        model: any module, in the mode in which it is trained.
        inputs: a batch, as in `trainability.measure`; the label test wants several samples per class.
        targets: labels, one per sample along dimension 0.
        loss: ``loss(output, targets)``, a scalar.
        where: which layers.
        history: flows measured earlier, by training step, to tell since when.

    Reference: Peer et al. (2022), section 3, for the claim about labels.

    >>> import torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> deep = nn.Sequential(*[m for _ in range(20) for m in (nn.Linear(64, 64), nn.ReLU())], nn.Linear(64, 2))
    >>> verdict = diagnose(deep, torch.randn(64, 64), torch.arange(64) % 2, nn.functional.cross_entropy)
    >>> verdict.healthy, verdict.label_dependence < 0.01
    (False, True)
    """
    model = unwrap(model)
    parts = _Parts()
    flow = parts.run("the flow of information", lambda: measure(model, inputs, targets, loss, where=where))
    if flow is None:
        flow = parts.run(
            "the flow without gradients", lambda: measure(model, inputs, where=where), quiet=True
        )
    predicted = (
        parts.run("the standard deviation that the weights predict", lambda: predict_std(model, inputs, flow))
        or {}
    )
    dependence: float | None = None
    if targets is None or loss is None:
        parts.missing.append("gradients and their dependence on the labels: pass targets and loss")
    else:
        dependence = parts.run(
            "the dependence on the labels", lambda: label_dependence(model, inputs, targets, loss)
        )
    return _verdict(flow, predicted, dependence, history or {}, parts.missing)


class _Parts:
    """Runs parts of a diagnosis so that the failure of one is reported and the others go on."""

    def __init__(self) -> None:
        self.missing: list[str] = []

    def run(self, what: str, part: Callable[[], Any], quiet: bool = False) -> Any:
        try:
            return part()
        except Exception as error:  # the user's own model and loss run in there and may raise anything
            if not quiet:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
                self.missing.append(f"{what}: {type(error).__name__}: {reason}")
            return None


def label_dependence(
    model: nn.Module, inputs: Any, targets: Tensor, loss: Callable[[Any, Any], Tensor], permutations: int = 3
) -> float:
    """How much the gradient of the weights depends on which label belongs to which input.

    The root mean square over permutations of |g(y) − g(permuted y)| / |g(y)|, over all weight matrices. 0: the
    gradient sees only how often each class occurs. About 1 and more: the labels matter.

    >>> import torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> x, y = torch.randn(64, 8), torch.arange(64) % 2
    >>> label_dependence(nn.Linear(8, 2), x, y, nn.functional.cross_entropy) > 0.5
    True
    """
    if not isinstance(targets, Tensor) or targets.dim() == 0 or len(targets) < 2:
        raise ValueError(
            "the labels must be a tensor with one entry per sample along dimension 0, to be permuted"
        )
    weights = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    if not weights:
        raise ValueError("no weight matrix requires a gradient; the model is frozen")

    def gradient(labels: Tensor) -> Tensor:
        with (
            observing(model),
            torch.enable_grad(),
        ):  # the same random state, hence the same dropout, every time
            value = loss(call(model, inputs), labels)
            parts = torch.autograd.grad(value, weights, allow_unused=True)
        return torch.cat([g.double().flatten() for g in parts if g is not None])

    generator = torch.Generator().manual_seed(0)
    true = gradient(targets)
    size = true.norm().item()
    if not math.isfinite(size) or size == 0:
        raise ValueError(f"the gradient is {size}")
    squares = []
    for _ in range(permutations):
        order = torch.randperm(len(targets), generator=generator).to(targets.device)
        squares.append(((gradient(targets[order]) - true).norm().item() / size) ** 2)
    return math.sqrt(sum(squares) / len(squares))


def predict_std(model: nn.Module, inputs: Any, flow: Flow | None = None) -> dict[str, float]:
    """Standard deviation over the batch of every nonlinearity's output, as the weights' variance predicts it.

    From one nonlinearity to the next, with fan-in n, weights of variance Var w and nonlinearity φ, differences
    between inputs grow by the factor sqrt(n Var w E[φ'(z)²]), z Gaussian with the mean and standard deviation measured
    before φ. Starts from the measured value of the first nonlinearity; stops where a layer is not one weight layer
    followed by one nonlinearity, since the factor of a normalisation or of several layers is not of this form.

    Reference: Poole et al. (2016), eq. 7 (χ); Schoenholz et al. (2017).

    >>> import torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> deep = nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(512, 512), nn.ReLU())])
    >>> std = list(predict_std(deep, torch.randn(256, 512)).values())
    >>> round(std[1] / std[0], 2)  # PyTorch's default: Var w = 1/(3n), so sqrt(1/6)
    0.41
    """
    modules = dict(model.named_modules())
    watched = {
        path: module
        for path, module in modules.items()
        if is_weight_layer(module) or is_nonlinearity(module) or isinstance(module, _NORMALISATION)
    }
    reader = _OrderReader()
    with observing(model), torch.no_grad(), Taps(model, watched, reader):
        call(model, inputs)
    predicted: dict[str, float] = {}
    previous: float | None = None
    between: list[str] = []
    for path, mean, std, spread in reader.readings:
        if not is_nonlinearity(modules[path]):
            between.append(path)
            before = (mean, spread)
            continue
        if previous is None and not predicted:
            previous = std
        elif previous is not None and len(between) == 1 and is_weight_layer(modules[between[0]]):
            previous *= math.sqrt(_gain(modules[between[0]], modules[path], *before))
        else:
            break
        predicted[path] = previous
        between = []
    return predicted


class _OrderReader:
    """Mean, standard deviation over the batch, and standard deviation of all values, in the order of execution."""

    def __init__(self) -> None:
        self.readings: list[tuple[str, float, float, float]] = []

    def begin(self, model: nn.Module) -> None:
        """Nothing is carried over."""

    def read(self, path: str, call: int, activation: Tensor | None) -> None:
        """Record one layer."""
        a = activation_of(activation)
        if a is not None and a.numel():
            _, variance = statistics(samples(a))
            values = a.float()
            self.readings.append(
                (path, values.mean().item(), variance.mean().sqrt().item(), values.std().item())
            )


def _gain(weight_layer: nn.Module, nonlinearity: nn.Module, mean: float, spread: float) -> float:
    """The factor n Var w E[φ'(mean + spread z)²]."""
    weight = weight_layer.weight
    assert isinstance(weight, Tensor)
    fan_in = weight[0].numel()
    return (
        fan_in * weight.detach().double().var(correction=0).item() * _slope_square(nonlinearity, mean, spread)
    )


def _slope_square(nonlinearity: nn.Module, mean: float, spread: float) -> float:
    """E[φ'(mean + spread z)²] over the 2,000 midpoints of equal probability of a Gaussian z."""
    like = next(nonlinearity.parameters(), torch.empty(0))
    with torch.enable_grad():
        p = (torch.arange(2000, dtype=torch.float32, device=like.device) + 0.5) / 2000
        z = (mean + spread * torch.special.ndtri(p)).requires_grad_(True)
        (slope,) = torch.autograd.grad(nonlinearity(z + 0.0).sum(), z)
    return float(slope.double().square().mean())


def _verdict(
    flow: Flow | None,
    predicted: dict[str, float],
    dependence: float | None,
    history: Mapping[int, Flow],
    missing: list[str],
) -> Verdict:
    if flow is None:
        return Verdict(False, "No verdict: the model could not be measured.", (), (), tuple(missing))
    broken = first_not_finite(flow)
    if broken is not None:
        return Verdict(
            False,
            f"The activations are not finite from layer {broken.name} on.",
            _explosion(flow),
            (
                "lower the weights' variance: apply_(model, Init('he'))",
                "a lower learning rate",
                "gradient clipping",
            ),
            tuple(missing),
            flow,
            broken.name,
        )
    silent = _silent_from(flow)
    blind = dependence is not None and dependence < LABEL_BLIND
    evidence = [_entropy_words(flow)]
    if silent is not None:
        evidence.append(_since(flow.layers[silent].name, history))
    explained, words = _weights_words(flow, predicted, silent)
    evidence += words
    evidence += _gradient_words(flow)
    if dependence is not None:
        evidence.append(
            f"Permuting the labels changes the gradient by {dependence:.2g} of its size: "
            + (
                "it does not depend on which label belongs to which input."
                if blind
                else "the labels reach the weights."
            )
        )
    if silent is not None:
        at = flow.layers[silent].name
        place = f"at layer {at} ({silent + 1} of {len(flow)})"
        summary = f"Information dies {place}: from there on all inputs look alike" + (
            ", and the gradient no longer depends on the labels." if blind else "."
        )
        remedies = _remedies(explained)
    elif blind:
        at, summary = None, "Information passes every layer, yet the gradient does not depend on the labels."
        remedies = ("check that the targets belong to the inputs", "check the last layer and the loss")
    else:
        at, summary, remedies = None, "Information gets through all layers.", ()
    healthy = silent is None and not blind
    return Verdict(
        healthy, summary, tuple(evidence), remedies, tuple(missing), flow, at, dependence, predicted
    )


def _silent_from(flow: Flow) -> int | None:
    """Index of the first reading from which on every entropy is below SILENT."""
    index = len(flow)
    while index and flow.layers[index - 1].entropy < SILENT:
        index -= 1
    return index if index < len(flow) else None


def _entropy_words(flow: Flow) -> str:
    first, last = flow.layers[0], flow.layers[-1]
    lowest = min(flow, key=lambda layer: layer.entropy)
    return (
        f"Batch entropy is {first.entropy:.3g} nats at {first.name}, {lowest.entropy:.2g} at its lowest ({lowest.name}) and "
        f"{last.entropy:.2g} at {last.name}; the standard deviation over the batch goes from {first.std:.2g} to {last.std:.2g}."
    )


def _since(name: str, history: Mapping[int, Flow]) -> str:
    steps = sorted(history)
    dead = [
        step for step in steps if (at := _silent_from(history[step])) is not None and at < len(history[step])
    ]
    if not steps:
        return f"{name} is silent at the weights it has now; pass history= to learn since when."
    if not dead:
        return f"{name} fell silent after step {steps[-1]}."
    if dead[0] == 0:
        return "It was so at initialisation, before any training."
    alive = max((step for step in steps if step < dead[0]), default=None)
    return f"It has been so since step {dead[0]}" + (
        f"; at step {alive} information still got through." if alive is not None else "."
    )


def _weights_words(flow: Flow, predicted: dict[str, float], silent: int | None) -> tuple[bool, list[str]]:
    measured = {layer.name: layer.std for layer in flow}
    both = [name for name in predicted if name in measured and measured[name] > 0]
    if len(both) < 2:
        return False, []
    # Deep in a dead network rounding noise is all that is left, so the comparison ends where the signal does.
    alive = [name for name in both if predicted[name] > 1e-6 * predicted[both[0]]]
    name = (
        alive[-1]
        if silent is None
        else next((n for n in alive if measured[n] < 0.05 * measured[both[0]]), alive[-1])
    )
    steps = both.index(name)
    if steps == 0:
        return False, []
    factor = (predicted[name] / predicted[both[0]]) ** (1 / steps)
    seen = (measured[name] / measured[both[0]]) ** (1 / steps)
    agrees = abs(math.log(factor) - math.log(seen)) < 0.25
    explained = agrees and factor < 0.9
    words = (
        f"The weights' variance predicts a factor of {factor:.2f} per layer in the standard deviation up to {name}; "
        f"measured is {seen:.2f}"
    )
    if explained:
        return True, [words + ": the weights are too small, and that explains it."]
    if agrees:
        return False, [words + "."]
    return False, [
        words + ": something else than the weights' variance (a shortcut, correlated inputs) is at work."
    ]


def _gradient_words(flow: Flow) -> list[str]:
    norms = [(layer.name, layer.gradient) for layer in flow if layer.gradient is not None]
    if len(norms) < 2:
        return []
    (first, low), (last, high) = norms[0], norms[-1]
    if high == 0:
        return [f"The gradient of {last} is exactly 0."]
    ratio = low / high
    tendency = (
        "vanishes on its way back"
        if ratio < 1e-3
        else "explodes on its way back"
        if ratio > 1e3
        else "gets back"
    )
    return [f"The gradient {tendency}: norm {high:.2g} at {last}, {low:.2g} at {first}."]


def _explosion(flow: Flow) -> tuple[str, ...]:
    finite = [layer for layer in flow if math.isfinite(layer.std)]
    if not finite:
        return ("Not even the first layer is finite: check the inputs and the weights for NaN.",)
    return (
        f"The standard deviation over the batch grows from {finite[0].std:.2g} to {finite[-1].std:.2g} at {finite[-1].name}.",
    )


def _remedies(explained: bool) -> tuple[str, ...]:
    initialise = "initialise for the nonlinearity: apply_(model, Init('he')) for ReLU networks"
    regularise = "regularise the flow while training: lbe = LBE(model); loss = lbe(loss)"
    rest = "normalisation or shortcuts between the layers"
    return (initialise, regularise, rest) if explained else (regularise, initialise, rest)
