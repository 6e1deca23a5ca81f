"""Knowledge distillation: the answers of a trained network are learned beside the labels.

Source: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", section 2.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from halfmeg.artifacts.bundle import Bundle
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.evaluation.precision import autocast, compute_dtype
from halfmeg.networks.table import find_entry
from halfmeg.places.place import is_place


def open_teacher(config: RunConfig, data: DataSplits) -> Bundle:
    """Open the bundle that a config names as its teacher.

    Raises:
        ValueError: no bundle, or one of other classes or image sizes.
    """
    bundle = Bundle.open(config.teacher)
    if is_place(bundle.model):
        raise ValueError(
            f"teacher={config.teacher} holds a network of one's own, which answers to whole pixels "
            f"only, and not to augmented images; a teacher is a network of the table"
        )
    if bundle.classes != data.classes:
        raise ValueError(
            f"teacher={config.teacher} knows the classes {', '.join(bundle.classes)}; "
            f"the data has {', '.join(data.classes)}"
        )
    if bundle.image_shape != data.image_shape:
        theirs, ours = ("×".join(map(str, s)) for s in (bundle.image_shape, data.image_shape))
        raise ValueError(
            f"teacher={config.teacher} takes images of {theirs} (channels, height, width); "
            f"the data has {ours}"
        )
    for name, size in config.small_sizes().items():
        resized = size != min(data.image_shape[1:])
        entry, _ = find_entry(bundle.model)
        if not entry.takes(size) or (resized and entry.fixed):
            raise ValueError(
                f"teacher={config.teacher} is a {bundle.model}, which does not take images of "
                f"{name}={size}; allowed with it: {name}=0"
            )
    return bundle


@final
class Teacher:
    """A trained network on a device, and the loss that brings another's answers near to its own."""

    def __init__(self, config: RunConfig, data: DataSplits, device: torch.device) -> None:
        bundle = open_teacher(config, data)
        self.model = bundle.load_model()
        self.model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self.dtype = device, compute_dtype(config.precision, device)
        self.share, self.temperature = config.teacher_share, config.teacher_temperature
        # from the data's normalization to the one that the teacher was trained with
        mean, std, own_mean, own_std = (
            torch.tensor(values, device=device, dtype=self.dtype)[:, None, None]
            for values in (data.mean, data.std, bundle.mean, bundle.std)
        )
        self.factor, self.offset = std / own_std, (mean - own_mean) / own_std

    @torch.no_grad()
    def answers(self, images: Tensor) -> Tensor:
        """Return float32 logits B×num_classes of images B×C×H×W, normalized as the data is."""
        with autocast(self.device, self.dtype):
            logits: Tensor = self.model(torch.addcmul(self.offset, images, self.factor))
        return logits.float()

    def mix(self, loss: Tensor, images: Tensor, logits: Tensor) -> Tensor:
        """Return the loss of a batch with the teacher's part in it.

        That part is the mean divergence of the teacher's probabilities from the network's, both at
        the temperature, times its square, so that its gradients keep their size.

        Args:
            loss: of the labels, a scalar.
            images: normalized B×C×H×W, as the network saw them.
            logits: the network's, B×num_classes.
        """
        divergence = F.kl_div(
            F.log_softmax(logits.float() / self.temperature, 1),
            F.log_softmax(self.answers(images) / self.temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - self.share) * loss + self.share * self.temperature**2 * divergence
