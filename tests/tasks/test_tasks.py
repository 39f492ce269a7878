"""Tasks other than classification, and outputs that are no tensors, against loops of plain torch."""

import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from refusals import code_of, refused
from stacks import fabric
from trainability.data.dataset import Dataset, Split
from trainability.errors import UnsupportedModelError
from trainability.stack import ways
from trainability.stack.module import Stack
from trainability.tasks import Loss, Metric, Task, TaskKind, names, prediction_of, register, task
from trainability.tasks.registry import _registered
from trainability.tasks.scoring import Evaluation
from trainability.training.batches import batches_of
from trainability.training.config import Member, TrainingConfig
from trainability.training.history import History
from trainability.training.schedules import Schedule
from trainability.training.trainer import Training

REGRESSION = Task(
    "regression",
    Loss(lambda outputs, targets: (outputs - targets).square().mean(-1), "squared error", "SE"),
    (
        Metric("mse", "min", lambda outputs, targets: (outputs - targets).square().mean(-1), worst=float("inf")),
        Metric("mae", "min", lambda outputs, targets: (outputs - targets).abs().mean(-1), worst=float("inf")),
    ),
)
RATES = (0.02, 0.05)


def images() -> Dataset:
    """Random images, and the brightness and contrast of each as targets ``(N, 2)``."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Split:
        pixels = torch.randint(256, (count, 1, 4, 4), dtype=torch.uint8, generator=generator)
        real = pixels.double().flatten(1) / 255
        return Split(pixels, torch.stack([real.mean(1), real.std(1)], 1))

    one = torch.ones(1, dtype=torch.float64)
    return Dataset("images", 1, part(256), part(64), part(64), 0.5 * one, 0.3 * one, "made here", 0)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 2)).double()


def trained(data: Dataset, config: TrainingConfig) -> Training:
    members = [Member(seed, lr) for seed, lr in enumerate(RATES)]
    histories = [History("none", 1, member.lr, member.seed) for member in members]
    models = [network(seed) for seed in range(2)]
    training = Training(models, members, histories, data, config, fabric("64-true"))
    training.prepare()
    while not training.done:
        training.advance()
    training.finish("done")
    return training


def test_regression_is_trained_as_in_a_loop_of_plain_torch():
    data = images()
    training = trained(data, TrainingConfig(5, 32, optimizer="sgd", task=REGRESSION))
    for seed, (lr, history) in enumerate(zip(RATES, training.histories, strict=True)):
        model = network(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr)
        batches = batches_of(data, [seed], 32)
        for step in range(5 * 8):
            x, y = (t[0] for t in batches(step))
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(training.stack.models[seed].state_dict()[name], value, rtol=1e-9, atol=1e-12)
        with torch.no_grad():
            outputs = model(data.inputs(data.test.inputs).double())
        last = history.scores[-1]
        assert last.test == pytest.approx(float(nn.functional.mse_loss(outputs, data.test.targets)), rel=1e-6)
        assert last.others["test_mae"] == pytest.approx(float((outputs - data.test.targets).abs().mean()), rel=1e-6)
        assert last.test < 0.5 * history.scores[0].test
        result = history.result()
        assert (result["test_mse"], result["val_mse"]) == (last.test, last.val)
        assert result["val_mae"] == last.others["val_mae"]
        assert list(result)[:3] == ["remedy", "seed", "status"]


def test_a_plateau_is_one_of_the_main_metric_in_its_direction():
    falling = TrainingConfig(6, 32, optimizer="sgd", task=REGRESSION, schedule=Schedule("plateau", patience=0))
    assert [o.param_groups[0]["lr"] for o in trained(images(), falling).updates.optimizers] == list(RATES)
    rising = TrainingConfig(
        6,
        32,
        optimizer="sgd",
        task=Task("rising", REGRESSION.loss, (Metric("mse", "max", REGRESSION.metric.of, worst=0.0),)),
        schedule=Schedule("plateau", patience=0),
    )
    for optimizer, lr in zip(trained(images(), rising).updates.optimizers, RATES, strict=True):
        assert optimizer.param_groups[0]["lr"] < 1e-3 * lr


@dataclass(frozen=True)
class Found:
    hidden: Tensor
    logits: Tensor
    note: str = "kept"


Pair = namedtuple("Pair", ["logits", "hidden"])
KINDS = {
    "tensor": lambda logits, _hidden: logits,
    "tuple": lambda logits, hidden: (logits, hidden),
    "namedtuple": Pair,
    "dict": lambda logits, hidden: {"hidden": hidden, "logits": logits, "note": "kept"},
    "nest": lambda logits, hidden: {"logits": logits, "inner": [None, (hidden, Found(hidden, logits))]},
    "dataclass": lambda logits, hidden: Found(hidden, logits),
}


class Returns(nn.Module):
    """Returns its logits, and more, in one of several forms."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.flatten, self.first, self.relu = nn.Flatten(), nn.Linear(16, 6), nn.ReLU()
        self.last, self.kind = nn.Linear(6, 3), kind

    def forward(self, x: Tensor) -> object:
        hidden = self.relu(self.first(self.flatten(x)))
        return KINDS[self.kind](self.last(hidden), hidden)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["direct", "vmap", "loop", "alone"])
def test_outputs_of_every_kind_come_back_as_the_models_own(kind, way):
    models = [Returns(kind, seed) for seed in range(1 if way == "alone" else 3)]
    x = torch.randn(len(models), 5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = [model(own) for model, own in zip(models, x, strict=True)]
    shared = [model(x[0]) for model in models]
    stack = Stack(models)
    ways.prepare(stack, x)
    assert stack.way == ("alone" if way == "alone" else "direct")
    stack.way = way
    labels = torch.randint(3, x.shape[:2], generator=torch.Generator().manual_seed(2))
    for outputs, wanted in ((stack(x).outputs, expected), (stack.predict(x[0]), shared)):
        assert type(outputs) is type(wanted[0])
        logits = torch.stack([prediction_of(one) for one in wanted])
        torch.testing.assert_close(prediction_of(outputs), logits)
        if kind in ("dict", "dataclass"):
            assert (outputs["note"] if kind == "dict" else outputs.note) == "kept"
        losses = [nn.functional.cross_entropy(*pair) for pair in zip(logits, labels, strict=True)]
        torch.testing.assert_close(task("classification").losses(outputs, labels), torch.stack(losses))
        right = (logits.argmax(-1) == labels).sum(1)
        evaluation = Evaluation(task("classification"), len(models))
        evaluation.update(outputs, labels)
        assert evaluation.values()["accuracy"] == pytest.approx((100 * right / 5).tolist())


@pytest.mark.parametrize("kind", ["tuple", "dict", "dataclass"])
@pytest.mark.parametrize("members", ["direct", "vmap", "loop"])
def test_a_model_of_any_outputs_is_trained_as_one_of_logits(kind, members):
    def weights(kind: str) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        part = Split(
            torch.randint(256, (64, 1, 4, 4), dtype=torch.uint8, generator=generator),
            torch.randint(3, (64,), generator=generator),
        )
        data = Dataset("noise", 3, part, part, part, torch.full((1,), 0.5), torch.full((1,), 0.3), "made here", 0)
        who = [Member(seed, 0.01) for seed in range(2)]
        histories = [History("none", 1, 0.01, member.seed) for member in who]
        models = [Returns(kind, seed) for seed in range(2)]
        training = Training(models, who, histories, data, TrainingConfig(2, 16, members=members, probes=1))
        training.prepare()
        while not training.done:
            training.advance()
        return training.stack.module.state_dict()

    expected, found = weights("tensor"), weights(kind)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_what_a_model_of_hugging_face_returns_is_classified_by_its_logits():
    outputs = pytest.importorskip("transformers.modeling_outputs").SequenceClassifierOutput
    logits = torch.tensor([[[2.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    found = outputs(loss=torch.zeros(2), logits=logits, hidden_states=(torch.zeros(2, 2, 5), torch.zeros(2, 2, 5)))
    labels = torch.zeros(2, 2, dtype=torch.long)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(2, 2).mean(1)
    torch.testing.assert_close(task("classification").losses(found, labels), expected)
    evaluation = Evaluation(task("classification"), 2)
    evaluation.update(found, labels)
    assert evaluation.values() == {"accuracy": [50.0, 0.0]}


def test_a_task_may_read_all_outputs():
    both = Task("both", Loss(lambda o, y: o["a"].sum(1) + o["b"] - y, "sum", "S"), (), reads=lambda outputs: outputs)
    outputs = {"a": torch.ones(2, 4, 3), "b": torch.arange(8.0).view(2, 4), "scale": torch.zeros(2)}
    assert both.losses(outputs, torch.zeros(2, 4)).tolist() == [4.5, 8.5]


@pytest.mark.parametrize("outputs", [None, "logits", (), {"logits": None}, [torch.arange(3)]])
def test_outputs_without_a_real_tensor_are_refused(outputs):
    with refused(UnsupportedModelError, "outputs-not-a-tensor"):
        prediction_of(outputs)


@pytest.mark.parametrize("way", ["alone", "vmap", "loop"])
def test_a_stack_refuses_a_model_that_returns_no_tensor(way):
    class Silent(nn.Linear):
        def forward(self, _x: Tensor) -> None:
            return None

    models = [Silent(4, 4) for _ in range(1 if way == "alone" else 2)]
    stack = Stack(models)
    stack.way = way
    with refused(UnsupportedModelError, "outputs-not-a-tensor"):
        stack(torch.zeros(len(models), 3, 4))


def test_tasks_are_found_by_name_and_others_can_be_registered():
    assert "classification" in names()
    assert code_of(lambda: task("clasification")) == "unknown-choice"
    try:

        @register("guessing")
        @dataclass(frozen=True)
        class Guessing(TaskKind):
            def task(self) -> Task:
                return REGRESSION

        assert task("guessing") is REGRESSION
    finally:
        _registered.pop("guessing", None)


def test_the_names_of_tasks_load_no_torch():
    code = "import sys; from trainability import tasks; tasks.names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_better_is_by_direction():
    accuracy, error = task("classification").metric, REGRESSION.metric
    assert accuracy.exceeds(15.0, 10.0, 5.0)
    assert not accuracy.exceeds(14.9, 10.0, 5.0)
    assert error.exceeds(5.0, 10.0, 5.0)
    assert not error.exceeds(5.1, 10.0, 5.0)
    assert accuracy.best([1.0, 3.0], key=float) == 3.0
    assert error.best([1.0, 3.0], key=float) == 1.0
