import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import trainability as tr
from models_for_tests import Functional
from trainability.diagnosis.decay import predict_std
from trainability.diagnosis.labels import label_dependence
from trainability.models import fnn
from trainability.remedies import LBELoss


def deep(depth: int, width: int = 128, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(width, width), act())], nn.Linear(width, 4))


def batch(width: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(256, width), torch.randint(4, (256,))


def test_default_initialization_at_depth_30_is_found_dead_for_the_right_reason():
    verdict = tr.diagnose(deep(30), *batch(), nn.functional.cross_entropy)
    text = str(verdict)
    assert not verdict.healthy
    assert verdict.fails_at in ("3", "5", "7", "9")
    assert "that explains it" in text
    assert "vanishes on its way back" in text
    assert verdict.label_dependence < 1e-3
    assert verdict.remedies[0] == tr.Init("he")
    assert isinstance(verdict.remedies[-1], LBELoss)
    assert "apply_(model, TAT(), inputs=inputs)" in text


def test_the_first_remedy_of_a_verdict_is_an_object_that_helps():
    model, (x, y) = deep(30), batch()
    verdict = tr.diagnose(model, x, y, nn.functional.cross_entropy)
    tr.apply_(model, verdict.remedies[0], inputs=x)
    assert tr.diagnose(model, x, y, nn.functional.cross_entropy).fails_at is None


def test_he_initialization_is_healthy():
    model = deep(10)
    tr.apply_(model, tr.Init("he"))
    verdict = tr.diagnose(model, *batch(), nn.functional.cross_entropy)
    assert verdict.healthy, str(verdict)
    assert verdict.label_dependence > 0.3


@pytest.mark.parametrize(("act", "squares"), [(nn.ReLU, 0.5), (lambda: nn.LeakyReLU(0.3), (1 + 0.09) / 2)])
def test_predicted_std_uses_the_known_slope(act, squares):
    """E[φ'²] is 1/2 for ReLU and (1 + s²)/2 for leaky ReLU; PyTorch's default has n Var w = 1/3."""
    model = deep(4, 1024, act)
    values = list(predict_std(model, torch.randn(64, 1024)).values())
    for a, b in pairwise(values):
        assert b / a == pytest.approx(math.sqrt(squares / 3), rel=0.02)


def test_tanh_slope_by_quadrature():
    from trainability.diagnosis.decay import _slope_square

    z = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
    exact = torch.trapezoid((1 - torch.tanh(z) ** 2) ** 2 * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi), z)
    assert _slope_square(nn.Tanh(), 0.0, 1.0) == pytest.approx(exact.item(), rel=1e-3)


def test_label_dependence_of_a_dead_layer_is_zero_and_of_a_live_one_is_not():
    x, y = batch()
    constant = nn.Sequential(nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        constant[0].weight.zero_()
        constant[0].bias.fill_(1.0)
    constant[0].requires_grad_(False)
    assert label_dependence(constant, x, y, nn.functional.cross_entropy) < 1e-6
    assert label_dependence(nn.Linear(128, 4), x, y, nn.functional.cross_entropy) > 0.5


def test_parts_that_fail_are_named_and_the_rest_is_said():
    model = deep(30)
    verdict = tr.diagnose(model, batch()[0])
    assert any("pass targets and loss" in part for part in verdict.not_computed)
    assert verdict.fails_at

    def broken(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("bad loss")

    verdict = tr.diagnose(model, *batch(), broken)
    assert any("bad loss" in part for part in verdict.not_computed)
    assert verdict.fails_at


def test_a_model_that_cannot_run_still_gets_a_verdict():
    verdict = tr.diagnose(deep(3), torch.randn(4, 7))
    assert not verdict.healthy
    assert "could not be measured" in verdict.summary
    assert verdict.not_computed


def test_nan_and_explosion_name_the_layer():
    model = deep(5)
    with torch.no_grad():
        model[4].weight.fill_(float("inf"))
    verdict = tr.diagnose(model, *batch(), nn.functional.cross_entropy)
    assert verdict.fails_at == "5"
    assert "not finite" in verdict.summary


def test_since_when():
    dying, x = deep(30), batch()[0]
    dead = tr.measure(dying, x)
    living = deep(30)
    tr.apply_(living, tr.Init("he"))
    alive = tr.measure(living, x)
    for history, words in (
        ({0: dead, 10: dead}, "silent at initialization"),
        ({0: alive, 10: alive, 20: dead}, "has been silent since step 20; at step 10 it was not"),
        ({0: dead, 10: alive, 20: dead}, "has been silent since step 20; at step 10 it was not"),
        ({0: alive}, "fell silent after step 0"),
        ({5: dead}, "silent at step 5 already"),
        (None, "pass history="),
    ):
        assert words in str(tr.diagnose(dying, x, history=history))


def test_an_exploding_gradient_is_not_healthy():
    model = deep(40, act=nn.Tanh)
    for layer in model[:-1:2]:
        nn.init.normal_(layer.weight, std=3 / 128**0.5)
    verdict = tr.diagnose(model, *batch(), nn.functional.cross_entropy)
    assert not verdict.healthy
    assert "the gradient explodes" in verdict.summary
    assert verdict.remedies


def test_a_wrong_where_is_an_error_and_not_a_verdict():
    with pytest.raises(tr.TrainabilityError) as caught:
        tr.diagnose(deep(2), batch()[0], where="x*")
    assert caught.value.code == "where-matches-nothing"


def test_functional_models_get_a_verdict_without_a_prediction():
    verdict = tr.diagnose(Functional(), torch.randn(32, 8), torch.randint(4, (32,)), nn.functional.cross_entropy)
    assert verdict.flow is not None
    assert verdict.predicted_std == {}
    assert any("needs nonlinearities as modules" in part for part in verdict.not_computed)


def test_the_prediction_of_the_kernels_is_part_of_the_evidence():
    torch.manual_seed(0)
    x = torch.randn(32, 64)
    verdict = tr.diagnose(fnn(64, 40, 64, 10), x)
    assert "inputs become indistinguishable" in str(verdict)
    assert verdict.prediction.collapses_at in str(verdict)
    model = fnn(64, 40, 64, 10)
    tr.apply_(model, tr.TAT(), inputs=x)
    healthy = tr.diagnose(model, x)
    assert healthy.healthy
    assert "predicts that the signal gets through" in str(healthy)
    attention = nn.TransformerEncoderLayer(16, 2, batch_first=True)
    refused = tr.diagnose(attention, torch.randn(4, 5, 16))
    assert any("kernels" in reason for reason in refused.not_computed)
