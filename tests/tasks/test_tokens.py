"""Labels of tokens and next tokens against loops over the tokens in plain Python."""

import math

import pytest
import torch
from torch.func import vmap

from refusals import refused
from trainability.errors import ArgumentError
from trainability.tasks import task
from trainability.tasks.scoring import Evaluation

MEMBERS, SAMPLES, LENGTH, CLASSES = 2, 6, 7, 5


def batch(padding: int = -100) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of two networks, whose sequences are of unequal lengths; one is of padding alone."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(MEMBERS, SAMPLES, LENGTH, CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.randint(1, CLASSES, (MEMBERS, SAMPLES, LENGTH), generator=generator)
    lengths = torch.randint(1, LENGTH + 1, (MEMBERS, SAMPLES, 1), generator=generator)
    lengths[0, 2] = 0
    return logits, labels.where(torch.arange(LENGTH) < lengths, padding)


def scored(logits: torch.Tensor, labels: torch.Tensor, shift: int, padding: int) -> tuple[list[float], list[bool]]:
    """Cross-entropy of every real token of one network, and whether it is named right."""
    losses, right = [], []
    for rows, own in zip(logits.tolist(), labels.tolist(), strict=True):
        for at in range(LENGTH - shift):
            label, row = own[at + shift], rows[at]
            if label != padding:
                losses.append(math.log(sum(map(math.exp, row))) - row[label])
                right.append(max(range(CLASSES), key=row.__getitem__) == label)
    return losses, right


@pytest.mark.parametrize("padding", [-100, 0])
@pytest.mark.parametrize(("name", "shift"), [("tokens", 0), ("next-token", 1)])
def test_every_real_token_counts_once(name, shift, padding):
    logits, labels = batch(padding)
    kind = task(name) if padding == -100 else task(name, padding=padding)
    by_hand = [scored(*pair, shift, padding) for pair in zip(logits, labels, strict=True)]
    means = [sum(losses) / len(losses) for losses, _ in by_hand]
    accuracies = [100 * sum(right) / len(right) for _, right in by_hand]
    for own_logits, own_labels in zip(logits, labels, strict=True):
        kind.check(own_logits, own_labels)
    assert kind.losses(logits, labels).tolist() == pytest.approx(means)
    evaluation = Evaluation(kind, MEMBERS)
    for part in (slice(0, 1), slice(1, 4), slice(4, None)):
        evaluation.update({"logits": logits[:, part]}, labels[:, part])
    found = evaluation.values()
    assert found["accuracy"] == pytest.approx(accuracies)
    if name == "next-token":
        assert list(found) == ["cross_entropy", "perplexity", "accuracy"]
        assert found["cross_entropy"] == pytest.approx(means)
        assert found["perplexity"] == pytest.approx([math.exp(mean) for mean in means])


@pytest.mark.parametrize("name", ["tokens", "next-token"])
def test_a_batch_of_padding_alone_has_a_loss_and_a_gradient_of_0(name):
    logits = batch()[0].requires_grad_()
    loss = task(name).losses(logits, torch.full((MEMBERS, SAMPLES, LENGTH), -100))
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0]
    assert not logits.grad.any()


@pytest.mark.parametrize("name", ["tokens", "next-token"])
def test_the_loss_is_compiled_in_one_piece_and_mapped_over_members(name):
    logits, labels = batch()
    kind = task(name, padding=0)
    expected = kind.losses(logits, labels)
    compiled = torch.compile(kind.losses, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, labels), expected)
    sums, counts = vmap(kind.loss.of)(logits, labels)
    torch.testing.assert_close(sums.sum(1) / counts.sum(1), expected)


@pytest.mark.parametrize("name", ["tokens", "next-token"])
@pytest.mark.parametrize(
    ("logits", "labels", "code"),
    [
        (torch.zeros(4, 6, 3), torch.zeros(4, 6), "targets"),
        (torch.zeros(4, 6, 3), torch.zeros(4, dtype=torch.long), "targets"),
        (torch.zeros(4, 6, 3), [1, 2], "targets"),
        (torch.zeros(4, 6, 3), torch.full((4, 6), 3), "targets"),
        (torch.zeros(4, 6, 3), torch.full((4, 6), -1), "targets"),
        (torch.zeros(4, 6), torch.zeros(4, 6, dtype=torch.long), "outputs"),
        (torch.zeros(4, 3, 6), torch.zeros(4, 6, dtype=torch.long), "outputs"),
        (torch.zeros(4, 5, 3), torch.zeros(4, 6, dtype=torch.long), "outputs"),
    ],
)
def test_what_does_not_fit_is_refused(name, logits, labels, code):
    with refused(ArgumentError, code):
        task(name).check(logits, labels)


def test_a_sequence_of_one_token_has_no_next_one():
    with refused(ArgumentError, "targets"):
        task("next-token").check(torch.zeros(4, 1, 3), torch.zeros(4, 1, dtype=torch.long))


def test_chance_is_of_the_real_tokens():
    labels = torch.tensor([[3, 1, 1, -100], [2, 1, 2, 2]])
    assert task("tokens").chance.of(labels) == pytest.approx(100 * 3 / 7)
    assert task("tokens", padding=2).chance.of(labels) == pytest.approx(100 * 3 / 4)
    entropy = -(3 / 5 * math.log(3 / 5) + 2 / 5 * math.log(2 / 5))  # of 1 1, 1 2 2: nothing predicts the first ones
    assert task("next-token").chance.of(labels) == pytest.approx(entropy)
