"""Random numbers that depend on what they are for and on nothing else, so that a run can be taken up at any step."""

import hashlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream(seed: int, purpose: str, *position: int) -> int:
    """A seed for one purpose at one position, such as the dropout of step 7 on rank 0.

    No state is carried from step to step: what a member of a stack draws does not depend on the other members, and a
    run that is taken up at step 7 draws what it would have drawn.

    >>> stream(0, "dropout", 7) == stream(0, "dropout", 7) != stream(0, "dropout", 8)
    True
    """
    text = f"{purpose} {seed} {' '.join(map(str, position))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Within it, torch, Python and NumPy draw from a seed; afterwards they go on from where they were."""
    numpy = sys.modules.get("numpy")
    before = torch.get_rng_state(), random.getstate(), numpy.random.get_state() if numpy else None
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    if numpy:
        numpy.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        if numpy:
            numpy.random.set_state(before[2])


class Generators:
    """One generator per member of a stack, set anew for every step."""

    def __init__(self, seeds: list[int], device: torch.device | str = "cpu") -> None:
        self.seeds = seeds
        self.all = [torch.Generator(device) for _ in seeds]

    def at(self, purpose: str, *position: int) -> list[torch.Generator]:
        """Return the generators, each at the beginning of its stream."""
        for generator, seed in zip(self.all, self.seeds, strict=True):
            generator.manual_seed(stream(seed, purpose, *position))
        return self.all
