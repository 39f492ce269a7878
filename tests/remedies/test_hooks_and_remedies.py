"""Hooks on what a remedy replaces go with it and come back, and LBE goes on reading what the network computes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainability as tr
from models_for_tests import Functional
from trainability.introspect.hooks import pausing


def network() -> nn.Sequential:
    deep = [m for _ in range(12) for m in (nn.Linear(32, 32), nn.ReLU())]
    return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), *deep, nn.Linear(32, 4))


REMEDIES = [
    tr.TAT(eta=0.6, batchnorm="remove"), tr.DKS(batchnorm="remove"), tr.SELU(), tr.IC(), tr.Normalize("layer"),
]  # fmt: skip


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return F.cross_entropy(model(x), torch.arange(len(x)) % 4)


@pytest.mark.parametrize("remedy", REMEDIES, ids=repr)
def test_hooks_move_to_the_substitute_and_back(remedy):
    model, x = network(), torch.randn(64, 16)
    seen: dict[str, list[Tensor]] = {}
    counts = dict.fromkeys(("before", "before with names", "norm", "backward"), 0)

    def count(kind: str) -> None:
        counts[kind] += 1

    watched = [str(i) for i in range(2, 27, 2)]
    for path in watched:
        module = model.get_submodule(path)
        module.register_forward_hook(lambda _m, _i, o, path=path: seen.setdefault(path, []).append(o.detach().clone()))
    handles = [
        model[2].register_forward_pre_hook(lambda _m, _i: count("before")),
        model[2].register_forward_pre_hook(lambda _m, _i, _k: count("before with names"), with_kwargs=True),
        model[1].register_forward_hook(lambda _m, _i, _o: count("norm")),
        model[2].register_full_backward_hook(lambda _m, _i, _o: count("backward")),
    ]
    lbe = tr.LBE(model)
    assert lbe.selection.paths == tuple(watched)
    loss(model, x)

    def check(times: int) -> None:
        seen.clear()
        counts.update(dict.fromkeys(counts, 0))
        lbe(loss(model, x)).backward()
        expected = [tr.batch_entropy(seen[path][0]).item() for path in watched]
        assert list(lbe.last.entropy.values()) == pytest.approx(expected, rel=1e-5)
        assert list(counts.values()) == [times] * len(counts)
        assert {len(outputs) for outputs in seen.values()} == {1}

    check(1)
    report = tr.apply_(model, remedy, inputs=x)
    check(1)
    for handle in handles:
        handle.remove()
    check(0)
    report.undo()
    assert type(model[2]) is nn.ReLU
    lbe.remove()
    assert {len(model[int(path)]._forward_hooks) for path in watched} == {1}


def test_a_handle_removed_while_a_remedy_is_applied():
    model, x = network(), torch.randn(64, 16)
    lbe = tr.LBE(model)
    tr.apply_(model, tr.SELU(), inputs=x)
    lbe.remove()
    assert not any(module._forward_hooks for module in model.modules())


class Pooled(nn.Module):
    """No module is given what ReLU returns."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.f = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        return self.f(F.max_pool2d(F.relu(self.c2(x)), 2).flatten(1))


def relus_of(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    original = F.relu

    def relu(v: Tensor, inplace: bool = False) -> Tensor:
        found.append(tr.batch_entropy(original(v).detach()).item())
        return original(v)

    with monkeypatch.context() as patched, pausing(model):
        patched.setattr(F, "relu", relu)
        model(x)
    return found


@pytest.mark.parametrize("first", ["lbe", "remedy"])
@pytest.mark.parametrize("remedy", [tr.Normalize("layer"), tr.IC(keep=1.0), tr.Residual()], ids=repr)
def test_remedies_that_work_by_hooks_of_their_own(remedy, first, monkeypatch):
    """In whatever order, what ReLU returns in the network is read."""
    if isinstance(remedy, tr.Residual):
        model, x, options = Functional(), torch.randn(32, 8), {"where": "second"}
    else:
        model, x, options = Pooled(), torch.randn(32, 1, 8, 8), {}
    lbe = tr.LBE(model, inputs=x) if first == "lbe" else None
    tr.apply_(model, remedy, inputs=x, **options)
    for known in (x, None):
        expected = relus_of(model, x, monkeypatch)
        lbe = lbe or tr.LBE(model, inputs=known)
        lbe(loss(model, x)).backward()
        assert [lbe.last.entropy[n] for n in lbe.last.entropy][: len(expected)] == pytest.approx(expected, rel=1e-5)
        lbe.remove()
        lbe = None


def test_a_forward_that_was_rewritten_is_not_read_as_it_was():
    model, x = Pooled(), torch.randn(32, 1, 8, 8)
    lbe = tr.LBE(model, inputs=x)
    assert lbe.selection.paths == ("relu of c1", "relu of c2")
    before = lbe(loss(model, x)).item()
    report = tr.apply_(model, tr.SELU(init=None), inputs=x)
    with pytest.raises(tr.UnsupportedModelError) as caught:
        model(x)
    assert caught.value.code == "forward-replaced"
    with tr.LBE(model, inputs=x) as again:
        lbe.remove()
        again(loss(model, x))
        assert list(again.last.entropy) == ["selu", "selu#2"]
    report.undo()
    with tr.LBE(model, inputs=x) as again:
        assert again(loss(model, x)).item() == pytest.approx(before)


def test_undo_lets_lbe_read_on():
    model, x = Pooled(), torch.randn(32, 1, 8, 8)
    lbe = tr.LBE(model, inputs=x)
    before = lbe(loss(model, x)).item()
    tr.apply_(model, tr.SELU(init=None), inputs=x).undo()
    assert lbe(loss(model, x)).item() == pytest.approx(before)


def test_results_given_to_a_module_are_read_whatever_makes_them():
    model, x = Functional(), torch.randn(32, 8)
    lbe = tr.LBE(model, inputs=x)
    tr.apply_(model, tr.SELU(init=None), inputs=x)
    lbe(loss(model, x))
    hidden = F.selu(model.first(x))
    expected = [tr.batch_entropy(a).item() for a in (hidden, model.second(hidden).tanh())]
    assert list(lbe.last.entropy.values()) == pytest.approx(expected, rel=1e-5)
