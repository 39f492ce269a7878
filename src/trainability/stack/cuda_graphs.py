"""Work of a device that is recorded once and launched as a whole."""

import time
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import TypeVar

import torch

from trainability.errors import StateError

T = TypeVar("T")


class CudaGraph:
    """Work on a CUDA device as a CUDA graph, which one launch starts.

    A deep network of narrow layers waits for the launches of its kernels, a few microseconds each, and not for the
    arithmetic. What is recorded may not wait for the device nor decide anything by a value on it.

    Args:
        device: the CUDA device.
        generators: those from which the work draws, besides torch's own. Each replay continues them, or begins where
            they were seeded since.

    Reference: PyTorch's notes on CUDA semantics, "CUDA Graphs".
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator] = ()) -> None:
        self._device = device
        self._generators = list(generators)
        self._stream = torch.cuda.Stream(device)
        self._graph = torch.cuda.CUDAGraph()

    def check(self, work: Callable[[], object]) -> None:
        """Run work as it is, with CUDA's own watch for what waits; a recording that fails can spoil the process.

        Raises:
            RuntimeError: the work waits for the device, as no recording may.
        """
        self.rehearse(work)  # what is made at the first run may wait
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(action="ignore"):  # it says that it does not see everything
            torch.cuda.set_sync_debug_mode("error")
        try:
            self.rehearse(work)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def rehearse(self, work: Callable[[], T]) -> T:
        """Run work as it is, where the recording will be, so that what is only made once is there before."""
        with torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                result = work()
            here.wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], T]) -> T:
        """Record work without running it, and return the tensors into which every replay writes.

        An earlier recording is dropped with the memory that was its own.

        Raises:
            RuntimeError: the work waits for the device, launches nothing on it, or does something else that cannot be
                recorded. The process should not go on: torch's generators and streams may be left in the recording.
        """
        self._graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings(action="ignore"):  # later versions of torch find the generators themselves
            for generator in self._generators:
                self._graph.register_generator_state(generator)
        with torch.cuda.device(self._device), warnings.catch_warnings():
            warnings.filterwarnings("error", message="The CUDA Graph is empty")
            try:
                with torch.cuda.graph(self._graph, stream=self._stream):
                    return work()
            except UserWarning as error:
                raise StateError(str(error), code="not-recordable") from None

    def replay(self) -> None:
        """Launch what was recorded."""
        with torch.cuda.device(self._device):
            self._graph.replay()


def seconds(
    work: Callable[[], object], device: torch.device, graph: CudaGraph | None = None, repeats: int = 3
) -> float:
    """Median time of work, after a run that compiles and fills caches; as a graph where one is given.

    Raises:
        RuntimeError: the work fails, or cannot be recorded.
    """
    run = work
    if graph is not None:
        graph.check(work)
        graph.record(work)
        run = graph.replay
    run()
    times = []
    for _ in range(repeats):
        synchronize(device)
        begin = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return median(times)


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
