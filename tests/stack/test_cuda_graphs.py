"""What a CUDA graph asks of torch.cuda, which is stood in for; `test_step` has what needs a GPU."""

import contextlib
import warnings

import pytest
import torch

from trainability.errors import StateError
from trainability.stack.cuda_graphs import CudaGraph


class _Calls:
    """Stands in for what of torch.cuda a graph uses, and notes what is called on which device and stream."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.where = ["cuda:0", "main"]
        calls = self

        class Stream:
            def __init__(self, device: object) -> None:
                self.name = "side"
                calls.said.append(f"stream on {device}")

            def wait_stream(self, other: object) -> None:
                calls.said.append(f"{self.name} waits for {other.name}")

        class DeviceGraph:
            def register_generator_state(self, generator: object) -> None:
                calls.said.append("register")

            def replay(self) -> None:
                calls.said.append(f"replay on {calls.where[0]}")

        main = Stream("cuda:0")
        main.name = "main"
        self.said.clear()
        self.parts = {
            "Stream": Stream,
            "CUDAGraph": DeviceGraph,
            "current_stream": lambda: main,
            "device": lambda device: self._at(0, str(device)),
            "stream": lambda stream: self._at(1, stream.name),
            "graph": lambda graph, stream: self._at(1, f"recording on {stream.name}"),
            "get_sync_debug_mode": lambda: 0,
            "set_sync_debug_mode": lambda mode: self.said.append(f"watch {mode}"),
        }

    @contextlib.contextmanager
    def _at(self, place: int, name: str):
        before, self.where[place] = self.where[place], name
        yield
        self.where[place] = before
        if name.startswith("recording") and not any("work" in said for said in self.said[-1:]):
            warnings.warn("The CUDA Graph is empty. This usually means", stacklevel=1)


def test_a_cuda_graph_is_of_its_device_and_in_the_right_order(monkeypatch):
    calls = _Calls()
    for name, part in calls.parts.items():
        monkeypatch.setattr(torch.cuda, name, part)
    graph = CudaGraph(torch.device("cuda:1"), [torch.Generator()])

    def work() -> str:
        calls.said.append(f"work on {calls.where}")
        return "done"

    assert graph.rehearse(work) == "done"
    around = ["side waits for main", "work on ['cuda:1', 'side']", "main waits for side"]
    assert calls.said == ["stream on cuda:1", *around]
    calls.said.clear()
    graph.check(work)
    assert calls.said == [*around, "watch error", *around, "watch 0"]
    calls.said.clear()
    assert graph.record(work) == "done"
    graph.replay()
    assert calls.said == ["register", "work on ['cuda:1', 'recording on side']", "replay on cuda:1"]
    assert calls.where == ["cuda:0", "main"]
    with pytest.raises(StateError) as caught:
        graph.record(lambda: None)
    assert caught.value.code == "not-recordable"

    def waits() -> None:
        if "watch error" in calls.said[-2:]:
            raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(RuntimeError, match="synchronizing"):
        graph.check(waits)
    assert calls.said[-1] == "watch 0"
