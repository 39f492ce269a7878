"""What the package does on a device that is not the CPU; run as a script, it prints a JSON object of what failed."""

import copy
import json
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainability as tr
import trainability.data.seeding
from accelerator import Accelerator, fabric
from stacks import MEMBERS, network, plain, plan, training
from trainability.data import load
from trainability.dependence.dropout import dropout_effects
from trainability.dependence.pairs import independence
from trainability.models import fnn, resnet
from trainability.signal import measured, predict
from trainability.training.history import History
from trainability.training.trainer import Training

CHECKS: dict[str, Callable[[], Any]] = {}
_on_cpu = trainability.data.seeding.Generators.__init__
trainability.data.seeding.Generators.__init__ = lambda self, seeds, _device=None: _on_cpu(self, seeds)


def check(function: Callable[[], Any]) -> Callable[[], Any]:
    CHECKS[function.__name__] = function
    return function


def _inputs() -> Tensor:
    return torch.randn(64, 16).to("acc")


def _labels() -> Tensor:
    return torch.randint(4, (64,)).to("acc")


def _network(nonlinearity: str = "relu") -> nn.Module:
    return fnn(16, 20, 16, 4, nonlinearity=nonlinearity).to("acc")


def _train(kind: str, count: int, members: str = "auto") -> None:
    """Train there and on the CPU, take the training up again, and compare."""
    models = [plain(e) if kind == "plain" else network(kind, e) for e in range(count)]
    options: dict[str, Any] = {"members": members, "options": {"fused": False}}
    reference = training(copy.deepcopy(models), MEMBERS[:count], **options)
    reference.prepare()
    while not reference.done:
        reference.advance()
    reference.finish("done")
    with Accelerator():
        found = _training(models, **options)
        found.prepare()
        for _ in range(20):
            found.advance()
        state = copy.deepcopy(found.state())
        again = _training([plain(e) if kind == "plain" else network(kind, e) for e in range(count)], **options)
        again.load(state)
        for each in (found, again):
            while not each.done:
                each.advance()
            each.finish("done")
        for history, other, expected in zip(found.histories, again.histories, reference.histories, strict=True):
            assert history.scores == other.scores == expected.scores, (history.scores, expected.scores)
            assert history.losses == other.losses
            for point, wanted in zip(history.losses, expected.losses, strict=True):
                assert abs(point.loss - wanted.loss) < 1e-4 * wanted.loss


def _training(models: list[nn.Module], **options: Any) -> Training:
    who = MEMBERS[: len(models)]
    models = [model.to("acc") for model in models]
    histories = [History("", 0, m.lr, m.seed) for m in who]
    return Training(models, who, histories, load("digits"), plan(**options), fabric())


@check
def a_direct_stack() -> None:
    _train("plain", 3)


@check
def a_mapped_stack() -> None:
    _train("fnn", 3)


@check
def convolutions() -> None:
    _train("conv", 3)


@check
def members_one_after_another() -> None:
    _train("conv", 3, "loop")


@check
def a_network_alone() -> None:
    _train("fnn", 1)


@check
def a_member_that_diverges() -> None:
    with Accelerator():
        found = _training([plain(e) for e in range(3)], members="auto", options={"fused": False})
        found.prepare()
        for step in range(24):
            if step == 8:
                with torch.no_grad():
                    found.stack.module[1].weight[1].fill_(float("inf"))
            found.advance()
        assert found.alive == [True, False, True]
        assert [r.steps for r in found.histories] == [24, 20, 24]


@check
def lbe() -> None:
    model = _network()
    term = tr.LBE(model)
    optimizer = torch.optim.Adam([*model.parameters(), *term.parameters()], fused=False)
    for _ in range(3):
        optimizer.zero_grad()
        term(F.cross_entropy(model(_inputs()), _labels())).backward()
        optimizer.step()


@check
def measuring() -> None:
    tr.measure(_network(), _inputs(), independence=True)
    tr.measure(resnet(8, 4, in_channels=3, width=8).to("acc"), torch.randn(8, 3, 16, 16).to("acc"))
    tr.diagnose(_network(), _inputs(), _labels(), F.cross_entropy)
    predict(_network(), _inputs())
    measured(_network(), _inputs())
    independence(_inputs())
    dropout_effects(_inputs()[:, 0], _inputs()[:, 1])
    tr.batch_entropy(_inputs())
    tr.differential_entropy(_inputs().double())


@check
def remedies() -> None:
    for remedy in (
        tr.Init("he"),
        tr.Init("lsuv"),
        tr.TAT(),
        tr.DKS(),
        tr.EOC(),
        tr.IC(),
        tr.SELU(),
        tr.Normalize("batch"),
        tr.Normalize("weight"),
        tr.Residual("rezero"),
        tr.Residual("fixup"),
    ):
        model = _network("tanh" if isinstance(remedy, tr.DKS | tr.EOC) else "relu")
        before = {name: t.clone() for name, t in model.state_dict().items()}
        report = tr.apply_(model, remedy, inputs=_inputs())
        F.cross_entropy(model(_inputs()), _labels()).backward()
        report.undo()
        assert all(bool((t == before[name]).all()) for name, t in model.state_dict().items()), remedy


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    failed = {}
    for name, function in CHECKS.items():
        torch.manual_seed(0)
        try:
            if name in {"lbe", "measuring", "remedies"}:
                with Accelerator():
                    function()
            else:
                function()
        except Exception:
            failed[name] = traceback.format_exc(limit=-6)
    print(json.dumps({"ran": list(CHECKS), "failed": failed}))


if __name__ == "__main__":
    main()
