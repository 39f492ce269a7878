"""Work of a device that is recorded once and launched as a whole."""

import time
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class Graph(Protocol):
    """What records work and repeats it: the same operations on the same tensors, and nothing of the Python between."""

    def check(self, work: Callable[[], object]) -> None:
        """Run work as it is; raise RuntimeError where it waits for the device, as no recording may."""

    def rehearse(self, work: Callable[[], T]) -> T:
        """Run work as it is, where the recording will be, so that what is only made once is there before."""

    def record(self, work: Callable[[], T]) -> T:
        """Record work without running it, and return the tensors into which every replay writes."""

    def replay(self) -> None:
        """Run what was recorded."""


class CudaGraph:
    """Work on the current CUDA device as a CUDA graph, which one launch starts.

    A deep network of narrow layers waits for the launches of its kernels, a few microseconds each, and not for the
    arithmetic. What is recorded may not wait for the device nor decide anything by a value on it.

    Args:
        generators: those from which the work draws, besides torch's own. Each replay continues them, or begins where
            they were seeded since.

    Reference: PyTorch's notes on CUDA semantics, "CUDA Graphs".
    """

    def __init__(self, generators: Sequence[torch.Generator] = ()) -> None:
        self._generators = list(generators)
        self._stream = torch.cuda.Stream()
        self._graph = torch.cuda.CUDAGraph()

    def check(self, work: Callable[[], object]) -> None:
        """Run work with CUDA's own watch for what waits; a recording that fails can spoil the process."""
        self.rehearse(work)  # what is made at the first run may wait
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(action="ignore"):  # it says that it does not see everything
            torch.cuda.set_sync_debug_mode("error")
        try:
            self.rehearse(work)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def rehearse(self, work: Callable[[], T]) -> T:
        """Run work on the stream on which it will be recorded."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], T]) -> T:
        """Record work; an earlier recording is dropped with the memory that was its own.

        Raises:
            RuntimeError: the work waits for the device, or does something else that cannot be recorded.
        """
        self._graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings(action="ignore"):  # later versions of torch find the generators themselves
            for generator in self._generators:
                self._graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(self._graph, stream=self._stream):
                return work()
        except BaseException:
            self._graph.reset()
            raise

    def replay(self) -> None:
        """Launch what was recorded."""
        self._graph.replay()


def seconds(work: Callable[[], object], device: torch.device, graph: Graph | None = None, repeats: int = 3) -> float:
    """Median time of work, after one run that compiles and fills caches; as a graph where one is given."""
    if graph is None:
        work()
        run: Callable[[], object] = work
    else:
        for _ in range(3):
            graph.rehearse(work)
        graph.record(work)
        run = graph.replay
    times = []
    for _ in range(repeats):
        synchronise(device)
        begin = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - begin)
    return median(times)


def synchronise(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
