from __future__ import annotations

import torch
import torch.nn.functional as F
from conftest import first_digits, small_config

from halfmeg.training.loss import LabelLoss, build_loss

LOGITS = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6)
IMAGES = torch.zeros(6, 3, 32, 32)


def test_the_loss_of_labels_is_computed_in_float32() -> None:
    loss = LabelLoss(0.1)
    expected = F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    assert torch.equal(loss(LOGITS, LABELS, IMAGES), expected)
    assert loss(LOGITS.bfloat16(), LABELS, IMAGES).dtype == torch.float32
    assert loss.macs(32) == 0


def test_a_config_without_a_teacher_asks_none() -> None:
    loss = build_loss(small_config(label_smoothing=0.2), first_digits(100), torch.device("cpu"))
    assert isinstance(loss, LabelLoss)
    assert loss.label_smoothing == 0.2
