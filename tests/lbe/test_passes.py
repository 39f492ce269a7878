"""Which pass a loss belongs to, and in which mode it was made: the readings of a training pass wait for its loss."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import trainability as tr
from models_for_tests import Checkpointed, mlp


class Both(nn.Module):
    """A network that holds its LBE, as a LightningModule does."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = mlp(3, width)
        self.lbe = tr.LBE(self.net, alpha=2.0, beta=5.0)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.lbe(F.cross_entropy(self.net(x), y))


def set_modes(module: nn.Module, mode: bool) -> None:
    """As Lightning does it after a validation, without a call of train()."""
    for each in module.modules():
        each.training = mode


def batch(width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(32, width), torch.randint(4, (32,))


def gradients(module: nn.Module) -> list[torch.Tensor | None]:
    return [p.grad.clone() for p in module.parameters()]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_modes_that_are_set_directly(precision):
    """Several validations, accumulation and autocast, against a twin whose modes are set by train() and eval()."""
    ours = Both()
    twin = copy.deepcopy(ours)
    for number in range(6):
        x, y = batch()
        with torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
            if number % 2 == 0:  # validate
                set_modes(ours, False)
                with torch.no_grad():
                    assert ours.loss(x, y) == F.cross_entropy(ours.net(x), y)
                set_modes(ours, True)
            totals = [module.loss(x, y) for module in (ours, twin)]
        for total in totals:
            total.backward()
        torch.testing.assert_close(totals[0], totals[1])
        assert totals[0] > F.cross_entropy(ours.net(x), y)
    for a, b in zip(gradients(ours), gradients(twin), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore")  # Lightning has its own about loaders, and uses what torch has deprecated
def test_in_a_lightning_module():
    lightning = pytest.importorskip("pytorch_lightning", reason="Lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.both = Both()
            self.terms: list[float] = []

        def training_step(self, batch, _):
            total = self.both.loss(*batch)
            self.terms.append(self.both.lbe.last.lbe)
            return total

        def validation_step(self, batch, _):
            assert self.both.loss(*batch) == F.cross_entropy(self.both.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    module = Module()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch()), batch_size=16)
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", accumulate_grad_batches=2, val_check_interval=1, precision="bf16-mixed",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    assert len(module.terms) == 6
    assert min(module.terms) > 0


def evaluate(model: nn.Module, x: torch.Tensor) -> None:
    model.eval()
    with torch.no_grad():
        model(x)
    model.train()


def evaluate_with_graph(model: nn.Module, x: torch.Tensor) -> None:
    model.eval()
    model(x)
    model.train()


def without_graph(model: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        model(x)


def in_inference(model: nn.Module, x: torch.Tensor) -> None:
    with torch.inference_mode():
        model(x)


def look(model: nn.Module, x: torch.Tensor) -> None:
    tr.measure(model, x)


QUIET = [evaluate, without_graph, in_inference, look]


@pytest.mark.parametrize("between", [pair for n in (1, 2) for pair in itertools.permutations(QUIET, n)])
@pytest.mark.parametrize("kind", ["small", "large", "checkpointed"])
def test_passes_between_a_pass_and_its_loss_change_nothing(between, kind):
    width = 1200 if kind == "large" else 8
    model = Checkpointed(width, True) if kind == "checkpointed" else mlp(2, width)
    twin = copy.deepcopy(model)
    options = {"where": nn.ReLU, "alpha": 2.0, "beta": 5.0}
    ours, theirs = tr.LBE(model, **options), tr.LBE(twin, **options)
    for _ in range(2):
        x, y = batch(width)
        ce = F.cross_entropy(model(x), y)
        for step in between:
            step(model, torch.randn(16, width))
        total = ours(ce)
        expected = theirs(F.cross_entropy(twin(x), y))
        torch.testing.assert_close(total, expected)
        for step in between:  # and before the backward pass
            step(model, torch.randn(16, width))
        total.backward()
        expected.backward()
        for a, b in zip(gradients(model), gradients(twin), strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(ours.alpha.grad, theirs.alpha.grad)
        assert ours.last.entropy == theirs.last.entropy


@pytest.mark.parametrize("between", [evaluate, without_graph])
def test_passes_between_of_a_compiled_model(between):
    model = mlp(2).double()
    lbe = tr.LBE(model, beta=5.0)
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(2):
        x = torch.randn(16, 8, dtype=torch.float64)
        expected = lbe(model(x).square().mean())
        loss = compiled(x).square().mean()
        between(compiled, x[:8])
        total = lbe(loss)
        torch.testing.assert_close(total, expected)
        theirs = torch.autograd.grad(expected, model[0].weight)
        torch.testing.assert_close(torch.autograd.grad(total, model[0].weight), theirs)


def test_a_loss_of_an_evaluation_is_returned_whatever_waits():
    model, (x, y) = mlp(), batch()
    lbe = tr.LBE(model)
    model(x)  # whose loss never comes
    model.eval()
    with torch.no_grad():
        ce = F.cross_entropy(model(x), y)
        assert lbe(ce) is ce


def test_the_loss_of_the_training_pass_is_known_while_the_model_is_in_evaluation():
    model, (x, y) = mlp(), batch()
    lbe = tr.LBE(model)
    ce = F.cross_entropy(model(x), y)
    model.eval()
    with torch.no_grad():
        model(x)
    assert lbe(ce) > ce


def test_it_is_an_error_where_it_is_not_clear_whose_loss_it_is():
    model, (x, y) = mlp(), batch()
    lbe = tr.LBE(model)
    ce = F.cross_entropy(model(x), y)
    evaluate_with_graph(model, x)
    with pytest.raises(RuntimeError) as caught:
        lbe(ce)
    assert caught.value.code == "which-pass"


def test_a_pass_without_a_graph_has_no_term_that_trains():
    model, (x, y) = mlp(), batch()
    lbe = tr.LBE(model)
    with torch.no_grad():
        ce = F.cross_entropy(model(x), y)
    with pytest.raises(RuntimeError) as caught:
        lbe(ce)
    assert caught.value.code == "no-graph"
    with torch.no_grad():
        assert lbe(ce) > ce


def test_without_gradients_the_latest_pass_counts():
    model, (x, y) = mlp(), batch()
    lbe = tr.LBE(model)
    with torch.no_grad():
        model(x[:4])
    ce = F.cross_entropy(model(x), y)
    with torch.no_grad():
        value = lbe(ce)
    torch.testing.assert_close(value, lbe(F.cross_entropy(model(x), y)).detach())


def test_lbe_in_evaluation_leaves_the_readings_alone():
    model, (x, y) = mlp(), batch()
    lbe = tr.LBE(model)
    ce = F.cross_entropy(model(x), y)
    lbe.eval()
    model(x[:4])
    assert lbe(ce) is ce
    lbe.train()
    assert lbe(ce) > ce


def test_published_code_has_half_the_gradient_at_the_floor():
    """`torch.maximum` shares the gradient where both are equal; |alpha| has none at 0."""
    for alpha, floor in ((2.0, 2.0), (-2.0, 2.0), (0.0, 0.0), (0.7, 0.7), (0.9, 0.7)):
        model, (x, y) = mlp(2), batch()
        for convention in ("published-code", "paper"):
            with tr.LBE(model, alpha=alpha, alpha_min=floor, beta=0.3, convention=convention) as lbe:
                ce = F.cross_entropy(model(x), y)
                lbe(ce).backward()
            entropy = torch.tensor(list(lbe.last.entropy.values()))
            free = torch.full((2,), alpha, requires_grad=True)
            size = free.abs()
            target = torch.maximum(torch.tensor(floor), size) if convention == "published-code" else size
            (ce.detach() * 0.3 * (entropy - target).square().mean()).backward()
            torch.testing.assert_close(lbe.alpha.grad, free.grad)
