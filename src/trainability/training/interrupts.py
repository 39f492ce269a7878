"""Ctrl-C and SIGTERM, which wait for the end of a step whose half could not be taken up."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_AGREE_EVERY = 5


@contextmanager
def deferred(fabric: "Fabric") -> Iterator[Callable[[int], bool]]:
    """Within it, Ctrl-C and SIGTERM raise nothing, however often they come; it yields what tells of them after a step.

    Several processes ask one another every few steps, so that all end at the same one. SIGQUIT still ends at once.
    """
    if threading.current_thread() is not threading.main_thread():  # to which signals do not come
        yield lambda _: False
        return
    asked: list[int] = []

    def interrupted(step: int) -> bool:
        if fabric.world_size == 1:
            return bool(asked)
        if step % _AGREE_EVERY:
            return False
        import torch

        return bool(fabric.all_reduce(torch.tensor(float(len(asked)), device=fabric.device), reduce_op="sum"))

    before = {
        number: signal.signal(number, lambda number, _frame: asked.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
