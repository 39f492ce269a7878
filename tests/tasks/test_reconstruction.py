"""Reconstruction against plain torch, and SSIM against its formula by SciPy's filters."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from refusals import refused
from trainability.data import load
from trainability.errors import ArgumentError
from trainability.tasks import task
from trainability.tasks.kinds.reconstruction import ssim
from trainability.tasks.scoring import Evaluation


def images(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images, and what they were."""
    generator = torch.Generator().manual_seed(0)
    originals = torch.rand(4, *shape, generator=generator)
    return (originals + 0.2 * torch.randn(originals.shape, generator=generator)).clamp(0, 1), originals


def by_formula(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of Wang et al. (2004), eq. 13, of one channel."""

    def mean(t: np.ndarray) -> np.ndarray:
        return gaussian_filter(t, 1.5, radius=5)[5:-5, 5:-5]

    means, spread = (mean(x), mean(y)), mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    top = (2 * means[0] * means[1] + 1e-4) * (2 * (mean(x * y) - means[0] * means[1]) + 9e-4)
    return float((top / ((means[0] ** 2 + means[1] ** 2 + 1e-4) * (spread + 9e-4))).mean())


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 11, 11), (2, 17, 40), (14, 20)])
def test_ssim_is_that_of_the_formula_channel_by_channel(shape):
    noisy, originals = images(*shape)
    pairs = zip(noisy.double().numpy(), originals.double().numpy(), strict=True)
    expected = [
        np.mean([by_formula(*channels) for channels in zip(*(t.reshape(-1, *shape[-2:]) for t in pair), strict=True)])
        for pair in pairs
    ]
    assert ssim(noisy, originals).tolist() == pytest.approx(expected, abs=1e-6)


def test_ssim_does_not_lose_small_variances_beside_large_means():
    noisy, originals = (0.9 + 1e-3 * t for t in images(1, 16, 16))
    expected = by_formula(noisy[0, 0].double().numpy(), originals[0, 0].double().numpy())
    assert float(ssim(noisy, originals)[0]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", ["bce", "squared"])
@pytest.mark.parametrize("flat", [True, False])
def test_logits_and_values_of_any_shape_have_one_loss_and_metrics(loss, flat):
    _, originals = images(1, 12, 12)
    logits = torch.randn(4, 1, 12, 12, requires_grad=True)
    plain = nn.functional.binary_cross_entropy if loss == "bce" else nn.functional.mse_loss
    expected = plain(logits.sigmoid(), originals)
    gradient = torch.autograd.grad(expected, logits)[0]
    for outputs, returned in (("logits", logits), ("unit", logits.sigmoid())):
        given = (returned.flatten(1) if flat else returned).unsqueeze(0)
        kind = task("reconstruction", loss=loss, outputs=outputs)
        kind.check(given[0], originals)
        found = kind.losses(given, originals.unsqueeze(0))
        torch.testing.assert_close(found, expected.unsqueeze(0))
        torch.testing.assert_close(torch.autograd.grad(found.sum(), logits, retain_graph=True)[0], gradient)
        evaluation = Evaluation(kind, 1)
        evaluation.update(given.detach(), originals.unsqueeze(0))
        values, rebuilt = evaluation.values(), logits.detach().sigmoid()
        assert values["mse"][0] == pytest.approx(float((rebuilt - originals).square().mean()), rel=1e-5)
        assert values["ssim"][0] == pytest.approx(float(ssim(rebuilt, originals).mean()), rel=1e-5)


def test_a_network_that_diverged_does_not_end_the_others():
    _, originals = images(6)
    outputs = torch.stack([torch.full((4, 6), torch.nan), torch.zeros(4, 6), torch.ones(4, 6)])
    found = task("reconstruction", outputs="unit", metric="mse").losses(outputs, originals.expand(3, 4, 6))
    assert found.isfinite().tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("settings", "outputs", "targets", "code"),
    [
        ({}, torch.zeros(8, 64), torch.rand(8, 1, 8, 8), "targets"),  # too small for SSIM
        ({}, torch.zeros(8, 144), torch.rand(8, 144), "targets"),  # no image
        ({"metric": "mse"}, torch.zeros(8, 3), torch.zeros(8, dtype=torch.long), "targets"),
        ({"metric": "mse"}, torch.zeros(8, 3), torch.rand(8, 3) * 255, "targets"),
        ({"metric": "mse"}, torch.zeros(8, 3), torch.rand(8, 3) - 0.5, "targets"),
        ({"metric": "mse"}, torch.zeros(8, 3), {"x": torch.rand(8, 3)}, "targets"),
        ({"metric": "mse"}, torch.zeros(8, 4), torch.rand(8, 3), "outputs"),
        ({"metric": "mse"}, torch.zeros(8, 3, 2), torch.rand(8, 2, 3), "outputs"),
        ({"metric": "mse", "outputs": "unit"}, torch.full((8, 3), 1.5), torch.rand(8, 3), "outputs"),
    ],
)
def test_what_does_not_fit_is_refused(settings, outputs, targets, code):
    with refused(ArgumentError, code):
        task("reconstruction", **settings).check(outputs, targets)


def test_images_too_small_for_ssim_are_told_of_the_other_metric():
    with refused(ArgumentError, "targets", "metric: mse"):
        task("reconstruction").check(torch.zeros(8, 64), torch.rand(8, 1, 8, 8))
    task("reconstruction", metric="mse").check(torch.zeros(8, 64), torch.rand(8, 1, 8, 8))


def test_data_sets_by_name_give_their_images_as_targets():
    assert task("reconstruction").reconstructs
    data = load("digits").reconstructing()
    inputs, targets = data.prepared(data.train.first(8))
    assert torch.equal(inputs, targets)
    assert (float(inputs.min()), float(inputs.max())) == (0.0, 1.0)


def test_chance_is_what_the_mean_image_has():
    _, originals = images(1, 12, 12)
    mean = originals.mean(0, keepdim=True).expand_as(originals)
    assert task("reconstruction").chance.of(originals) == pytest.approx(float(ssim(mean, originals).mean()))
    error = task("reconstruction", metric="mse").chance.of(originals)
    assert error == pytest.approx(float((mean - originals).square().mean()))
