"""The loss and its gradients against independent statements, then one test per hazard of reading activations."""

import copy
import io
import pickle
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import trainability as tr
from models_for_tests import Checkpointed, Overwritten, Residual, Reused, Structured, mlp
from reference import numpy_lbe, numpy_neuron_entropy, plain_total


def batch(count: int = 32, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 8, dtype=dtype), torch.randint(4, (count,))


def collect(model: nn.Module, kind: type[nn.Module] = nn.ReLU) -> list[torch.Tensor]:
    """Clones of what the modules of ``kind`` return, in order, as an independent way of reading."""
    seen: list[torch.Tensor] = []
    for module in model.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda _m, _i, o: seen.append(o.clone()))
    return seen


@pytest.mark.parametrize("seed", range(6))
def test_loss_and_every_gradient_equal_plain_autograd(seed):
    generator = np.random.default_rng(seed)
    depth, width, count = (int(generator.integers(lo, hi)) for lo, hi in ((1, 6), (2, 300), (2, 200)))
    alpha, beta, alpha_min = generator.uniform(0.1, 2), generator.uniform(0.01, 2), generator.uniform(0, 0.5)
    model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), *mlp(depth, width)[:-1], nn.Linear(width, 4)).double()
    x, y = batch(count, torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lbe = tr.LBE(model, alpha=alpha, beta=beta, alpha_min=alpha_min)
    with torch.no_grad():
        lbe.alpha += 0.1 * torch.randn_like(lbe.alpha)
    seen = collect(model)
    for _ in range(2):  # the first pass copies activations, the second does not
        seen.clear()
        ce = nn.functional.cross_entropy(model(x), y)
        total = lbe(ce)
        expected = plain_total(ce, seen, lbe.alpha, beta, alpha_min)
        torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-12)
        theirs = torch.autograd.grad(expected, [*model.parameters(), lbe.alpha], retain_graph=True)
        ours = torch.autograd.grad(total, [*model.parameters(), lbe.alpha])
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)


def test_value_equals_numpy():
    model, (x, y) = mlp(2), batch()
    lbe = tr.LBE(model, alpha=0.5, beta=0.3)
    seen = collect(model)
    ce = nn.functional.cross_entropy(model(x), y)
    total = lbe(ce)
    entropies = [numpy_neuron_entropy(a.detach().numpy()).mean() for a in seen]
    assert total.item() == pytest.approx(numpy_lbe(entropies, [0.5, 0.5], 0.3, 0.2, ce.item()), rel=1e-5)
    assert list(lbe.last.entropy.values()) == pytest.approx(entropies, rel=1e-5)
    assert lbe.last.ce == pytest.approx(ce.item())


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", ["position", "channel"])
def test_convolutions_positions_channels_and_negative_losses(sign, kind):
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1)
    ).double()
    x = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    lbe = tr.LBE(model, neurons=kind)
    seen = collect(model)
    loss = sign * model(x).square().mean()
    total = lbe(loss)
    acts = seen if kind == "position" else [a.movedim(1, -1).flatten(0, 2) for a in seen]
    expected = plain_total(loss, acts, lbe.alpha, 0.2, 0.2)
    torch.testing.assert_close(total, expected)
    theirs = torch.autograd.grad(expected, [*model.parameters(), lbe.alpha], retain_graph=True)
    ours = torch.autograd.grad(total, [*model.parameters(), lbe.alpha])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_a_negative_loss_never_rewards_leaving_alpha():
    model, (x, _) = mlp(1), batch()
    lbe = tr.LBE(model, alpha=3.0)
    loss = -model(x).square().mean()
    assert lbe(loss) > loss


def test_eval_of_either_switches_the_term_off():
    model, (x, y) = mlp(), batch()
    lbe = tr.LBE(model)
    for module in (lbe, model):
        module.eval()
        ce = nn.functional.cross_entropy(model(x), y)
        assert lbe(ce) is ce
        module.train()
    ce = nn.functional.cross_entropy(model(x), y)
    assert lbe(ce) > ce


def test_alpha_below_the_floor_is_reported_and_inert():
    model, (x, y) = mlp(2), batch()
    with pytest.warns(UserWarning, match=r"alpha=0.1 is below alpha_min=0.2.*does not learn"):
        lbe = tr.LBE(model, alpha=0.1)
    lbe(nn.functional.cross_entropy(model(x), y)).backward()
    assert lbe.last.inert == ("1", "3")
    assert lbe.alpha.grad.abs().sum() == 0


def test_parameter_groups_leave_alpha_undecayed():
    model = mlp(2)
    lbe = tr.LBE(model)
    optimizer = torch.optim.SGD(lbe.parameter_groups(model, lr=0.1, weight_decay=0.5))
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.5, 0.0]
    assert optimizer.param_groups[1]["params"][0] is lbe.alpha
    assert len(optimizer.param_groups[0]["params"]) == 6


def test_model_keeps_its_outputs_keys_and_parameters():
    model, (x, _) = mlp(), batch()
    plain, keys = model(x), list(model.state_dict())
    lbe = tr.LBE(model)
    assert torch.equal(model(x), plain)
    assert list(model.state_dict()) == keys
    assert [name for name, _ in lbe.named_parameters()] == ["alpha"]
    lbe.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_reused_module_is_read_twice_and_shares_its_alpha():
    model, (x, y) = Reused().double(), batch(dtype=torch.float64)
    lbe = tr.LBE(model, alpha=0.7)
    seen = collect(model)
    ce = nn.functional.cross_entropy(model(x), y)
    total = lbe(ce)
    assert list(lbe.last.entropy) == ["relu", "relu#2"]
    torch.testing.assert_close(total, plain_total(ce, seen, lbe.alpha.expand(2), 0.2, 0.2))
    theirs = torch.autograd.grad(plain_total(ce, seen, lbe.alpha.expand(2), 0.2, 0.2), lbe.alpha, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(total, lbe.alpha)[0], theirs)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("width", [8, 700])
def test_inplace_activations(inplace, width):
    model = nn.Sequential(
        nn.Linear(8, width),
        nn.ReLU(inplace=inplace),
        nn.Linear(width, width),
        nn.ReLU(inplace=inplace),
        nn.Linear(width, 4),
    ).double()
    x, y = batch(64, torch.float64)
    lbe = tr.LBE(model)
    seen = collect(model)
    for _ in range(3):
        seen.clear()
        ce = nn.functional.cross_entropy(model(x), y)
        expected = torch.autograd.grad(plain_total(ce, seen, lbe.alpha, 0.2, 0.2), model[0].weight, retain_graph=True)[
            0
        ]
        torch.testing.assert_close(torch.autograd.grad(lbe(ce), model[0].weight)[0], expected)


def test_outputs_overwritten_later_are_read_as_they_were():
    model, (x, y) = Overwritten().double(), batch(dtype=torch.float64)
    lbe = tr.LBE(model, where=["a", "b"])
    seen: list[torch.Tensor] = []
    for module in (model.a, model.b):
        module.register_forward_hook(lambda _m, _i, o: seen.append(o.clone()))
    for _ in range(3):
        seen.clear()
        ce = nn.functional.cross_entropy(model(x), y)
        expected = torch.autograd.grad(plain_total(ce, seen, lbe.alpha, 0.2, 0.2), model.a.weight, retain_graph=True)[0]
        torch.testing.assert_close(torch.autograd.grad(lbe(ce), model.a.weight)[0], expected)


def test_gradient_shared_with_a_shortcut_is_not_touched():
    model, (x, y) = Residual().double(), batch(dtype=torch.float64)
    lbe = tr.LBE(model)
    seen = collect(model)
    ce = nn.functional.cross_entropy(model(x), y)
    theirs = torch.autograd.grad(
        plain_total(ce, seen, lbe.alpha, 0.2, 0.2), list(model.parameters()), retain_graph=True
    )
    for a, b in zip(torch.autograd.grad(lbe(ce), list(model.parameters())), theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["tuple", "dict", "dataclass"])
def test_structured_outputs_are_read(kind):
    model, (x, y) = Structured(kind), batch()
    lbe = tr.LBE(model, where=["wrap", "relu"])
    lbe(nn.functional.cross_entropy(model(x), y)).backward()
    assert list(lbe.last.entropy) == ["wrap", "relu"]
    assert lbe.last.entropy["wrap"] == pytest.approx(lbe.last.entropy["relu"])


@pytest.mark.parametrize("kind", ["integer", "empty", "none"])
def test_outputs_without_entropy_are_skipped_and_said_so(kind):
    model, (x, y) = Structured(kind), batch()
    lbe = tr.LBE(model, where=["wrap", "relu"])
    lbe(nn.functional.cross_entropy(model(x), y))
    assert list(lbe.last.entropy) == ["relu"]
    assert "wrap" in lbe.skipped


def test_reasons_belong_to_the_last_pass():
    model = mlp()
    lbe = tr.LBE(model)
    model(torch.randn(1, 8))
    assert "one sample" in next(iter(lbe.skipped.values()))
    x, y = batch()
    lbe(nn.functional.cross_entropy(model(x), y))
    assert not lbe.skipped


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model, (x, y) = mlp(), batch()
    lbe = tr.LBE(model)
    with torch.autocast("cpu", dtype):
        loss = nn.functional.cross_entropy(model(x), y)
        total = lbe(loss)
    total.backward()
    exact = tr.measure(model, x)
    assert list(lbe.last.entropy.values()) == pytest.approx([layer.entropy for layer in exact], abs=0.02)
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert lbe.alpha.dtype == torch.float32


def test_lbe_to_moves_alpha():
    assert tr.LBE(mlp()).to(torch.float64).alpha.dtype == torch.float64


@pytest.mark.parametrize("width", [16, 1200])
def test_gradient_checkpointing_recomputes_without_a_second_reading(width):
    plain, saving = Checkpointed(width, False).double(), Checkpointed(width, True).double()
    saving.load_state_dict(plain.state_dict())
    x, y = torch.randn(40, width, dtype=torch.float64), torch.randint(4, (40,))
    a, b = tr.LBE(plain, where=nn.ReLU), tr.LBE(saving, where=nn.ReLU)
    for _ in range(2):
        for model, lbe in ((plain, a), (saving, b)):
            model.zero_grad()
            lbe(nn.functional.cross_entropy(model(x), y)).backward()
        assert list(b.last.entropy) == list(a.last.entropy)
        for p, q in zip(plain.parameters(), saving.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad)


def test_gradient_accumulation_adds_up():
    model = mlp().double()
    lbe = tr.LBE(model)
    parts = [batch(dtype=torch.float64) for _ in range(3)]
    singly = [
        torch.autograd.grad(lbe(nn.functional.cross_entropy(model(x), y)), list(model.parameters())) for x, y in parts
    ]
    for x, y in parts:
        (lbe(nn.functional.cross_entropy(model(x), y)) / 3).backward()
    for p, *gs in zip(model.parameters(), *singly, strict=True):
        torch.testing.assert_close(p.grad, sum(gs) / 3)


def test_backward_twice_with_retain_graph():
    model, (x, y) = mlp(), batch()
    lbe = tr.LBE(model)
    total = lbe(nn.functional.cross_entropy(model(x), y))
    first = torch.autograd.grad(total, model[0].weight, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(total, model[0].weight)[0], first)


@pytest.mark.parametrize(
    ("build", "where"),
    [
        (mlp, None),
        (lambda: mlp(inplace=True), None),
        (Overwritten, ["a", "b"]),
        (lambda: mlp(inplace=True), nn.Linear),
        (Residual, None),
    ],
)
def test_compiles_without_graph_breaks_of_ours(build, where):
    model, (x, y) = build().double(), batch(dtype=torch.float64)
    twin = copy.deepcopy(model)
    lbe, reference = tr.LBE(model, where=where), tr.LBE(twin, where=where)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        model.zero_grad()
        twin.zero_grad()
        total = lbe(nn.functional.cross_entropy(compiled(x), y))
        expected = reference(nn.functional.cross_entropy(twin(x), y))
        torch.testing.assert_close(total, expected)
        total.backward()
        expected.backward()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
    assert list(lbe.last.entropy) == list(reference.last.entropy)


def test_looking_between_a_pass_and_its_loss_disturbs_nothing():
    model, (x, y) = mlp(), batch()
    lbe = tr.LBE(model)
    undisturbed = lbe(nn.functional.cross_entropy(model(x), y)).item()
    ce = nn.functional.cross_entropy(model(x), y)
    tr.diagnose(model, torch.randn(64, 8), torch.randint(4, (64,)), nn.functional.cross_entropy)
    assert lbe(ce).item() == undisturbed


def test_checkpointed_activations_are_not_kept():
    model = Checkpointed(2000, True)
    lbe = tr.LBE(model, where="blocks.*.1")
    x, y = torch.randn(40, 2000), torch.randint(4, (40,))
    for _ in range(2):  # the first pass keeps them, to learn whether they are overwritten
        alive: list[weakref.ref[torch.Tensor]] = []
        handle = model.blocks[0][1].register_forward_hook(lambda _m, _i, o, a=alive: a.append(weakref.ref(o)))
        ce = nn.functional.cross_entropy(model(x), y)
        handle.remove()
        kept = [ref() is not None for ref in alive]
        lbe(ce).backward()
    assert kept == [False]


def test_a_late_change_in_place_is_an_error_that_names_the_layer():
    model, (x, y) = Overwritten(), batch()
    lbe = tr.LBE(model, where="out")
    late = False

    def change(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output.mul_(1.0) if late else output

    model.out.register_forward_hook(change)
    lbe(nn.functional.cross_entropy(model(x), y))
    late = True
    ce = nn.functional.cross_entropy(model(x), y)
    with pytest.raises(tr.UnsupportedModelError) as caught:
        lbe(ce)
    assert (caught.value.code, caught.value.path) == ("changed-in-place", "out")
    lbe(nn.functional.cross_entropy(model(x), y)).backward()


def test_published_convention_has_pi_e():
    model, (x, y) = mlp(1), batch()
    lbe = tr.LBE(model, convention="published-code")
    seen = collect(model)
    lbe(nn.functional.cross_entropy(model(x), y))
    expected = numpy_neuron_entropy(seen[0].detach().numpy(), np.pi * np.e).mean()
    assert lbe.last.entropy["1"] == pytest.approx(expected, rel=1e-5)
    assert tr.measure(model, x, convention="published-code")["1"].entropy == pytest.approx(expected, rel=1e-5)


def test_with_form_takes_the_hooks_off():
    model = mlp()
    with tr.LBE(model):
        assert model[1]._forward_hooks
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_readings_without_gradients():
    model, (x, y) = mlp(), batch()
    lbe = tr.LBE(model)
    for quiet in (torch.no_grad, torch.inference_mode):
        with quiet():
            assert lbe(nn.functional.cross_entropy(model(x), y)).item() > 0


def test_state_dict_round_trip_and_the_wrong_state():
    lbe = tr.LBE(mlp(2), alpha=0.9)
    file = io.BytesIO()
    torch.save(lbe.state_dict(), file)
    file.seek(0)
    other = tr.LBE(mlp(2))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.alpha.tolist() == lbe.alpha.tolist()
    wrong = tr.LBE(mlp(2), where=["0", "2"])
    state = lbe.state_dict()
    for bad in (state, {**state, "_extra_state": 3}, {"alpha": torch.ones(3)}, {"alpha": "x"}):
        with pytest.raises(tr.TrainabilityError) as caught:
            wrong.load_state_dict(bad, strict=False)
        assert caught.value.code == "state-of-other-layers"
    assert wrong.alpha.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copied_pair_works_and_is_independent(way):
    model, (x, y) = mlp(), batch()
    lbe = tr.LBE(model)
    lbe(nn.functional.cross_entropy(model(x), y))
    twin, term = way((model, lbe))
    total = term(nn.functional.cross_entropy(twin(x), y))
    total.backward()
    assert model[0].weight.grad is None
    assert total.item() == pytest.approx(lbe(nn.functional.cross_entropy(model(x), y)).item())


def test_a_model_copied_alone_has_silent_hooks():
    model, (x, y) = mlp(), batch()
    lbe = tr.LBE(model)
    twin = copy.deepcopy(model)
    twin(x)
    with pytest.raises(RuntimeError) as caught:
        lbe(nn.functional.cross_entropy(twin(x), y))
    assert caught.value.code == "no-readings"


def test_a_frozen_model_still_learns_alpha():
    model, (x, y) = mlp(), batch()
    model.requires_grad_(False)
    lbe = tr.LBE(model)
    lbe(nn.functional.cross_entropy(model(x), y)).backward()
    assert lbe.alpha.grad.abs().sum() > 0


def test_a_partly_frozen_model():
    model, (x, y) = mlp(), batch()
    model[0].requires_grad_(False)
    lbe = tr.LBE(model)
    lbe(nn.functional.cross_entropy(model(x), y)).backward()
    assert model[0].weight.grad is None
    assert model[2].weight.grad.abs().sum() > 0


def test_no_host_synchronization_in_a_step():
    """On the meta device nothing has a value, so whatever asks for one fails."""
    model = mlp().to("meta")
    lbe = tr.LBE(model)
    for _ in range(2):
        total = lbe(model(torch.randn(4, 8, device="meta")).mean())
        total.backward()
    assert total.device.type == "meta"


def test_only_the_latest_pass_counts():
    model, (x, y) = mlp(), batch()
    lbe = tr.LBE(model)
    for _ in range(3):
        model(x)
    lbe(nn.functional.cross_entropy(model(x), y))
    assert len(lbe.last.entropy) == 3


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [
        (lambda lbe, model, x: lbe(model(x)), ValueError, "loss-not-a-number"),
        (lambda lbe, model, x: lbe(1.0), ValueError, "loss-not-a-number"),
        (lambda lbe, model, x: lbe(model(x).sum().long()), ValueError, "loss-not-a-number"),
        (lambda lbe, model, x: lbe(torch.tensor(1.0)), RuntimeError, "no-readings"),
        (lambda lbe, model, x: lbe(model(x[:1]).mean()), RuntimeError, "no-readings"),
        (lambda lbe, model, x: lbe.last, RuntimeError, "no-last"),
        (lambda lbe, model, x: tr.LBE(model, beta=-1), ValueError, "out-of-range"),
        (lambda lbe, model, x: tr.LBE(model, alpha=float("nan")), ValueError, "out-of-range"),
        (lambda lbe, model, x: tr.LBE(model, alpha_min=10**400), ValueError, "out-of-range"),
        (lambda lbe, model, x: tr.LBE(model, alpha="0.5"), TypeError, "wrong-type"),
        (lambda lbe, model, x: lbe(torch.tensor(1.0, device="meta")), ValueError, "device-differs"),
        (lambda lbe, model, x: tr.LBE(model, where="x*"), ValueError, "where-matches-nothing"),
    ],
)
def test_errors(call, error, code):
    model, (x, _) = mlp(), batch()
    with pytest.raises(error) as caught:
        call(tr.LBE(model), model, x)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda model: tr.LBE(model, neurons="chanel"), ValueError),
        (lambda model: tr.LBE("model"), TypeError),
        (lambda model: tr.LBE(model, convention="x"), ValueError),
        (lambda model: tr.apply_(model, tr.LBE(model)), TypeError),
    ],
)
def test_errors_of_what_lbe_is_given(call, error):
    with pytest.raises(error) as caught:
        call(mlp())
    assert isinstance(caught.value, tr.TrainabilityError)


def test_settings_may_be_numbers_of_numpy():
    assert tr.LBE(mlp(1), alpha=np.float32(0.5), beta=np.int64(1)).alpha.tolist() == [0.5]


def test_a_batch_of_one_is_said():
    model = mlp()
    lbe = tr.LBE(model)
    with pytest.raises(RuntimeError, match="1: one sample per neuron"):
        lbe(model(torch.randn(1, 8)).mean())


def test_an_alpha_that_is_the_floor_learns():
    model, (x, y) = mlp(2), batch()
    lbe = tr.LBE(model, alpha=0.7, alpha_min=0.7)
    lbe(nn.functional.cross_entropy(model(x), y)).backward()
    assert lbe.last.inert == ()  # though the float32 nearest to 0.7 is less than 0.7
    assert lbe.alpha.grad.abs().min() > 0


def test_nan_is_named_by_last():
    model, (x, y) = mlp(), batch()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    lbe = tr.LBE(model)
    lbe(nn.functional.cross_entropy(model(x), y))
    assert lbe.last.not_finite == ("3", "5")


def test_training_opens_a_silent_network():
    """The method's own claim, small: default initialization, 20 layers, silent at the start."""
    model = nn.Sequential(*[m for _ in range(20) for m in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 4))
    x, y = torch.randn(128, 32), torch.randint(4, (128,))
    lbe = tr.LBE(model, alpha=0.5, beta=0.5)
    optimizer = torch.optim.Adam([*model.parameters(), *lbe.parameters()], 1e-3)
    before = tr.measure(model, x)[-1].entropy
    for _ in range(150):
        optimizer.zero_grad()
        lbe(nn.functional.cross_entropy(model(x), y)).backward()
        optimizer.step()
    assert before < 1e-6
    assert tr.measure(model, x)[-1].entropy > 0.1
