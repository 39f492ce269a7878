"""Networks made of parts, through everything that reads or changes a network; none may keep a trace of it."""

import contextlib
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import trainability as tr
from trainability.errors import TrainabilityError
from trainability.stack import ways
from trainability.stack.module import Stack

from .core import Case, Fault, Users, is_the_users, where
from .networks import BUILT, PARTS, PLAIN, build
from .traces import check, picture, world

REMEDIES = [
    *(f"tr.Init({scheme!r})" for scheme in ("he", "default", "lecun", "orthogonal", "delta-orthogonal", "suo", "lsuv")),
    *("tr.IC()", "tr.IC(keep=0.9, dropout='channel')", "tr.IC(batchnorm='keep')"),
    *(f"tr.Normalize({kind!r})" for kind in ("batch", "layer", "group", "weight")),
    *(f"tr.Residual({scale!r})" for scale in ("identity", "rezero", "skipinit", "fixup")),
    *("tr.Residual(layers=2)", "tr.SELU()", "tr.SELU(init=None)"),
]
SLOW = [  # those that record the network
    *("tr.DKS()", "tr.TAT(eta=0.3)", "tr.TAT()", "tr.EOC()", "tr.TAT(init=None)"),
    *("tr.DKS(zeta=3, batchnorm='remove')", "tr.TAT(shortcut=0.5)", "tr.EOC(batchnorm='remove')"),
]
WHERE = ["nn.Linear", "nn.ReLU", "'*'", "'layer0'", "'1'", "lambda path, module: len(path) > 2", "[nn.Conv2d, '0']"]
IDLE = ("lazy", "children")  # networks that do not run as they are
# Parts that are not run while a remedy is on: one keeps what a pass did to it, which no undo can know of; another puts
# a parameter in a place that weight normalization has taken.
NOT_RUN = {"Listing", "Exchanging"}


def models(rng: random.Random) -> Case:
    """A network and what is done with it."""
    if rng.random() < 0.5:
        parts = rng.choices(PLAIN, k=rng.randint(1, 6))
    else:
        parts = [rng.choice(rng.choice([PLAIN, list(PARTS)])) for _ in range(rng.randint(1, 6))]
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(list(PARTS)))
    form = rng.choice(["sequential", "net", "net", "sequential", *BUILT])
    batch = rng.choice([(8, 6), (8, 6), (8, 6), (16, 6), (8, 2, 6), (4, 3, 6)])
    act = rng.choices(list(ACTS), weights=[weight for _, weight in ACTS.values()])[0]
    options = ACTS[act][0](rng)
    if act == "stacked":  # is trained, and so keeps what a pass does to it
        parts = [part for part in parts if part != "Deleting"] or ["part"]
    text = f"{act}({parts!r}, {form!r}, {batch!r}{''.join(f', {value}' for value in options)})"
    if "Exchanging" in parts:  # see NOT_RUN
        text = text.replace("Normalize('weight')", "Normalize('layer')")

    def run(accept: Callable[[], None]) -> None:
        if not _runs(parts, form, batch):
            return
        try:
            eval(compile(text, "<fuzz>", "eval"), globals())
        except (TrainabilityError, Fault):
            raise
        except Exception as error:
            if form in IDLE and is_the_users(error):  # the others run without the package, so with it they have to
                raise Users from error
            raise
        accept()

    return Case(text, run)


def _runs(parts: list[str], form: str, batch: tuple[int, ...]) -> bool:
    """Whether the network runs without the package; one that does not is nothing to try the package on."""
    try:
        model = build(parts, form)
        if form not in IDLE:
            loss = ce(model(inputs(batch, form)), None)
            loss.backward() if loss.requires_grad else None
    except Exception:
        return False
    return True


def inputs(batch: tuple[int, ...], form: str) -> Tensor:
    """A batch for a network."""
    dtype = {"double": torch.float64, "bfloat16": torch.bfloat16}.get(form, torch.float32)
    return torch.randn(batch).to("meta" if form == "meta" else "cpu", dtype)


def ce(output: Any, targets: Any) -> Tensor:
    """A loss of whatever a network gives."""
    if isinstance(output, dict):
        output = output["logits"]
    output = (output[0] if isinstance(output, tuple) else output).reshape(-1, 3)
    targets = (
        torch.arange(len(output), device=output.device) % 3
        if targets is None
        else targets.repeat_interleave(len(output) // len(targets))
    )
    return nn.functional.cross_entropy(output.float(), targets)


def labels(batch: tuple[int, ...], form: str) -> Tensor:
    """A label per sample."""
    return torch.arange(batch[0], device="meta" if form == "meta" else "cpu") % 3


def measured(parts: list[str], form: str, batch: tuple[int, ...], **options: Any) -> None:
    """Measure, with or without gradients."""
    _leaves(lambda model, x: tr.measure(model, x, **options), parts, form, batch, "measure")


def learned(parts: list[str], form: str, batch: tuple[int, ...], **options: Any) -> None:
    """Measure with gradients."""
    y = labels(batch, form)
    _leaves(lambda model, x: tr.measure(model, x, y, ce, **options), parts, form, batch, "measure")


def diagnosed(parts: list[str], form: str, batch: tuple[int, ...], with_loss: bool) -> None:
    """Diagnose."""
    y = labels(batch, form)
    act = (lambda model, x: tr.diagnose(model, x, y, ce)) if with_loss else tr.diagnose
    _leaves(act, parts, form, batch, "diagnose")


def predicted(parts: list[str], form: str, batch: tuple[int, ...]) -> None:
    """Predict."""
    _leaves(tr.predict, parts, form, batch, "predict")


def selected(parts: list[str], form: str, batch: tuple[int, ...], where: Any, seeing: bool) -> None:
    """Select."""
    _leaves(lambda model, x: tr.select(model, where, inputs=x if seeing else None), parts, form, batch, "select")


def applied(
    parts: list[str],
    form: str,
    batch: tuple[int, ...],
    remedy: Any,
    where: Any = None,
    seeing: bool = True,
    dry: bool = False,
    then: Any = None,
) -> None:
    """Apply a remedy, run the network, and undo it; with ``then``, another one on top."""
    model, x = build(parts, form), inputs(batch, form)
    before, around = picture(model), world()
    name = type(remedy).__name__
    try:
        report = tr.apply_(model, remedy, inputs=x if seeing else None, where=where, dry_run=dry)
    except BaseException:
        check({**before, **around}, {**picture(model), **world()}, "a refused apply_")
        raise
    str(report)
    if dry:
        check({**before, **around}, {**picture(model), **world()}, "a dry run")
        return
    if not set(parts) & NOT_RUN and form not in IDLE:
        _still_runs(model, x, name)
    if then is not None:
        middle = picture(model)
        with contextlib.suppress(TrainabilityError):
            tr.apply_(model, then, inputs=x).undo()
        check(middle, picture(model), "undoing a second remedy")
    report.undo()
    check(before, picture(model), f"undoing {name}")


def _still_runs(model: nn.Module, x: Tensor, name: str) -> None:
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        loss = ce(model(x), None)
        if loss.requires_grad:
            loss.backward()
    except Exception as error:
        raise Fault("broken", f"after apply_({name}) the model fails with {type(error).__name__}") from error
    for parameter, gradient in gradients:
        parameter.grad = gradient


def regularized(parts: list[str], form: str, batch: tuple[int, ...], seeing: bool, steps: int) -> None:
    """Attach LBE, train, and take it off."""
    model, x = build(parts, form), inputs(batch, form)
    before, around = picture(model), world()
    lbe = tr.LBE(model, inputs=x if seeing else None)
    for _ in range(0 if form in IDLE else steps):
        try:
            total = lbe(ce(model(x), None))
            total.backward() if total.requires_grad else None
        except RuntimeError as error:
            if where(error)[1]:
                raise
            raise Fault("broken", "with LBE on it the model cannot be trained") from error
    lbe.remove()
    if not steps:
        check({**before, **around}, {**picture(model), **world()}, "taking LBE off")


def stacked(parts: list[str], form: str, batch: tuple[int, ...], several: int) -> None:
    """Train as a stack."""
    stack = Stack([build(parts, form) for _ in range(several)])
    x = inputs((several, *batch), form)
    ways.prepare(stack, x)
    stack(x)
    stack.predict(x[0])


def _leaves(
    act: Callable[[nn.Module, Any], Any], parts: list[str], form: str, batch: tuple[int, ...], name: str
) -> None:
    """Do something with a network that is to leave no trace, whether it is refused or not."""
    model, x = build(parts, form), inputs(batch, form)
    before = {**picture(model), **world()}
    try:
        str(act(model, x))
    finally:
        check(before, {**picture(model), **world()}, name)


def _one_in(rng: random.Random, *values: str) -> str:
    return rng.choice(values)


# What is done, how the rest of its arguments is made, and how often.
ACTS: dict[str, tuple[Callable[[random.Random], list[str]], int]] = {
    "measured": (
        lambda rng: rng.choice(
            [
                [],
                [f"where={rng.choice(WHERE)}"],
                ["neurons='channel'"],
                ["independence=True"],
                ["convention='published-code'"],
            ]
        ),
        20,
    ),
    "learned": (lambda rng: rng.choice([[], [f"where={rng.choice(WHERE)}"]]), 10),
    "diagnosed": (lambda rng: [_one_in(rng, "True", "False")], 3),
    "predicted": (lambda rng: [], 3),
    "selected": (lambda rng: [rng.choice(["None", *WHERE]), _one_in(rng, "True", "False")], 5),
    "applied": (
        lambda rng: [
            rng.choice(SLOW if rng.random() < 0.1 else REMEDIES),
            *rng.choice([[], [], [], [f"where={rng.choice(WHERE)}"], ["seeing=False"], ["dry=True"]]),
            *([f"then={rng.choice(REMEDIES)}"] if rng.random() < 0.15 else []),
        ],
        50,
    ),
    "regularized": (lambda rng: [_one_in(rng, "True", "False"), _one_in(rng, "0", "1", "2")], 8),
    "stacked": (lambda rng: [_one_in(rng, "1", "2", "3")], 4),
}
