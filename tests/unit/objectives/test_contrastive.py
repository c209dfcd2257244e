"""ITC against loops over pairs, with and without image ids, and the gradient of its parts."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.objectives.contrastive import SoftTargets, contrastive_loss, positive_pairs


def unit(rows: int, seed: int, width: int = 8) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def make_targets(batch: int, queue: int) -> SoftTargets:
    images, texts = unit(batch, 3), unit(batch, 4)
    return SoftTargets(images, texts, torch.cat((images, unit(queue, 5))), torch.cat((texts, unit(queue, 6))))


def loop_loss(
    images: Tensor,
    texts: Tensor,
    targets: SoftTargets,
    temperature: float,
    alpha: float,
    image_ids: list[int],
    all_ids: list[int],
) -> float:
    """The formula in words: for each row, cross-entropy of softmaxed similarities against the mixed target."""
    total = 0.0
    directions = (
        (images, targets.image_features, targets.all_text_features),
        (texts, targets.text_features, targets.all_image_features),
    )
    for rows, momentum_rows, others in directions:
        for i, row in enumerate(rows):
            scores = [float(row @ other) / temperature for other in others]
            teacher = [float(momentum_rows[i] @ other) / temperature for other in others]
            log_total = math.log(sum(math.exp(s) for s in scores))
            teacher_total = sum(math.exp(s) for s in teacher)
            same = [image_ids[i] == other for other in all_ids]
            for j, score in enumerate(scores):
                target = alpha * math.exp(teacher[j]) / teacher_total + (1 - alpha) * same[j] / sum(same)
                total -= target * (score - log_total)
    return total / len(images) / 2


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("batch", "queue"), [(1, 0), (1, 3), (5, 0), (4, 7)])
@pytest.mark.parametrize("with_ids", [False, True])
def test_against_loops(alpha: float, batch: int, queue: int, with_ids: bool) -> None:
    images, texts = unit(batch, 1), unit(batch, 2)
    targets = make_targets(batch, queue)
    ids = [i // 2 for i in range(batch)] if with_ids else list(range(batch))
    queued = [0, -100, 1, -100, 0, 7, 8][:queue] if with_ids else [-100] * queue
    positives = positive_pairs(
        batch,
        0,
        batch + queue,
        torch.device("cpu"),
        torch.tensor(ids) if with_ids else None,
        torch.tensor(ids + queued) if with_ids else None,
    )
    torch.testing.assert_close(positives.sum(1), torch.ones(batch))
    loss = contrastive_loss(images, texts, targets, positives, torch.tensor(0.3), alpha)
    wanted = loop_loss(images, texts, targets, 0.3, alpha, ids, ids + queued)
    assert float(loss) == pytest.approx(wanted, rel=1e-5)


def test_positives_of_a_later_rank() -> None:
    assert positive_pairs(2, 1, 7, torch.device("cpu")).tolist() == [[0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0]]


def test_captions_of_one_image_share_the_target() -> None:
    ids, all_ids = torch.tensor([5, 6]), torch.tensor([5, 6, 5, -100, 6, 5])
    wanted = [[1 / 3, 0, 1 / 3, 0, 0, 1 / 3], [0, 1 / 2, 0, 0, 1 / 2, 0]]
    torch.testing.assert_close(positive_pairs(2, 0, 6, ids.device, ids, all_ids), torch.tensor(wanted))


def test_gradient_reaches_features_and_temperature_and_no_target() -> None:
    images, texts = unit(3, 1).requires_grad_(), unit(3, 2).requires_grad_()
    temperature = torch.tensor(0.2, requires_grad=True)
    targets = make_targets(3, 4)
    momentum = targets.image_features.requires_grad_()
    loss = contrastive_loss(images, texts, targets, positive_pairs(3, 0, 7, torch.device("cpu")), temperature, 0.4)
    loss.backward()
    assert momentum.grad is None
    assert temperature.grad is not None
    # The targets hold still: the numerical derivative moves the temperature of the similarities alone, which
    # at alpha 0 is the temperature as a whole.
    temperature.grad = None
    arguments = (images.detach(), texts.detach(), make_targets(3, 4), positive_pairs(3, 0, 7, torch.device("cpu")))
    contrastive_loss(*arguments, temperature, 0.0).backward()
    double = [contrastive_loss(*arguments, torch.tensor(0.2 + d), 0.0) for d in (1e-3, -1e-3)]
    assert float(temperature.grad) == pytest.approx(float(double[0] - double[1]) / 2e-3, rel=1e-2)


def test_float32_whatever_the_features_are() -> None:
    images, texts = unit(3, 1), unit(3, 2)
    targets = make_targets(3, 4)
    positives = positive_pairs(3, 0, 7, torch.device("cpu"))
    whole = contrastive_loss(images, texts, targets, positives, torch.tensor(0.07), 0.4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = contrastive_loss(images.bfloat16(), texts.bfloat16(), targets, positives, torch.tensor(0.07), 0.4)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=0.02, atol=0.02)
