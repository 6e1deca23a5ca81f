"""What training makes small: the cross-entropy with the labels, and a teacher's part in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor

from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.data.shape import ImageSize
from halfmeg.networks.summary import count_macs
from halfmeg.training.batches import Batch
from halfmeg.training.distill import Teacher
from halfmeg.training.own import build_own_loss


class Loss(Protocol):
    """The mean loss of a batch."""

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return a scalar from a batch's logits B×num_classes."""

    def macs(self, image_size: ImageSize) -> int:
        """Return the multiply-accumulates of one image beside the network; 0 if no other runs."""
        return 0


@final
class LabelLoss(Loss):
    """Cross-entropy with the labels, in float32."""

    def __init__(self, label_smoothing: float) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean over the batch."""
        return F.cross_entropy(logits.float(), batch.labels, label_smoothing=self.label_smoothing)


@final
class OwnLoss(Loss):
    """A user's own loss of logits and labels, in float32."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean over the batch."""
        return self.function(logits.float(), batch.labels)


@final
class WeighedLoss(Loss):
    """Cross-entropy with the labels, in float32, that of each image times its class's weight."""

    def __init__(self, label_smoothing: float, weights: Tensor) -> None:
        self.label_smoothing = label_smoothing
        self.weights = weights

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean over the batch."""
        losses = F.cross_entropy(
            logits.float(), batch.labels, reduction="none", label_smoothing=self.label_smoothing
        )
        return (losses * self.weights[batch.labels]).mean()


@final
class MixedLoss:
    """Another loss of the labels, where images are mixed with others."""

    def __init__(self, of_labels: Loss) -> None:
        self.of_labels = of_labels

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean over the batch."""
        assert batch.mixture is not None
        mixed_in = replace(batch, labels=batch.mixture.labels)
        return batch.mixture.expect(self.of_labels(logits, batch), self.of_labels(logits, mixed_in))

    def macs(self, image_size: ImageSize) -> int:
        """Return what the other loss costs."""
        return self.of_labels.macs(image_size)


@final
class TaughtLoss:
    """Another loss with a teacher's part in it."""

    def __init__(self, of_labels: Loss, teacher: Teacher) -> None:
        self.of_labels = of_labels
        self.teacher = teacher

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean over the batch."""
        return self.teacher.mix(self.of_labels(logits, batch), batch.images, logits)

    def macs(self, image_size: ImageSize) -> int:
        """Return what the teacher's answer costs."""
        return self.of_labels.macs(image_size) + count_macs(self.teacher.model, image_size)


def build_loss(
    config: RunConfig,
    data: DataSplits,
    device: torch.device,
    class_weights: Tensor | None = None,
) -> Loss:
    """Return the config's loss.

    Args:
        config: the run's.
        data: what it trains on.
        device: where it trains.
        class_weights: float32 K, of an image of each class; None for all alike.
    """
    of_labels: Loss = LabelLoss(config.label_smoothing)
    if class_weights is not None:
        of_labels = WeighedLoss(config.label_smoothing, class_weights.to(device))
    if config.loss:
        of_labels = OwnLoss(build_own_loss(config))
    if config.mixup or config.cutmix:
        of_labels = MixedLoss(of_labels)
    if not config.teacher:
        return of_labels
    return TaughtLoss(of_labels, Teacher(config, data, device))
