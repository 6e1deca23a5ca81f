"""Where a network looked: Grad-CAM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def grad_cam(model: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Return how much each place spoke for a class, 0 to 1, as B×H×W.

    The channels of the layer's map are weighted by the mean gradient of the class's logit,
    summed, and cut off below 0; the result is enlarged to the image and divided by its maximum.
    Source: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via
    Gradient-based Localization", equations 1 and 2. A map without any positive place is all 0.

    Args:
        model: in evaluation mode; its weights collect no gradient.
        layer: a part of it that gives a map B×C×h×w, as `networks.protocol.last_map` finds.
        images: normalized B×C×H×W.
        classes: int64 of length B.
    """
    maps: list[Tensor] = []

    def keep(module: object, inputs: object, output: Tensor) -> None:
        maps.append(output)

    handle = layer.register_forward_hook(keep)
    try:
        # From the images on, so that there is a gradient where no weight asks for one.
        logits = model(images.detach().requires_grad_())
    finally:
        handle.remove()
    last = maps[-1]  # of a block that is used twice, the second use
    (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), last)
    weighted = (gradient.mean((2, 3), keepdim=True) * last).sum(1, keepdim=True).relu().detach()
    size = (images.shape[2], images.shape[3])
    heat = F.interpolate(weighted, size=size, mode="bicubic", align_corners=False).clamp_min(0)
    return (heat / heat.amax((2, 3), keepdim=True).clamp_min(1e-12)).squeeze(1)
