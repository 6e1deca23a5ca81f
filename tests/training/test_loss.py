from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from conftest import first_digits, small_config

from halfmeg.data.mix import Mixture
from halfmeg.training.batches import Batch
from halfmeg.training.loss import LabelLoss, build_loss

LOGITS = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6)
BATCH = Batch(torch.zeros(6, 3, 32, 32), LABELS, LABELS)


def test_the_loss_of_labels_is_computed_in_float32() -> None:
    loss = LabelLoss(0.1)
    expected = F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    assert torch.equal(loss(LOGITS, BATCH), expected)
    assert loss(LOGITS.bfloat16(), BATCH).dtype == torch.float32
    assert loss.macs(32) == 0


def test_a_config_without_a_teacher_asks_none() -> None:
    loss = build_loss(small_config(label_smoothing=0.2), first_digits(100), torch.device("cpu"))
    assert isinstance(loss, LabelLoss)
    assert loss.label_smoothing == 0.2


def test_a_mixed_image_answers_for_both_labels() -> None:
    config = small_config(mixup=0.5, class_weights="balanced")
    weights = torch.linspace(0.5, 1.5, 10)
    other = LABELS.flip(0)
    batch = replace(BATCH, mixture=Mixture(other, torch.tensor(0.7)))
    loss = build_loss(config, first_digits(100), torch.device("cpu"), weights)(LOGITS, batch)
    each = 0.7 * weights[LABELS] * F.cross_entropy(
        LOGITS, LABELS, reduction="none"
    ) + 0.3 * weights[other] * F.cross_entropy(LOGITS, other, reduction="none")
    torch.testing.assert_close(loss, each.mean())
