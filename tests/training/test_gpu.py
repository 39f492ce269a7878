"""What people call directly, on a CUDA device, beside the same on the CPU in double precision."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainability as tr
from trainability.models import fnn

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(64, 12), torch.randint(4, (64,))


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Dropout(0.5), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def test_the_term_is_the_formula():
    x, y = inputs()
    model = fnn(12, 5, 16, 4)
    wide = copy.deepcopy(model).double()
    model.to(DEVICE)
    lbe = tr.LBE(model, alpha=0.5, beta=0.2)
    total = lbe(F.cross_entropy(model(x.to(DEVICE)), y.to(DEVICE)))
    total.backward()

    hidden, entropies = x.double(), []
    for layer in wide:
        hidden = layer(hidden)
        if isinstance(layer, nn.ReLU):
            variance = np.var(hidden.detach().numpy(), axis=0, ddof=1)
            entropies.append(float(np.mean(0.5 * np.log(2 * math.pi * math.e * variance + 1))))
    loss = F.cross_entropy(hidden, y)
    term = 0.2 * np.mean([(h - 0.5) ** 2 for h in entropies])
    assert total.item() == pytest.approx(loss.item() * (1 + term), rel=1e-4)
    assert list(lbe.last.entropy.values()) == pytest.approx(entropies, rel=1e-3, abs=1e-6)

    again = tr.LBE(wide, alpha=0.5, beta=0.2)
    again(F.cross_entropy(wide(x.double()), y)).backward()
    for own, other in zip([*model.parameters(), lbe.alpha], [*wide.parameters(), again.alpha], strict=True):
        scale = float(other.grad.abs().max())
        torch.testing.assert_close(own.grad.cpu().double(), other.grad, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.filterwarnings("ignore:.*ynchronization debug mode")  # which says that it does not see everything
@pytest.mark.parametrize("make", [lambda: fnn(12, 5, 16, 4), convolutional], ids=["fnn", "convolutions"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_a_step_with_lbe_never_waits_for_the_device(make, dtype):
    x, y = (t.to(DEVICE) for t in inputs())
    model = make().to(DEVICE)
    lbe = tr.LBE(model)
    optimizer = torch.optim.Adam([*model.parameters(), lbe.alpha], fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(DEVICE, dtype, enabled=dtype is not None):
            loss = F.cross_entropy(model(x), y)
        total = lbe(loss)
        total.backward()
        optimizer.step()
        return total

    for _ in range(3):  # what is made at the first steps may wait
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        total = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(total.item())


def test_measuring_changes_nothing_and_sees_what_the_cpu_sees():
    x, _ = inputs()
    model = convolutional().eval()
    expected = tr.measure(copy.deepcopy(model).double(), x.double())
    model.to(DEVICE)
    state = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state(), torch.cuda.get_rng_state()
    flow = tr.measure(model, x.to(DEVICE))
    assert [layer.name for layer in flow] == [layer.name for layer in expected]
    assert [layer.entropy for layer in flow] == pytest.approx([layer.entropy for layer in expected], rel=1e-2)
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert torch.equal(random[0], torch.get_rng_state())
    assert torch.equal(random[1], torch.cuda.get_rng_state())


@pytest.mark.parametrize("remedy", [tr.Init("he"), tr.TAT(), tr.IC(keep=0.9)], ids=lambda r: type(r).__name__)
def test_a_remedy_stays_on_the_device_and_can_be_undone(remedy):
    x, y = (t.to(DEVICE) for t in inputs())
    model = fnn(12, 30, 16, 4).to(DEVICE)
    before = copy.deepcopy(model.state_dict())
    report = tr.apply_(model, remedy, inputs=x)
    assert all(t.device.type == DEVICE for t in model.state_dict().values())
    F.cross_entropy(model(x), y).backward()
    report.undo()
    assert model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
