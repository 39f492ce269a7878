"""Models of the transformers library, with random weights: read, or refused by name."""

import copy

import pytest
import torch

import trainability as tr
from trainability.signal import read

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

STAGES = {"hidden_sizes": [16, 32], "depths": [2, 2]}


def model_of(kind, **settings):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings)
    return getattr(transformers, f"{kind}Model")(config), {"pixel_values": torch.randn(2, 3, 64, 64)}


@pytest.mark.parametrize(
    ("kind", "settings", "nonlinear", "affine", "sums"),
    [
        # stem and, in each of four blocks, two convolutions; one projection where the width changes
        ("ResNet", {"embedding_size": 16, "layer_type": "basic", **STAGES}, 1 + 4 * 2, 1 + 4 * 2 + 1, 4),
        # three convolutions in each; the first stage has a projection too, as its width is not the stem's
        ("ResNet", {"embedding_size": 24, "layer_type": "bottleneck", **STAGES}, 1 + 4 * 3, 1 + 4 * 3 + 2, 4),
        ("RegNet", {"embedding_size": 16, "groups_width": 8, "layer_type": "x", **STAGES}, 1 + 4 * 3, 1 + 4 * 3 + 2, 4),
        # stem, a convolution between stages, and in each block three weight layers around one activation
        ("ConvNext", {"num_stages": 2, **STAGES}, 4, 1 + 1 + 4 * 3, 4),
        # thirteen pairs of depthwise and pointwise convolutions
        ("MobileNetV1", {"depth_multiplier": 0.25}, 1 + 13 * 2, 1 + 13 * 2, 0),
    ],
)
def test_graphs_have_the_layers_that_the_architecture_has(kind, settings, nonlinear, affine, sums):
    model, inputs = model_of(kind, **settings)
    kinds = [node.kind for node in read(model, inputs).nodes]
    assert (kinds.count("nonlinear"), kinds.count("affine"), kinds.count("sum")) == (nonlinear, affine, sums)


def test_a_resnet_is_shaped_trains_and_is_put_back():
    model, inputs = model_of("ResNet", embedding_size=16, layer_type="basic", **STAGES)
    before = copy.deepcopy(model.state_dict())
    report = tr.apply_(model, tr.DKS(zeta=1.3, batchnorm="remove"), inputs=inputs)
    out = model(**inputs).pooler_output
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    report.undo()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "settings", "path"),
    [
        ("RegNet", {"groups_width": 8, "layer_type": "y", **STAGES}, "encoder.stages.0.layers.0.layer.2"),
        ("Segformer", {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]}, "stages.0.blocks.0.attention"),
        (
            "ViT",
            {"image_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
            "embeddings",
        ),
    ],
)
def test_gates_and_attention_are_refused_by_name(kind, settings, path):
    model, inputs = model_of(kind, **settings)
    with pytest.raises(tr.UnsupportedModelError) as caught:
        read(model, inputs)
    assert caught.value.path == path


@pytest.mark.parametrize("remedy", [tr.IC(keep=0.9), tr.SELU(init=None)])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ResNet", {"embedding_size": 16, "layer_type": "basic", **STAGES}),
        ("MobileNetV1", {"depth_multiplier": 0.25}),
        ("ConvNext", {"num_stages": 2, **STAGES}),
        ("ViT", {"image_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}),
    ],
)
def test_models_are_rewired_train_and_are_put_back(kind, settings, remedy):
    model, inputs = model_of(kind, **settings)
    model.eval()
    before, expected = copy.deepcopy(model.state_dict()), model(**inputs).last_hidden_state
    report = tr.apply_(model, remedy, inputs=inputs)
    assert report.changes
    model.train()(**inputs).last_hidden_state.square().mean().backward()
    report.undo()
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model.eval()(**inputs).last_hidden_state, expected)
