"""The kinds of network that LBE was published with, which call F.relu: the term is that of the values after it.

Each network returns, beside its output, the activations that the published experiments regularize. The term is stated
on those in NumPy, with the constant πe and the unbiased variance, and its gradient by finite differences of that.
"""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainability as tr
from reference import numpy_lbe, numpy_neuron_entropy


class FNN(nn.Module):
    """Fully connected: an input layer, depth - 2 in the middle, one for embeddings, a classifier; the middle counts."""

    def __init__(self, depth: int, width: int = 12) -> None:
        super().__init__()
        self.first = nn.Linear(20, width)
        self.middle = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 2))
        self.embeddings, self.classifier = nn.Linear(width, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = F.relu(self.first(x))
        activations = []
        for layer in self.middle:
            x = F.relu(layer(x))
            activations.append(x)
        return self.classifier(F.relu(self.embeddings(x))), activations


class InfoFlow(FNN):
    """The same, with all hidden layers counted."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        activations = []
        for layer in (self.first, *self.middle, self.embeddings):
            x = F.relu(layer(x))
            activations.append(x)
        return self.classifier(x), activations


class VanillaCNN(nn.Module):
    """Convolutions without pooling, and one hidden layer after them; all but the first convolution count."""

    def __init__(self, depth: int, side: int = 5) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.middle = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(depth - 2))
        self.fc, self.classifier = nn.Linear(8 * side * side, 2 * side * side), nn.Linear(2 * side * side, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = F.relu(self.first(x))
        activations = []
        for layer in self.middle:
            x = F.relu(layer(x))
            activations.append(x)
        x = F.relu(self.fc(x.flatten(1)))
        return self.classifier(x), [*activations, x]


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut, with ReLU after the sum."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Blocks whose outputs count, whatever is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.blocks = nn.ModuleList([BasicBlock(4, 4, 1), BasicBlock(4, 8, 2), BasicBlock(8, 8, 1)])
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = F.relu(self.bn(self.conv(x)))
        activations = []
        for block in self.blocks:
            x = block(x)
            activations.append(x)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1)), activations


class Autoencoder(nn.Module):
    """Hidden layers of an encoder and a decoder, and the code between them."""

    def __init__(self, depth: int = 3, width: int = 12) -> None:
        super().__init__()
        sizes = [20] + [width] * depth
        self.encoder = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.code = nn.Linear(width, 3)
        sizes = [3] + [width] * depth
        self.decoder = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.out = nn.Linear(width, 20)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        activations = []
        for layer in self.encoder:
            x = F.relu(layer(x))
            activations.append(x)
        x = self.code(x)
        activations.append(x)
        for layer in self.decoder:
            x = F.relu(layer(x))
            activations.append(x)
        return torch.sigmoid(self.out(x)), activations


def middle(places):
    """All but the first and the last."""
    return places[1:-1]


# name: network, shape of a sample, which of the places found, further ones, alpha, alpha_min, beta
NETWORKS = {
    "fnn": (lambda: FNN(7), (20,), middle, [], 0.3, 0.2, 5e-4),
    "deep_vanilla_fnn": (lambda: FNN(24), (20,), middle, [], 2.0, 0.2, 0.1),
    "deep_vanilla_cnn": (lambda: VanillaCNN(7), (1, 5, 5), lambda places: places[1:], [], 2.0, 2.0, 0.1),
    "resnet": (ResNet, (1, 6, 6), lambda places: [p for p in places if p.name in ("blocks.0", "blocks.1", "blocks.2")],
               [], 0.7, 0.5, 0.005),
    "autoencoder": (Autoencoder, (20,), lambda places: [p for p in places if "of out" not in p.name or p.given],
                    ["code"], 2.5, 0.5, 0.3),
    "info_flow": (lambda: InfoFlow(8), (20,), list, [], 0.5, 0.2, 0.2),
}  # fmt: skip


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets) if targets.dim() == 1 else F.mse_loss(outputs, targets)


def made(name: str):
    build, shape, chosen, more, alpha, alpha_min, beta = NETWORKS[name]
    model = build().double()
    with torch.no_grad():  # so that something is left at the end
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    x = torch.randn(16, *shape, dtype=torch.float64)
    y = torch.rand(16, *shape, dtype=torch.float64) if name == "autoencoder" else torch.randint(10, (16,))
    places = chosen(tr.select(model, inputs=x).places)
    settings = {"alpha": alpha, "alpha_min": alpha_min, "beta": beta, "convention": "published-code"}
    return model, x, y, tr.LBE(model, where=[*places, *more], **settings)


def stated(model: nn.Module, x: Tensor, y: Tensor, alphas: list[float], lbe: tr.LBE) -> tuple[float, list[float]]:
    """The published term in NumPy, on the activations that the network says that it has, and their entropies."""
    with torch.no_grad():
        outputs, activations = copy.deepcopy(model)(x)
    entropies = [numpy_neuron_entropy(a.flatten(1).numpy(), math.pi * math.e).mean() for a in activations]
    return numpy_lbe(entropies, alphas, lbe.beta, lbe.alpha_min, float(loss_of(outputs, y))), entropies


@pytest.mark.parametrize("name", NETWORKS)
def test_value_is_the_formula_on_the_values_after_relu(name):
    model, x, y, lbe = made(name)
    for _ in range(2):  # the first pass copies activations, the second does not
        total = lbe(loss_of(model(x)[0], y))
        expected, entropies = stated(model, x, y, lbe.alpha.tolist(), lbe)
        assert sorted(lbe.last.entropy.values()) == pytest.approx(sorted(entropies), rel=1e-6)
        assert total.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_is_that_of_the_formula_by_finite_differences(name):
    model, x, y, lbe = made(name)
    lbe(loss_of(model(x)[0], y)).backward()
    direction = [torch.randn_like(p) for p in model.parameters()]
    ours = sum(float((p.grad * d).sum()) for p, d in zip(model.parameters(), direction, strict=True))
    step = 1e-6
    ends = []
    for sign in (step, -step):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            torch._foreach_add_(list(moved.parameters()), direction, alpha=sign)
        ends.append(stated(moved, x, y, lbe.alpha.tolist(), lbe)[0])
    assert ours == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_of_alpha_is_that_of_the_published_code(name):
    """d/dα of beta/L · CE · (H − max(α_min, |α|))², where `torch.maximum` has the slope ½ at equality."""
    model, x, y, lbe = made(name)
    ce = loss_of(model(x)[0], y)
    lbe(ce).backward()
    entropies = np.array([lbe.last.entropy[path] for path in lbe.selection.paths])
    alpha = lbe.alpha.detach().numpy()
    slope = 0.5 if lbe.alpha_min == alpha[0] else 1.0
    expected = -2 * slope * ce.item() * lbe.beta / len(alpha) * (entropies - alpha)
    assert lbe.alpha.grad.numpy() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_default_reads_what_every_relu_returns(name, monkeypatch):
    """In the order in which they run; with and without inputs."""
    model, x, _, lbe = made(name)
    lbe.remove()
    model.eval()
    kept: list[Tensor] = []
    original = F.relu
    with monkeypatch.context() as patched:
        patched.setattr(F, "relu", lambda v: kept.append(original(v)) or kept[-1])
        outputs, _ = model(x)
    expected = [tr.batch_entropy(a).item() for a in [*kept, *([outputs] if name == "autoencoder" else [])]]
    assert [layer.entropy for layer in tr.measure(model, x)] == pytest.approx(expected, rel=1e-6)
    for inputs in (x, None):
        with tr.LBE(model, inputs=inputs) as term:
            model.train()
            for module in model.modules():  # whose statistics were used above
                module.training = not isinstance(module, nn.BatchNorm2d)
            term(loss_of(model(x)[0], outputs.detach()))
            model.eval()
            assert list(term.last.entropy.values()) == pytest.approx(expected, rel=1e-6)
