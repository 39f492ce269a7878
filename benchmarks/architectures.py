"""Which architectures of the transformers library can be read and rewired, and what is named where one cannot.

    python benchmarks/architectures.py --out docs/architectures.md

Models are small ones with random weights, made from their configurations; nothing is downloaded. For those that are
read, what `apply_(model, DKS(zeta, batchnorm="remove"))` says of them is there too. A second table says what becomes of
them with IC layers, LayerNorm and SELU: how many changes, and whether they still train a step.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import trainability as tr
from trainability.signal import read

os.environ["HF_HUB_OFFLINE"] = "1"


def models() -> dict[str, Callable[[], tuple[torch.nn.Module, Any]]]:
    import transformers as t

    images = {"pixel_values": torch.randn(2, 3, 64, 64)}
    tokens = {"input_ids": torch.randint(0, 50, (2, 9))}
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

    def vision(kind: str, inputs: Any = images, **settings: Any) -> Callable[[], tuple[torch.nn.Module, Any]]:
        def make() -> tuple[torch.nn.Module, Any]:
            config = getattr(t, kind + "Config")(**settings)
            return getattr(t, kind + "Model")(config), inputs

        return make

    stages = {"hidden_sizes": [16, 32], "depths": [2, 2]}
    return {
        "ResNet, basic blocks": vision("ResNet", embedding_size=16, layer_type="basic", **stages),
        "ResNet, bottlenecks": vision("ResNet", embedding_size=16, layer_type="bottleneck", **stages),
        "RegNet X": vision("RegNet", embedding_size=16, groups_width=8, layer_type="x", **stages),
        "RegNet Y": vision("RegNet", embedding_size=16, groups_width=8, layer_type="y", **stages),
        "BiT": vision(
            "Bit", embedding_size=32, hidden_sizes=[32, 64], depths=[2, 2], num_groups=8, layer_type="preactivation"
        ),
        "ConvNeXt": vision("ConvNext", num_stages=2, **stages),
        "ConvNeXt V2": vision("ConvNextV2", num_stages=2, **stages),
        "MobileNet V1": vision("MobileNetV1", depth_multiplier=0.25),
        "MobileNet V2": vision("MobileNetV2", depth_multiplier=0.35),
        "EfficientNet": vision("EfficientNet", width_coefficient=0.3, depth_coefficient=0.3, hidden_dim=384),
        "PoolFormer": vision("PoolFormer", hidden_sizes=[16, 32, 32, 32], depths=[1, 1, 1, 1]),
        "ViT": vision("ViT", image_size=64, patch_size=16, **small),
        "Swin": vision(
            "Swin", image_size=64, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
        ),
        "SegFormer": vision("Segformer", hidden_sizes=[16, 32, 32, 32], depths=[1, 1, 1, 1]),
        "BERT": vision("Bert", tokens, vocab_size=50, **small),
        "GPT-2": vision("GPT2", tokens, vocab_size=50, n_embd=32, n_layer=2, n_head=2),
    }


def row(name: str, make: Callable[[], tuple[torch.nn.Module, Any]]) -> str:
    torch.manual_seed(0)
    try:
        model, inputs = make()
    except Exception as error:  # not in this version of the library, or with other settings
        return f"| {name} | not made: {type(error).__name__}: {str(error).partition(chr(10))[0]} | |"
    try:
        graph = read(model, inputs)
    except tr.UnsupportedModelError as error:
        return f"| {name} | refused: `{error.path or 'the model'}`: {error.problem.partition('. ')[0]} | |"
    kinds = [node.kind for node in graph.nodes]
    found = f"{len(graph.nonlinear)} nonlinear layers, {kinds.count('affine')} weight layers, {kinds.count('sum')} sums"
    try:
        report = tr.apply_(model, tr.DKS(zeta=1.1, batchnorm="remove"), inputs=inputs)
        shaped = f"{len(report.changes)} changes; {compared(report.check)}"
    except ValueError as error:
        shaped = "refused: " + str(error).partition(". ")[0]
    return f"| {name} | {found}, depth {graph.depth} | {shaped} |"


def compared(check: Any) -> str:
    last = check.layers[-1]
    return f"q {last.q:.3g} predicted, {last.measured_q:.3g} measured ({check.draws} draws)"


def recorded(path: Path, remedies: tuple[str, ...] = ("DKS", "TAT", "EOC")) -> str:
    """A table of what `benchmarks/shaping.py` found."""
    record = json.loads(path.read_text())
    models: dict[str, dict[str, str]] = {}
    for row in record["rows"]:
        name = f"{row['family']} {row['model']}" if row["family"] != "width" else row["model"]
        models.setdefault(name, {})[row["remedy"]] = cell(row)
    head = ["| model | " + " | ".join(remedies) + " |", "| --- |" + " --- |" * len(remedies)]
    rows = [f"| {name} | " + " | ".join(cells.get(r, "") for r in remedies) + " |" for name, cells in models.items()]
    about = record["environment"]
    versions = ", ".join(f"{key} {value}" for key, value in about.items() if key in ("torch", "python", "git commit"))
    return "\n".join([*head, *rows, "", f"({versions}; `{record['command']}`, data in `{path}`)"])


def cell(row: dict[str, Any]) -> str:
    if "refused" in row:
        reason = (
            row["reason"].removeprefix(f"{row['path']}: ").partition(". ")[0].partition("; ")[0].partition(", for ")[0]
        )
        return f"refused (`{row['refused']}`): `{row['path'] or 'the model'}`: {reason[:160]}"
    if "failed" in row:
        return f"not made: {row['failed'][:80]}"
    if "rms_log" in row:
        return f"{row['rms_log']:.3f}"
    return f"{row['changes']} changes; q {row['q']:.3g}, measured {row['measured_q']:.3g}"


def rewired(name: str, make: Callable[[], tuple[torch.nn.Module, Any]]) -> str:
    cells = []
    for remedy in (tr.IC(keep=0.9), tr.Normalize("layer"), tr.SELU()):
        torch.manual_seed(0)
        try:
            model, inputs = make()
            report = tr.apply_(model, remedy, inputs=inputs)
            cells.append(f"{len(report.changes)} changes, {len(report.skipped)} skipped; {trained(model, inputs)}")
        except ValueError as error:
            lines = str(error).splitlines()
            cells.append("refused: " + ": ".join([lines[0].partition(") ")[2] or lines[0], *lines[2:3]]))
    return f"| {name} | " + " | ".join(cells) + " |"


def trained(model: torch.nn.Module, inputs: Any) -> str:
    """Train one step, and say whether it moved the outputs and reached what is new."""
    model.train()
    new = [p for path, p in model.named_parameters() if ".ic." in path or ".norm." in path]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    outputs = first(model(**inputs))
    loss = (outputs - torch.randn_like(outputs)).square().mean()
    loss.backward()
    reached = sum(p.grad is not None for p in new)
    before = first(model.eval()(**inputs)).detach()
    optimizer.step()
    moved = not torch.equal(before, first(model(**inputs)).detach())
    works = bool(loss.isfinite()) and moved
    left = f", {len(new) - reached} of {len(new)} new parameters without a gradient" if reached < len(new) else ""
    return ("trains a step" if works else "does not train") + left


def first(outputs: Any) -> torch.Tensor:
    return next(value for value in outputs.values() if isinstance(value, torch.Tensor))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import transformers

    rows = [row(name, make) for name, make in models().items()]
    table = "\n".join(["| model | `read` | `DKS(zeta=1.1)` |", "| --- | --- | --- |", *rows])
    head = ['| model | `IC(keep=0.9)` | `Normalize("layer")` | `SELU()` |', "| --- | --- | --- | --- |"]
    second = "\n".join([*head, *(rewired(name, make) for name, make in models().items())])
    text = (
        "# Architectures that nobody here wrote\n\n"
        f"Small models of transformers {transformers.__version__} with random weights, torch {torch.__version__}; "
        "`python benchmarks/architectures.py --out docs/architectures.md` writes this page.\n\n" + table + "\n\n"
        "## Rewired\n\n"
        "What `apply_` changes, and what the model does then in training mode on a batch of two.\n\n" + second + "\n"
    )
    wide, *vision = (Path(f"results/shaping_{name}.json") for name in ("width", "torchvision", "timm"))
    if wide.exists():
        text += (
            "\n## Measured against predicted, by width\n\n"
            "Root mean square of log(measured / predicted) of q at the last layer, over 32 draws of weights and "
            "inputs. The theory is of infinite width, so it has to fall, by about √2 from one width to the next.\n\n"
            + recorded(wide)
            + "\n"
        )
    if all(path.exists() for path in vision):
        text += (
            "\n## torchvision and timm\n\n"
            "Whole models with random weights, images of 64×64 where the architecture allows them, "
            "`batchnorm='remove'`: what is changed, with q at the last layer as predicted and as measured over draws "
            "of the weights; or what is refused, where and why. Poolings are taken as measured, so a maximum in the "
            "stem shows in both numbers.\n\n" + "\n\n".join(map(recorded, vision)) + "\n"
        )
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
