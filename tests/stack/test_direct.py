"""Layers that run for all members at once against torch's own, in networks of which each runs by itself."""

import copy

import pytest
import torch
from torch import Tensor, nn

import trainability as tr
from trainability.errors import UnsupportedModelError
from trainability.models import fnn
from trainability.nn.ic import ICLayer
from trainability.nn.norms import FeatureBatchNorm, FeatureGroupNorm
from trainability.nn.shaped_activation import ShapedActivation
from trainability.nn.shortcut import Add, ScaledAdd
from trainability.nn.weighted_sum import WeightedSum
from trainability.stack import ways
from trainability.stack.module import Stack

SEEDS = [3, 4, 5]


class Branching(nn.Module):
    def __init__(self, total: nn.Module) -> None:
        super().__init__()
        self.first, self.branch, self.total = nn.Linear(8, 8), nn.Linear(8, 8), total

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.total(x, self.branch(x))


def between(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), layer, nn.ReLU(inplace=True), nn.Linear(8, 4))


CASES = {
    "batchnorm": (lambda: between(nn.BatchNorm1d(8)), (8,)),
    "batchnorm without scale": (lambda: between(nn.BatchNorm1d(8, affine=False)), (8,)),
    "batchnorm of batches alone": (lambda: between(nn.BatchNorm1d(8, track_running_stats=False)), (8,)),
    "batchnorm of sequences": (lambda: nn.BatchNorm1d(3), (3, 8)),
    "batchnorm of maps": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4)),
        (3, 4, 4),
    ),
    "batchnorm of volumes": (lambda: nn.BatchNorm3d(2), (2, 3, 3, 3)),
    "features": (lambda: between(FeatureBatchNorm(8)), (8,)),
    "features of tokens": (lambda: between(FeatureBatchNorm(8, last=True)), (5, 8)),
    "layernorm": (lambda: between(nn.LayerNorm(8)), (5, 8)),
    "layernorm of maps": (lambda: nn.LayerNorm((5, 8)), (2, 5, 8)),
    "layernorm without shift": (lambda: between(nn.LayerNorm(8, bias=False)), (8,)),
    "layernorm without scale": (lambda: between(nn.LayerNorm(8, elementwise_affine=False)), (8,)),
    "groupnorm": (lambda: between(nn.GroupNorm(2, 8)), (8,)),
    "groupnorm of maps": (lambda: nn.GroupNorm(2, 6), (6, 4, 4)),
    "groupnorm of tokens": (lambda: between(FeatureGroupNorm(2, 8)), (5, 8)),
    "dropout": (lambda: between(nn.Dropout(0.3)), (8,)),
    "ic": (lambda: between(ICLayer(8, 0.7)), (8,)),
    "ic of tokens": (lambda: between(ICLayer(8, 0.7, kind="tokens")), (5, 8)),
    "scaled sum": (lambda: Branching(ScaledAdd(0.5)), (8,)),
    "sum": (lambda: Branching(Add()), (8,)),
    "weighted sum": (lambda: Branching(WeightedSum([0.6, 0.8])), (8,)),
    "shaped": (lambda: between(ShapedActivation("tanh", {"input_scale": 0.5})), (8,)),
}


def members(build) -> list[nn.Module]:
    torch.manual_seed(0)
    models = [build().double() for _ in SEEDS]
    with torch.no_grad():
        for tensor in (t for model in models for t in (*model.parameters(), *model.buffers())):
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand_like(tensor))
    return models


@pytest.mark.parametrize("case", CASES)
def test_members_agree_with_networks_that_run_alone(case):
    build, shape = CASES[case]
    models = members(build)
    alone = copy.deepcopy(models)
    stack = Stack(models)
    x = torch.randn(3, 6, *shape, dtype=torch.float64)
    ways.prepare(stack, x)
    assert stack.way == "direct"
    for step in range(3):
        stack.seed([torch.Generator().manual_seed(seed + step) for seed in SEEDS], [])
        own = x.clone().requires_grad_()
        outputs = stack(own).outputs
        stack.module.zero_grad()
        (outputs.sin().sum()).backward()
        for number, model in enumerate(alone):
            model.zero_grad()
            torch.manual_seed(SEEDS[number] + step)
            theirs = x[number].clone().requires_grad_()
            expected = model(theirs)
            expected.sin().sum().backward()
            torch.testing.assert_close(outputs[number], expected)
            torch.testing.assert_close(own.grad[number], theirs.grad)
            for name, parameter in stack.module.named_parameters():
                torch.testing.assert_close(parameter.grad[number], model.get_parameter(name).grad)
            for name, buffer in model.named_buffers():
                torch.testing.assert_close(models[number].get_buffer(name), buffer)
    for model, found in zip(alone, stack.predict(x[0]), strict=True):
        torch.testing.assert_close(found, model.eval()(x[0]))


@pytest.mark.parametrize("layer", [lambda: nn.BatchNorm1d(8), lambda: nn.LayerNorm(8), lambda: nn.GroupNorm(2, 8)])
def test_half_precision_gives_what_each_alone_gives(layer):
    models = [model.float() for model in members(lambda: between(layer()))]
    alone, x = copy.deepcopy(models), torch.randn(3, 6, 8)
    stack = Stack(models)
    ways.prepare(stack, x)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = stack(x).outputs
        for number, model in enumerate(alone):
            expected = model(x[number])
            assert outputs.dtype == expected.dtype
            torch.testing.assert_close(outputs[number], expected, rtol=0.05, atol=0.05)


def test_a_member_without_numbers_spoils_no_other():
    for case in ("batchnorm", "layernorm", "groupnorm", "ic", "scaled sum"):
        build, shape = CASES[case]
        stack = Stack(members(build))
        x = torch.randn(3, 6, *shape, dtype=torch.float64)
        ways.prepare(stack, x)
        assert stack.way == "direct"
        with torch.no_grad():
            next(stack.module.parameters())[1] = float("nan")
        stack(x).outputs.sum().backward()
        for parameter in stack.module.parameters():
            assert parameter.grad[[0, 2]].isfinite().all()
        for buffer in stack.module.buffers():
            assert buffer[[0, 2]].isfinite().all()


def test_a_deep_network_whose_rounding_grows_runs_directly():
    torch.manual_seed(0)
    models = [fnn(784, 30, 64, 10) for _ in range(3)]
    for model in models:
        tr.apply_(model, tr.Normalize("batch"), inputs=torch.randn(4, 1, 28, 28))
    stack = Stack(models)
    ways.prepare(stack, torch.randn(3, 64, 1, 28, 28))
    assert stack.way == "direct"


def test_a_cumulative_mean_of_statistics_is_not_run_directly():
    stack = Stack([between(nn.BatchNorm1d(8, momentum=None)) for _ in range(2)])
    ways.prepare(stack, torch.randn(2, 6, 8))
    assert stack.way == "loop"


def test_constants_that_differ_are_refused():
    models = [between(ShapedActivation("tanh", {"input_scale": scale})) for scale in (0.5, 0.6)]
    with pytest.raises(UnsupportedModelError) as caught:
        Stack(models)
    assert (caught.value.path, caught.value.code) == ("1", "not-alike")
