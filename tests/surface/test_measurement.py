"""Loss surfaces against closed forms, and against a plain loop over the points."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

import trainability as tr
from refusals import refused
from trainability.data.streamed import DatasetPart
from trainability.errors import ArgumentError, ArgumentTypeError, DataError, TrainabilityError, UnsupportedModelError
from trainability.surface.directions import random_directions
from trainability.surface.scores import Batches

SIZE, BATCH = 5, 16


class Pair(nn.Module):
    """Takes two tensors and returns a dictionary."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(4, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x, z):
        hidden = torch.tanh(self.left(x) * self.right(z))
        return {"logits": self.out(hidden), "hidden": hidden}


class Branching(nn.Module):
    """Looks at values, and so cannot be mapped."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        return self.out(x.sin() if self.out.weight.sum().item() > -1e9 else x)


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5)
    )


def of_logits(outputs, targets):
    return F.cross_entropy(outputs["logits"] if isinstance(outputs, dict) else outputs, targets)


def right(outputs, targets):
    return (outputs["logits"] if isinstance(outputs, dict) else outputs).argmax(1) == targets


def data(kind):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {cnn: draw(45, 2, 6, 6), Pair: (draw(45, 6), draw(45, 4))}.get(kind, draw(45, 6))
    return inputs, torch.randint(0, 3, (45,), generator=generator)


def trained_a_little(kind):
    torch.manual_seed(3)
    model = kind().double()
    inputs, targets = data(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        of_logits(model(*inputs) if isinstance(inputs, tuple) else model(inputs), targets).backward()
        optimizer.step()
    return model


def plain_loop(model, part, word, recalibrated, axis):
    """Each point as somebody would compute it by hand."""
    first, second = random_directions(model, word, seed=7)
    inputs, targets = part
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    batches = list(zip(*(t.split(BATCH) for t in (*inputs, targets)), strict=True))
    losses, shares = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
    for i, a in enumerate(axis):
        for j, b in enumerate(axis):
            twin = copy.deepcopy(model)
            for name, p in twin.named_parameters():
                p.data += a * first[name] + b * second[name]
            if recalibrated:
                update_bn([batch[0] for batch in batches], twin)
            twin.eval()
            for *xs, y in batches:
                with torch.no_grad():
                    outputs = twin(*xs)
                losses[i, j] += float(of_logits(outputs, y)) * len(y) / len(targets)
                shares[i, j] += float(right(outputs, y).sum()) / len(targets)
    return losses, shares


@pytest.mark.parametrize(
    ("kind", "batchnorm", "members"),
    [
        (mlp, "frozen", None),
        (mlp, "frozen", 1),
        (mlp, "frozen", 7),
        (cnn, "frozen", None),
        (cnn, "frozen", 6),
        (cnn, "recalibrated", 1),
        (cnn, "recalibrated", 6),
        (Pair, "frozen", None),
        (Branching, "frozen", None),
    ],
)
@pytest.mark.parametrize("word", ["filter", "tensor"])
def test_every_point_is_that_of_a_plain_loop(kind, batchnorm, members, word):
    model, part = trained_a_little(kind), data(kind)
    found = tr.landscape(
        model,
        part,
        of_logits,
        directions=word,
        size=SIZE,
        span=0.8,
        quantities={"accuracy": right},
        batchnorm=batchnorm,
        seed=7,
        batch_size=BATCH,
        members=members,
    )
    axis = [-0.8, -0.4, 0.0, 0.4, 0.8]
    losses, shares = plain_loop(model, part, word, batchnorm == "recalibrated", axis)
    np.testing.assert_allclose(found.a, axis, atol=1e-15)
    np.testing.assert_allclose(found.values["loss"], losses, rtol=1e-9)
    np.testing.assert_allclose(found.values["accuracy"], shares, rtol=1e-9)
    if members != 1 and kind is not Branching and (members or kind is not cnn):
        assert "at once" in found.execution


def test_the_term_of_an_lbe_is_that_of_its_formula():
    model, part = trained_a_little(mlp), data(mlp)
    lbe = tr.LBE(model, alpha=0.7, beta=0.3, alpha_min=0.2, where=["1", "3"])
    with torch.no_grad():
        lbe.alpha.copy_(torch.tensor([0.9, 0.1]))
    surface = tr.landscape(model, part, of_logits, size=3, batch_size=15, lbe=lbe, seed=7)
    first, second = random_directions(model, "filter", seed=7)
    expected, totals = np.zeros((3, 3)), np.zeros((3, 3))
    for i, a in enumerate((-1, 0, 1)):
        for j, b in enumerate((-1, 0, 1)):
            twin = mlp().double().eval()
            twin.load_state_dict(model.state_dict())
            for name, p in twin.named_parameters():
                p.data += a * first[name] + b * second[name]
            for x, y in zip(part[0].split(15), part[1].split(15), strict=True):
                with torch.no_grad():
                    hidden, logits = twin[:2](x), twin(x)
                entropies = [float(tr.batch_entropy(t)) for t in (hidden, logits)]
                term = 0.3 * ((entropies[0] - 0.9) ** 2 + (entropies[1] - 0.2) ** 2) / 2
                expected[i, j] += term / 3
                totals[i, j] += float(of_logits(logits, y)) * (1 + term) / 3
    assert list(surface.values) == ["loss", "L_BE", "total"]
    np.testing.assert_allclose(surface.values["L_BE"], expected, rtol=1e-6)
    np.testing.assert_allclose(surface.values["total"], totals, rtol=1e-6)


def test_the_surface_of_a_quadratic_is_the_closed_form():
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
    x = torch.eye(2, dtype=torch.float64).repeat(3, 1) * torch.tensor([2.0, 1.0])

    def loss(outputs, targets):  # over x = (2, 0) and (0, 1): the mean of ½ (2 u)² and ½ v²
        return 0.5 * (outputs - targets).square()

    surface = tr.landscape(model, (x, torch.zeros(6, 1).double()), loss, directions="hessian", size=9, span=2.0)
    u, v = 1 + surface.a[:, None], -2 + surface.b[None, :]  # the steeper one first
    torch.testing.assert_close(surface.values["loss"], u**2 + v**2 / 4, rtol=1e-12, atol=1e-12)
    assert surface.eigenvalues == pytest.approx((2, 0.5))
    assert surface.minimum() == pytest.approx((0, -1, 2), abs=1e-12)
    assert surface.center() == pytest.approx(2)


def test_eigenvalues_are_the_curvature_of_the_surface_at_its_center():
    model = trained_a_little(Pair)
    surface = tr.landscape(model, data(Pair), of_logits, directions="hessian", size=3, span=1e-3, batch_size=BATCH)
    z = surface.values["loss"]
    curvature = [(z[0, 1] - 2 * z[1, 1] + z[2, 1]) / 1e-6, (z[1, 0] - 2 * z[1, 1] + z[1, 2]) / 1e-6]
    np.testing.assert_allclose(curvature, surface.eigenvalues, rtol=1e-3)


@pytest.mark.parametrize("word", ["filter", "hessian"])
def test_nothing_is_left_on_the_model_nor_elsewhere(word):
    model, part = trained_a_little(cnn), data(cnn)
    model[2].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    versions = [t._version for t in (*model.parameters(), *model.buffers(), *part)]
    modes, attributes = [m.training for m in model.modules()], [set(vars(m)) for m in model.modules()]
    random_states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    tr.landscape(model, part, of_logits, directions=word, size=3, batchnorm="recalibrated", path=[model])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), grads, strict=True))
    assert [t._version for t in (*model.parameters(), *model.buffers(), *part)] == versions
    assert [m.training for m in model.modules()] == modes
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == random_states[1:]


def test_a_model_that_draws_draws_the_same_at_every_point_and_one_that_writes_its_input_leaves_it():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(6, 3)
            self.register_parameter("unused", nn.Parameter(torch.ones(2, 2)))

        def forward(self, x):
            return F.dropout(x.mul_(2), 0.5) @ self.out.weight.detach().T  # which no direction moves, but the loss does

    inputs, targets = data(mlp)
    model, before = Noisy().double(), inputs.clone()
    model.out.requires_grad_(False)
    values = tr.landscape(model, (inputs, targets), of_logits, size=3).values["loss"]
    assert values.unique().numel() == 1
    assert torch.equal(inputs, before)


def test_loaders_and_datasets_give_what_their_tensors_do():
    model, part = trained_a_little(mlp), data(mlp)
    expected = tr.landscape(model, part, of_logits, size=3, batch_size=BATCH).values["loss"]
    dataset = TensorDataset(*part)
    pairs = list(zip(*part, strict=True))
    fed = [(x, y) for x, y in zip(part[0].split(BATCH), part[1].split(BATCH), strict=True)]

    class Pairs:
        def __getitem__(self, number):
            return pairs[number]

        def __len__(self):
            return len(pairs)

    class Own:
        def __iter__(self):
            return iter(fed)

        def __len__(self):
            return len(fed)

    for given in (dataset, DataLoader(dataset, BATCH, shuffle=True), Pairs(), Own()):
        found = tr.landscape(model, given, of_logits, size=3, batch_size=BATCH)
        torch.testing.assert_close(found.values["loss"], expected, rtol=1e-12, atol=0)
        assert found.samples == 45


def test_points_at_which_the_loss_is_not_finite_are_kept_and_named():
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.ones_(model.weight)
    part = torch.ones(4, 2).double(), torch.zeros(4, 1)
    surface = tr.landscape(model, part, lambda o, t: (o + 1).log(), directions="tensor", size=5, span=20.0, seed=1)
    assert surface.values["loss"].isnan().any()
    assert "not finite at" in str(surface)
    assert any(None in row for row in surface.to_dict()["values"]["loss"])


def test_samples_for_which_there_is_no_room_are_read_again():
    part = DatasetPart(TensorDataset(*data(mlp)))
    for room in (0, 10**9):
        batches = Batches(part, BATCH, torch.zeros(1), room)
        for _ in range(2):
            assert [len(batch) for batch in batches] == [16, 16, 13]
        assert {batch.inputs.dtype for batch in batches} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "kind", "code"),
    [
        ({"size": 4}, ArgumentError, "even-size"),
        ({"size": 1}, ArgumentError, "out-of-range"),
        ({"span": 0.0}, ArgumentError, "out-of-range"),
        ({"span": "1"}, ArgumentTypeError, "wrong-type"),
        ({"members": 0}, ArgumentError, "out-of-range"),
        ({"directions": "filters"}, ArgumentError, "unknown-choice"),
        ({"batchnorm": "train"}, ArgumentError, "unknown-choice"),
        ({"quantities": {"loss": of_logits}}, ArgumentError, "duplicate"),
        ({"quantities": {"mean": 3}}, ArgumentTypeError, "wrong-type"),
        ({"quantities": {"all": lambda o, t: o.mean(0)}}, ArgumentError, "loss-not-a-number"),
        ({"loss_fn": "mse"}, ArgumentTypeError, "wrong-type"),
        ({"loss_fn": lambda o, t: o.sum() * float("nan")}, ArgumentError, "nan"),
        ({"model": nn.ReLU()}, UnsupportedModelError, "no-parameters"),
        ({"model": nn.Linear(6, 3, device="meta")}, UnsupportedModelError, "no-values"),
        ({"model": "model"}, ArgumentTypeError, "not-a-module"),
        ({"data": torch.ones(3)}, DataError, "data-form"),
        ({"data": (torch.ones(0, 6), torch.ones(0))}, DataError, "empty"),
        ({"lbe": 0.5}, ArgumentTypeError, "wrong-type"),
        (
            {"lbe": tr.LBE(nn.Sequential(mlp()))},
            ArgumentError,
            "where-matches-nothing",
        ),
        ({"lbe": tr.LBE(mlp()), "batch_size": 1}, ArgumentError, "one-sample"),
        ({"lbe": tr.LBE(mlp()), "quantities": {"L_BE": of_logits}}, ArgumentError, "duplicate"),
        ({"path": [{}]}, ArgumentError, "other-weights"),
        ({"directions": "hessian", "loss_fn": right}, ArgumentError, "no-gradient"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, kind: type[TrainabilityError], code):
    given = {"model": mlp().double(), "data": data(mlp), "loss_fn": of_logits, **change}
    with refused(kind, code):
        tr.landscape(given.pop("model"), given.pop("data"), given.pop("loss_fn"), **given)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_model_is_refused():
    with refused(UnsupportedModelError, "scripted"):
        tr.landscape(torch.jit.script(mlp()), data(mlp), of_logits)
