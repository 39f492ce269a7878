"""A step that is recorded and replayed against the same step launched operation by operation.

The recordings are of the CPU's operations (`recorded_graph`); those of a GPU need one.
"""

import contextlib
import random
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from recorded_graph import RecordedGraph
from stacks import network, plain, training
from trainability.data.augment import Augmentation, CropFlip
from trainability.data.dataset import Dataset, Split
from trainability.errors import UnsupportedModelError
from trainability.lbe.stacked import StackLBE
from trainability.stack import ways
from trainability.stack.direct import teach_
from trainability.stack.module import Stack
from trainability.tasks import task
from trainability.training.batches import batches_of
from trainability.training.config import Member, Strength, TrainingConfig
from trainability.training.schedules import Schedule
from trainability.training.step import Step
from trainability.training.trainer import Training
from trainability.training.updates import Updates

# A recording reads its learning rates as float32; these are the same numbers there.
APART = [
    Member(3, lr=2**-10, lbe=Strength(0.5, 0.2, 0.2)),
    Member(4, lr=2**-8, weight_decay=0.125, lbe=Strength(1.0, 0.5, 0.1)),
    Member(5, lr=2**-7),
]
ALIKE = [Member(seed, lr=2**-9, lbe=Strength()) for seed in (3, 4, 5)]
BARE = [Member(seed, lr=2**-9) for seed in (3, 4, 5)]
WAYS = [("plain", "direct"), ("fnn", "direct"), ("fnn", "vmap"), ("fnn", "loop"), ("conv", "streams"), ("fnn", "alone")]


class Graphs:
    """Makes graphs and keeps them."""

    def __init__(self) -> None:
        self.made: list[RecordedGraph] = []

    def __call__(self, generators) -> RecordedGraph:
        self.made.append(RecordedGraph(generators))
        return self.made[-1]


def run(kind: str, way: str, who: list[Member], steps: int, graph=None, poison: int | None = None, **options):
    who = who[:1] if way == "alone" else who
    models = [plain(e) if kind == "plain" else network(kind, e) for e in range(len(who))]
    together = training(models, who, graph=graph, members="auto" if way == "alone" else way, **options)
    together.prepare()
    for step in range(steps):
        if step == poison:
            with torch.no_grad():
                together.stack.module[-1].weight[1] = float("inf")
        together.advance()
    assert together.stack.way == way
    return together


def assert_same(a: Training, b: Training, **tolerance: float) -> None:
    for name, value in a.stack.module.state_dict().items():
        torch.testing.assert_close(b.stack.module.state_dict()[name], value, **tolerance)


EXACT = {"rtol": 0.0, "atol": 0.0}


@pytest.mark.parametrize(("kind", "way"), WAYS)
@pytest.mark.parametrize("who", [APART, ALIKE], ids=["apart", "alike"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "soap"])
def test_a_recorded_step_is_the_step_to_the_bit(kind, way, who, optimizer):
    options = {"options": {"momentum": 0.9, "nesterov": True}} if optimizer == "sgd" else {}
    graphs = Graphs()
    recorded = run(kind, way, who, 10, graphs, optimizer=optimizer, **options)
    assert (graphs.made[0].recordings, graphs.made[0].replays) == (1, 7)
    assert recorded.updates.recordable == (optimizer != "soap")
    one_by_one = run(kind, way, who, 10, optimizer=optimizer, **options)
    assert_same(one_by_one, recorded, **EXACT)
    if recorded.lbe:
        assert torch.equal(one_by_one.lbe.alpha, recorded.lbe.alpha)
        assert torch.equal(one_by_one.lbe.lbe, recorded.lbe.lbe)
    assert recorded.histories[0].losses == one_by_one.histories[0].losses


@pytest.mark.parametrize("augmentation", [Augmentation(), CropFlip()])
def test_a_recording_draws_what_each_step_draws(augmentation):
    assert_same(
        run("fnn", "vmap", APART, 8, augmentation=augmentation),
        run("fnn", "vmap", APART, 8, Graphs(), augmentation=augmentation),
        **EXACT,
    )


@pytest.mark.parametrize("who", [APART, ALIKE], ids=["apart", "alike"])
def test_a_recording_follows_the_schedule(who):
    schedule = Schedule("step", milestones=(1,), gamma=0.5)
    graphs = Graphs()
    recorded = run("plain", "direct", who, 30, graphs, schedule=schedule)
    assert recorded.batches.per_epoch < 25
    assert graphs.made[0].recordings == 1
    assert_same(run("plain", "direct", who, 30, schedule=schedule), recorded, **EXACT)
    with pytest.raises(AssertionError):
        assert_same(run("plain", "direct", who, 30), recorded, rtol=1e-3, atol=1e-3)
    warm = Schedule("cosine", warmup=0.5)
    assert_same(
        run("plain", "direct", who, 30, schedule=warm),
        run("plain", "direct", who, 30, Graphs(), schedule=warm),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("who", [APART, ALIKE], ids=["apart", "alike"])
@pytest.mark.parametrize("optimizer", ["adam", "soap"])
def test_a_member_that_diverges_is_left_out_of_a_new_recording(who, optimizer):
    graphs = Graphs()
    ill = run("plain", "direct", who, 12, graphs, poison=6, optimizer=optimizer)
    healthy = run("plain", "direct", who, 12, Graphs(), optimizer=optimizer)
    assert ill.alive == [True, False, True]
    assert graphs.made[0].recordings == 2
    kept = {name: value.clone() for name, value in ill.stack.models[1].state_dict().items()}
    ill.advance()
    for name, value in ill.stack.models[1].state_dict().items():
        torch.testing.assert_close(value, kept[name], **EXACT, equal_nan=True)
    healthy.advance()
    for number in (0, 2):
        for a, b in zip(healthy.stack.models[number].parameters(), ill.stack.models[number].parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_recorded_run_that_is_taken_up_again_ends_with_the_same_bits():
    whole = run("fnn", "vmap", APART, 14, Graphs())
    first = run("fnn", "vmap", APART, 7, Graphs())
    state = first.state()
    assert all(isinstance(g["lr"], float) for o in state["updates"]["optimizers"] for g in o["param_groups"])
    second = training([network("fnn", e) for e in range(3)], APART, graph=Graphs(), members="vmap")
    second.load(state)
    for _ in range(7):
        second.advance()
    assert_same(whole, second, **EXACT)


class Asks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.relu, self.second = nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x.flatten(1)))
        return self.second(x / float(x.detach().std()))


def test_a_model_that_waits_for_the_device_is_not_recorded_and_the_record_says_why():
    recorded = training([Asks()], BARE[:1], graph=Graphs())
    plainly = training([Asks()], BARE[:1])
    for each in (recorded, plainly):
        each.prepare()
        for _ in range(6):
            each.advance()
    assert_same(plainly, recorded, **EXACT)
    assert "waits for the device" in recorded.execution["not_recorded"]
    must = training([Asks()], BARE[:1], graph=Graphs(), cuda_graph="on")
    with pytest.raises(UnsupportedModelError) as caught:
        must.prepare()
    assert caught.value.code == "not-recordable"


def test_a_recording_that_fails_stops_the_training_and_says_what_to_do():
    class Fails(RecordedGraph):
        def record(self, work):
            raise RuntimeError("capture failed")

    with pytest.raises(UnsupportedModelError) as caught:
        run("fnn", "vmap", APART, 8, Fails)
    assert caught.value.code == "not-recordable"


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.second = nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.dropout(self.relu(self.first(x.flatten(1))), 0.5, self.training))


def test_members_that_each_seed_the_common_generator_are_not_recorded():
    together = training([Functional() for _ in range(3)], BARE, graph=Graphs())
    together.prepare()
    for _ in range(5):
        together.advance()
    assert together.stack.way == "loop"
    assert "by functions" in together.execution["not_recorded"]


class Hides(nn.Module):
    """Does in Python what no recording sees."""

    def __init__(self, what: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.relu, self.second = nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)
        self.what, self.passes = what, 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.first(x.flatten(1)))
        if self.training and self.what == "counts":
            self.passes += 1
            h = h * (self.passes % 2)
        if self.training and self.what == "random":
            h = h * (random.random() < 0.5)
        return self.second(h)


@pytest.mark.parametrize(
    ("what", "says"), [("counts", "a pass changes passes of Hides"), ("random", "the random state of Python")]
)
def test_what_python_does_in_a_pass_is_not_recorded(what, says):
    recorded = training([Hides(what)], BARE[:1], graph=Graphs())
    recorded.prepare()
    assert says in recorded.execution["not_recorded"]


def test_a_member_that_diverges_between_two_looks_is_left_alone_from_the_next():
    def train(graph, optimizer, poison):
        together = training([plain(e) for e in range(3)], ALIKE, graph=graph, optimizer=optimizer, epochs=3)
        together._look_every = 20
        together.prepare()
        for step in range(30):
            if step == poison:
                with torch.no_grad():
                    together.stack.module[-1].weight[1] = float("inf")
            together.advance()
        return together

    for optimizer in ("adam", "soap"):
        ill, healthy = train(Graphs(), optimizer, 8), train(Graphs(), optimizer, None)
        assert ill.alive == [True, False, True]
        assert ill.histories[1].steps == 20
        for number in (0, 2):
            for a, b in zip(
                healthy.stack.models[number].parameters(), ill.stack.models[number].parameters(), strict=True
            ):
                assert torch.equal(a, b)


def test_a_frozen_member_keeps_its_statistics_too():
    ill = run("fnn", "vmap", APART, 8, poison=5)
    assert ill.alive == [True, False, True]
    kept = {name: value.clone() for name, value in ill.stack.models[1].state_dict().items()}
    ill.advance()
    for name, value in ill.stack.models[1].state_dict().items():
        torch.testing.assert_close(value, kept[name], **EXACT, equal_nan=True)


def test_the_inputs_are_kept_until_the_backward_pass_is_over():
    """Members on streams read them then, and nothing else would hold their memory."""
    together = run("conv", "loop", BARE, 1)
    held = []
    backward = together.fabric.backward
    together.fabric.backward = lambda total: (held.append(together._one_step._inputs is not None), backward(total))
    together.advance()
    assert held == [True]
    assert together._one_step._inputs is None


def test_the_way_is_chosen_and_checked_in_the_precision_of_the_training():
    seen = []
    model = network("conv", 0)
    model[0].register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    together = training([model, network("conv", 1)], BARE[:2], "bf16-mixed", graph=Graphs())
    ways.prepare(together.stack, together._one_step.inputs(0))
    seen.clear()
    ways.choose(together.stack, together._one_step.inputs(0), together._execution.seconds)
    assert all(seen)


@pytest.mark.parametrize("kind", ["plain", "fnn", "conv"])
@pytest.mark.parametrize("augmentation", [None, Augmentation(), CropFlip()])
def test_a_step_asks_no_device_for_a_value(kind, augmentation, monkeypatch):
    """On the meta device there are no values to be had, and a tensor made elsewhere is an error."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _device: False)
    monkeypatch.setattr("trainability.training.step.Generators", lambda seeds, _device: _OnCPU(seeds))
    monkeypatch.setattr("trainability.training.batches.Generators", lambda seeds, _device: _OnCPU(seeds))
    meta = torch.device("meta")
    with meta:
        paths = {"plain": ["2"], "fnn": ["2", "6"], "conv": ["2", "5"]}[kind]
        stack = Stack([plain(e) if kind == "plain" else network(kind, e) for e in range(3)], taps=paths)
        stack.module.train()
        if kind == "plain":
            teach_(stack.module, stack.turn)
            stack.way = "direct"
        lbe = StackLBE(paths, [0.5] * 3, [0.2] * 3, [0.2] * 3, like=next(stack.parameters()))
        updates = Updates(
            stack,
            lbe.alpha,
            [Member(seed, lr) for seed, lr in zip([3, 4, 5], [1e-3, 1e-2, 1e-3], strict=True)],
            TrainingConfig(epochs=1, batch_size=64, options={"fused": False}),
            10,
        )
        part = Split(torch.zeros(256, 1, 8, 8, dtype=torch.uint8), torch.zeros(256, dtype=torch.long))
        data = Dataset("none", 10, part, part, part, torch.zeros(1), torch.ones(1), "made here", 0)
        fabric = SimpleNamespace(
            device=meta, global_rank=0, world_size=1, autocast=contextlib.nullcontext, backward=torch.Tensor.backward
        )
        batches = batches_of(data, [3, 4, 5], 64, augmentation)
        step = Step(stack, stack, lbe, updates, batches, task("classification"), fabric)
        losses, totals = step._whole()
    updates.apply([True] * 3)  # not fused, as on the meta device it cannot be
    assert losses.shape == totals.shape == (3,)


class _OnCPU:
    """Generators, of which the meta device has none."""

    def __init__(self, seeds: list[int]) -> None:
        self.all = [torch.Generator() for _ in seeds]


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "way"), [*WAYS, ("conv", "vmap")])
@pytest.mark.parametrize("who", [APART, ALIKE], ids=["apart", "alike"])
def test_a_cuda_graph_is_the_step(kind, way, who):
    both = [run(kind, way, who, 12, device="cuda", cuda_graph=graph) for graph in ("on", "off")]
    assert_same(*both, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("augmentation", [Augmentation(), CropFlip()])
def test_a_cuda_graph_draws_what_each_step_draws(augmentation):
    both = [
        run("fnn", "vmap", APART, 12, device="cuda", cuda_graph=graph, augmentation=augmentation)
        for graph in ("on", "off")
    ]
    assert_same(*both, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_members_on_streams_agree_with_members_one_after_another():
    assert_same(
        run("conv", "streams", APART, 12, device="cuda"),
        run("conv", "loop", APART, 12, device="cuda"),
        rtol=1e-5,
        atol=1e-6,
    )
