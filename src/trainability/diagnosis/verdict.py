"""A verdict in words: whether information gets through, where it dies, why, and what to do about it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from trainability.diagnosis.decay import predict_std
from trainability.diagnosis.labels import label_dependence
from trainability.errors import ArgumentTypeError
from trainability.flow import Flow, measure
from trainability.introspect.run import unwrap
from trainability.introspect.select import Where, select
from trainability.remedies import IC, TAT, Init, LBELoss, Normalize, Remedy, Residual
from trainability.remedies.registry import entry_of
from trainability.signal import Prediction, predict

# A layer whose neurons vary by a thirtieth of a unit has 0.01 nats; networks that train stay above that at the start.
SILENT = 0.01
# Permuting the labels changes a live gradient by about its own size; below a hundredth, labels hardly matter.
LABEL_BLIND = 0.01
_BETWEEN: tuple[Remedy, ...] = (Normalize("layer"), Residual(), IC())


@dataclass(frozen=True)
class Verdict:
    """The findings of `diagnose`. ``print`` shows all of it; ``healthy`` is the answer in one word.

    ``remedies`` are objects for `apply_`, in the order in which to try them, and ``advice`` is what else may help.
    ``fails_at`` is the layer from which on information no longer gets through: silent to the end, or not finite.
    """

    healthy: bool
    summary: str
    evidence: tuple[str, ...]
    remedies: tuple[Remedy, ...]
    advice: tuple[str, ...]
    not_computed: tuple[str, ...]
    flow: Flow | None = None
    fails_at: str | None = None
    label_dependence: float | None = None
    predicted_std: dict[str, float] = field(default_factory=dict)
    prediction: Prediction | None = None

    def __str__(self) -> str:
        sections = [
            ("Evidence", self.evidence),
            ("What to try, in this order", [*map(_usage, self.remedies), *self.advice]),
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
    """Put a model to the test, and say in words whether information gets through it, and why not.

    Put to the test are: where the batch entropy falls below 0.01 nats and stays there; whether the variance of the
    weights and the nonlinearity explain it (the standard deviation over the batch that they predict, layer by layer,
    beside the measured one); what kernel theory predicts from the scale of the weights alone (where inputs become
    indistinguishable, and where the signal dies or explodes); whether the gradient vanishes or explodes; and whether
    the gradient depends on the labels at all (the gradient for the true labels against that for permuted ones). A part
    that cannot be computed is named in the verdict and does not stop the others. The model is left as it was, to the
    bit.

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
    if where is not None:
        select(model, where)  # a wrong argument is an error, not a part that could not be computed
    if history is not None and not isinstance(history, Mapping):
        raise ArgumentTypeError(
            f"history is a dictionary of flows by step, not a {type(history).__name__}", code="wrong-type"
        )
    parts = _Parts()
    flow = parts.run("the flow of information", lambda: measure(model, inputs, targets, loss, where=where))
    if flow is None:
        flow = parts.run("the flow without gradients", lambda: measure(model, inputs, where=where), quiet=True)
    predicted = parts.run("the standard deviation that the weights predict", lambda: predict_std(model, inputs)) or {}
    if flow is not None and len(predicted) < 2:
        parts.missing.append(
            "whether the weights' variance explains it: needs nonlinearities as modules, one after each weight layer"
        )
    prediction = parts.run("what the kernels of its layers predict", lambda: predict(model, inputs))
    dependence: float | None = None
    if loss is None:
        parts.missing.append("gradients and their dependence on the labels: pass targets and loss")
    elif targets is None:
        parts.missing.append("the dependence on the labels: pass targets, to be permuted")
    else:
        dependence = parts.run("the dependence on the labels", lambda: label_dependence(model, inputs, targets, loss))
    verdict = _verdict(flow, predicted, dependence, history or {}, parts.missing)
    return verdict if prediction is None else _with_prediction(verdict, prediction)


class _Parts:
    """Runs parts of a diagnosis so that the failure of one is reported and the others go on."""

    def __init__(self) -> None:
        self.missing: list[str] = []

    def run(self, what: str, part: Callable[[], Any], quiet: bool = False) -> Any:
        try:
            return part()
        except Exception as error:  # the user's own model and loss run in there and may raise anything
            if not quiet:
                reason = (str(error).strip() or "no message").splitlines()[0]
                self.missing.append(f"{what}: {type(error).__name__}: {reason}")
            return None


def _verdict(
    flow: Flow | None,
    predicted: dict[str, float],
    dependence: float | None,
    history: Mapping[int, Flow],
    missing: list[str],
) -> Verdict:
    if flow is None:
        return Verdict(False, "No verdict: the model could not be measured.", (), (), (), tuple(missing))
    broken = next((layer for layer in flow if not math.isfinite(layer.entropy + layer.mean)), None)
    if broken is not None:
        return Verdict(
            False,
            f"The activations are not finite from layer {broken.name} on.",
            _explosion(flow),
            (Init("he"),),
            ("a lower learning rate", "gradient clipping"),
            tuple(missing),
            flow,
            broken.name,
        )
    silent = _silent_from(flow)
    blind = dependence is not None and dependence < LABEL_BLIND
    evidence = [_entropy_words(flow)]
    quiet = [layer.name for layer in flow.layers[:silent] if layer.entropy < SILENT]
    if quiet:
        named = ", ".join(quiet[:5]) + (", ..." if len(quiet) > 5 else "")
        evidence.append(f"Below {SILENT} nats though later layers are not, as on a branch that dies: {named}.")
    if silent is not None:
        evidence.append(_since(flow.layers[silent].name, history))
    explained, words = _weights_words(flow, predicted, silent)
    evidence += words
    fate, words = _gradient_words(flow)
    evidence += words
    if dependence is not None:
        evidence.append(
            f"Permuting the labels changes the gradient by {dependence:.2g} of its size: "
            + (
                "it does not depend on which label belongs to which input."
                if blind
                else "the labels reach the weights."
            )
        )
    remedies: tuple[Remedy, ...] = ()
    advice: tuple[str, ...] = ()
    if silent is not None:
        at = flow.layers[silent].name
        place = f"at layer {at} ({silent + 1} of {len(flow)})"
        summary = f"Information dies {place}: from there on all inputs look alike" + (
            ", and the gradient no longer depends on the labels." if blind else "."
        )
        # Those that change the model come first, and of these the one that fits what explains the silence.
        first = (Init("he"), TAT()) if explained else (TAT(), Init("he"))
        remedies = (*first, *_BETWEEN, LBELoss())
    elif blind:
        at, summary = None, "Information passes every layer, yet the gradient does not depend on the labels."
        advice = ("check that the targets belong to the inputs", "check the last layer and the loss")
    elif fate:
        at, summary = None, f"Information gets through all layers, but the gradient {fate} on its way back."
        remedies, advice = (Init("he"), *_BETWEEN), ("gradient clipping, where it explodes",)
    else:
        at, summary = None, "Information gets through all layers."
    healthy = silent is None and not blind and not fate
    return Verdict(healthy, summary, tuple(evidence), remedies, advice, tuple(missing), flow, at, dependence, predicted)


def _with_prediction(verdict: Verdict, prediction: Prediction) -> Verdict:
    """The verdict with what the weights alone say of size and angle."""
    fates = [
        (prediction.dies_at, "the signal dies: its mean square falls below a ten-thousandth of that of the inputs"),
        (prediction.explodes_at, "the signal explodes: its mean square exceeds that of the inputs ten thousand times"),
        (prediction.collapses_at, "inputs become indistinguishable: the cosine between two exceeds 0.999"),
    ]
    words = [f"The scale of the weights predicts that from {path} on {fate}." for path, fate in fates if path]
    if not words and prediction.layers:
        first, last = prediction.start, prediction.layers[-1]
        words = [
            f"The scale of the weights predicts that the signal gets through: mean square {first.q:.3g} at the inputs "
            f"and {last.q:.3g} at {last.path or 'the end'}, cosine between two inputs {first.c:.3g} and {last.c:.3g}."
        ]
    if prediction.stopped:
        words.append(prediction.stopped)
    return replace(verdict, evidence=(*verdict.evidence, *words), prediction=prediction)


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
        f"Batch entropy is {first.entropy:.3g} nats at {first.name}, {lowest.entropy:.2g} at its lowest "
        f"({lowest.name}) and {last.entropy:.2g} at {last.name}; the standard deviation over the batch goes from "
        f"{first.std:.2g} to {last.std:.2g}."
    )


def _since(name: str, history: Mapping[int, Flow]) -> str:
    """Since when ``name`` has been silent without a break, by the flows measured earlier."""
    steps = sorted(history)
    if not steps:
        return f"{name} is silent at the weights it has now; pass history= to learn since when."
    silent = [any(layer.name == name and layer.entropy < SILENT for layer in history[step]) for step in steps]
    begin = len(steps)
    while begin and silent[begin - 1]:
        begin -= 1
    if begin == len(steps):
        return f"{name} fell silent after step {steps[-1]}."
    if begin == 0 and steps[0] == 0:
        return f"{name} was silent at initialization, before any training."
    if begin == 0:
        return f"{name} was silent at step {steps[0]} already, the first one known."
    return f"{name} has been silent since step {steps[begin]}; at step {steps[begin - 1]} it was not."


def _weights_words(flow: Flow, predicted: dict[str, float], silent: int | None) -> tuple[bool, list[str]]:
    measured = {layer.name: layer.std for layer in flow}
    both = [name for name in predicted if name in measured and measured[name] > 0]
    if len(both) < 2:
        return False, []
    # Deep in a dead network rounding noise is all that is left, so the comparison ends where the signal does.
    alive = [name for name in both if predicted[name] > 1e-6 * predicted[both[0]]]
    name = (
        alive[-1] if silent is None else next((n for n in alive if measured[n] < 0.05 * measured[both[0]]), alive[-1])
    )
    steps = both.index(name)
    if steps == 0:
        return False, []
    factor = (predicted[name] / predicted[both[0]]) ** (1 / steps)
    seen = (measured[name] / measured[both[0]]) ** (1 / steps)
    agrees = abs(math.log(factor) - math.log(seen)) < 0.25
    explained = agrees and factor < 0.9 and silent is not None
    words = (
        f"The weights' variance predicts a factor of {factor:.2f} per layer in the standard deviation up to {name}; "
        f"measured is {seen:.2f}"
    )
    if explained:
        return True, [words + ": the weights are too small, and that explains it."]
    if agrees:
        return False, [words + "."]
    return False, [words + ": something else than the weights' variance (a shortcut, correlated inputs) is at work."]


def _gradient_words(flow: Flow) -> tuple[str, list[str]]:
    """``"vanishes"``, ``"explodes"`` or ``""``, and the evidence."""
    norms = [(layer.name, layer.gradient) for layer in flow if layer.gradient is not None]
    if len(norms) < 2:
        return "", []
    (first, low), (last, high) = norms[0], norms[-1]
    if high == 0:
        return "vanishes", [f"The gradient of {last} is exactly 0."]
    ratio = low / high
    fate = "vanishes" if ratio < 1e-3 else "explodes" if not ratio < 1e3 else ""
    words = f"{fate} on its way back" if fate else "gets back"
    return fate, [f"The gradient {words}: norm {high:.2g} at {last}, {low:.2g} at {first}."]


def _explosion(flow: Flow) -> tuple[str, ...]:
    finite = [layer for layer in flow if math.isfinite(layer.std)]
    if not finite:
        return ("Not even the first layer is finite: check the inputs and the weights for NaN.",)
    return (
        f"The standard deviation over the batch grows from {finite[0].std:.2g} to {finite[-1].std:.2g} "
        f"at {finite[-1].name}.",
    )


def _usage(remedy: Remedy) -> str:
    """A remedy in words and in code.

    >>> _usage(Init("he"))
    "He initialization: apply_(model, Init(scheme='he'), inputs=inputs)"
    """
    found = entry_of(remedy)
    given = {key: getattr(remedy, key) for key in (*found.preset, *found.settings)}
    shown = [
        f"{key}={value!r}"
        for key, value in given.items()
        if (value is not None if key in found.preset else value != found.settings[key])
    ]
    if "loss" in found.sets:
        return f"{found.title}: lbe = LBE({', '.join(['model', *shown])}); loss = lbe(loss)"
    return f"{found.title}: apply_(model, {type(remedy).__name__}({', '.join(shown)}), inputs=inputs)"
