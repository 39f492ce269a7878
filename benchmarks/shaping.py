"""What DKS, TAT and EOC make of networks that others wrote: applied, with q measured against predicted, or refused.

    python benchmarks/shaping.py --family width --out results/shaping_width.json    # and so for torchvision and timm

torchvision and timm need an environment of their own. Models have random weights; nothing is downloaded. For each
model and remedy the record has the number of changes, and q and c of the last layer as predicted and as measured over
draws of the weights; or the code, the place and the reason of the refusal. ``width`` takes one network of each kind at
widths 128, 256 and 512: ``rms_log`` is the root mean square of log(measured / predicted) over 32 draws, which has to
fall, since the theory is of infinite width.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import records
import trainability as tr
from trainability.errors import TrainabilityError

Make = Callable[[], tuple[nn.Module, Any]]
REMEDIES = {
    "DKS": tr.DKS(batchnorm="remove"),
    "TAT": tr.TAT(batchnorm="remove"),
    "EOC": tr.EOC(batchnorm="remove"),
}
# Without AlexNet and VGG: an orthogonal draw of their 25,088 x 4,096 weights takes minutes.
TORCHVISION = [
    *("resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "densenet121"),
    *("googlenet", "inception_v3", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5"),
    *(
        "shufflenet_v2_x0_5",
        "efficientnet_b0",
        "regnet_x_400mf",
        "regnet_y_400mf",
        "convnext_tiny",
        "vit_b_16",
        "swin_t",
    ),
]
TIMM = [
    *("resnet18", "resnet26d", "resnetv2_50", "nf_resnet50", "nf_regnet_b0", "res2net50_26w_4s", "dla34", "darknet53"),
    *("hrnet_w18_small", "cspresnet50", "repvgg_a0", "ese_vovnet19b_dw", "selecsls42", "dpn68", "xception41"),
    *("inception_v4", "ghostnet_050", "mobilenetv3_small_050", "mixer_s32_224", "resmlp_12_224", "convmixer_768_32"),
    *("gmlp_s16_224", "vit_tiny_patch16_224", "deit3_small_patch16_224", "edgenext_xx_small", "rexnet_100"),
]


def torchvision_models(size: int) -> Iterator[tuple[str, Make]]:
    import torchvision

    for name in TORCHVISION:
        settings = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
        large = 224 if name in ("vit_b_16", "swin_t") else 96 if name == "inception_v3" else size

        def make(name: str = name, settings: Any = settings, large: int = large) -> tuple[nn.Module, Any]:
            return torchvision.models.get_model(name, weights=None, **settings), torch.randn(2, 3, large, large)

        yield name, make


def timm_models(size: int) -> Iterator[tuple[str, Make]]:
    import timm

    for name in TIMM:
        large = 224 if any(word in name for word in ("224", "vit", "edgenext")) else 96 if "inception" in name else size

        def make(name: str = name, large: int = large) -> tuple[nn.Module, Any]:
            return timm.create_model(name, pretrained=False), torch.randn(2, 3, large, large)

        yield name, make


def transformers_models(_size: int) -> Iterator[tuple[str, Make]]:
    from architectures import models

    yield from models().items()


class Block(nn.Module):
    """relu(x + f(x)), or x + f(relu(x))."""

    def __init__(self, width: int, before: bool) -> None:
        super().__init__()
        self.a, self.b, self.before = nn.Linear(width, width), nn.Linear(width, width), before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.before:
            return x + self.b(torch.relu(self.a(torch.relu(x))))
        return torch.relu(x + self.b(torch.relu(self.a(x))))


def width_models(_size: int) -> Iterator[tuple[str, Make]]:
    def plain(width: int) -> nn.Module:
        return nn.Sequential(
            *[m for _ in range(30) for m in (nn.Linear(width, width), nn.ReLU())], nn.Linear(width, width)
        )

    def residual(width: int, before: bool) -> nn.Module:
        return nn.Sequential(
            nn.Linear(width, width), *[Block(width, before) for _ in range(16)], nn.Linear(width, width)
        )

    kinds: dict[str, Callable[[int], nn.Module]] = {
        "plain, 30 layers": plain,
        "x + f(relu(x)), 16 blocks": lambda width: residual(width, True),
        "relu(x + f(x)), 16 blocks": lambda width: residual(width, False),
    }
    for name, kind in kinds.items():
        for width in (128, 256, 512):
            yield f"{name}, width {width}", lambda kind=kind, width=width: (kind(width), torch.randn(8, width))


FAMILIES: dict[str, Callable[[int], Iterator[tuple[str, Make]]]] = {
    "transformers": transformers_models,
    "torchvision": torchvision_models,
    "timm": timm_models,
    "width": width_models,
}


def spread(model: nn.Module, width: int, remedy: Any, predicted: float) -> float:
    """Root mean square of log(measured / predicted) of q at the output, over draws of the weights and inputs."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    # Of ReLUs: DKS and TAT draw what Init("suo") draws, EOC what Init("he") draws, or half that variance before any.
    scheme = "he" if isinstance(remedy, tr.EOC) else "suo"
    halved = [scheme == "he" and float(m.weight.detach().var()) * m.in_features < 1.5 for m in layers]
    logs = []
    for _ in range(32):
        tr.apply_(model, tr.Init(scheme))
        with torch.no_grad():
            for layer, half in zip(layers, halved, strict=True):
                layer.weight.mul_(math.sqrt(0.5) if half else 1.0)
            x = torch.randn(8, width)
            q = model(x / x.square().mean(1, keepdim=True).sqrt()).square().mean()
        logs.append(math.log(float(q) / predicted))
    return math.sqrt(sum(v * v for v in logs) / len(logs))


def outcome(family: str, make: Make, remedy: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    model, inputs = make()
    try:
        report = tr.apply_(model, remedy, inputs=inputs)
    except TrainabilityError as error:
        return {"refused": error.code, "path": getattr(error, "path", ""), "reason": str(error)}
    check = report.check
    assert check is not None
    last = check.layers[-1]
    wide = {"rms_log": spread(model, inputs.shape[1], remedy, last.q)} if family == "width" else {}
    return {
        **wide,
        "changes": len(report.changes),
        "draws": check.draws,
        "q": last.q,
        "measured_q": last.measured_q,
        "error": last.error,
        "c": last.c,
        "measured_c": last.measured_c,
        "largest_factor": max(layer.factor for layer in check.layers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", choices=FAMILIES, required=True)
    parser.add_argument("--remedy", action="append", choices=REMEDIES)
    parser.add_argument("--only", help="models whose name contains this")
    parser.add_argument("--size", type=int, default=64, help="of the images, where the architecture allows it")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = records.Rows(args.out, "cpu")
    for family in args.family:
        for name, make in FAMILIES[family](args.size):
            if args.only and args.only not in name:
                continue
            for kind in args.remedy or REMEDIES:
                try:
                    found = outcome(family, make, REMEDIES[kind])
                except Exception as error:  # of a library in another version, or a fault: it is shown
                    found = {"failed": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
                rows.add({"family": family, "model": name, "remedy": kind, **found})


if __name__ == "__main__":
    main()
