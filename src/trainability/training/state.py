"""The state of a training as a checkpoint holds it, looked at before any of it is used."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict, get_args

import torch
from torch import Tensor

from trainability.errors import ArgumentError
from trainability.stack.members import Way
from trainability.training.history import History
from trainability.training.restoring import as_kind, check_like
from trainability.training.updates import KeptUpdates

if TYPE_CHECKING:
    from trainability.training.trainer import Training


class State(TypedDict):
    """The kinds of what `Training.state` returns."""

    steps: int
    total_steps: int
    alive: list[bool]
    execution: dict[str, Any]
    weights: dict[str, Tensor]
    lbe: dict[str, Tensor] | None
    updates: KeptUpdates
    losses: list[Tensor]
    times: list[float]
    histories: list[History]


def check_state(state: Mapping[str, Any], training: "Training") -> None:
    """Raise ArgumentError for a state that is not one of a training, in any part of it."""
    histories = as_kind(state, State, "the state")["histories"]
    own = training.state()
    try:
        check_like(state["weights"], own["weights"], "weights")
    except ArgumentError as error:
        raise ArgumentError(f"the state is of other networks: {error}", code="other-networks") from None
    for part in ("alive", "lbe"):
        check_like(state[part], own[part], part)
    members = len(training.stack)
    for losses in state["losses"]:
        check_like(losses, torch.zeros(members), "losses")
    if not 0 <= state["steps"] <= training.total_steps:
        raise ArgumentError(
            f"the state is of step {state['steps']}, and the training has {training.total_steps}", code="state-damaged"
        )
    if state["total_steps"] != training.total_steps and training.config.schedule.depends_on_length:
        raise ArgumentError(
            f"the state is of a training of {state['total_steps']} steps, this is one of {training.total_steps}, and "
            f"the schedule {training.config.schedule.kind} depends on their number",
            code="fixed-length",
        )
    if [kept.identity for kept in histories] != [one.identity for one in training.histories]:
        raise ArgumentError("the state is of other networks: their seeds or settings differ", code="other-networks")
    ways = get_args(Way)[1:] if members > 1 else ("alone",)
    execution = state["execution"]
    flags = all(isinstance(execution.get(name), bool) for name in ("compiled", "channels_last"))
    if execution.get("members") not in ways or not flags:
        raise ArgumentError("the state does not say how its networks run", code="state-damaged")
    training.updates.check(state["updates"])
