"""TFLite Micro's arena: as estimated before training, and as its interpreter takes it.

    python benchmarks/arena.py cnn record > arena.json
    python benchmarks/arena.py --image-size 64 'residual(width=24,depth=2)'

Needs the extra `litert`. Weights are those of a start, each moved a little, so that none of them is
0 or 1 and left out by the converter; the arena does not depend on them otherwise.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from arguments import plain_parser
from torch import nn

from halfmeg.networks.memory import measure_memory
from halfmeg.networks.table import MODELS, build_model
from halfmeg.shipping.litert import convert, run_micro


def with_moved_weights(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Return the network with weights and running statistics as those of a trained one are."""
    model.train()
    with torch.no_grad():
        model(images)
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return model.eval()


def measure(name: str, image_size: int) -> dict[str, Any]:
    """Return the row of a network; `missing` says why the interpreter does not run it."""
    torch.manual_seed(0)
    model = build_model(name, image_size=image_size)
    estimated = measure_memory(model, image_size).tflite_micro_bytes
    images = torch.randn(8, 3, image_size, image_size)
    moved = with_moved_weights(model, images)
    content = convert(moved, image_size, images.permute(0, 2, 3, 1).contiguous())
    none = np.zeros((0, image_size, image_size, 3), np.int8)
    found, missing = run_micro(content, none, np.zeros(0, np.int64))
    return {
        "network": name,
        "image_size": image_size,
        "estimated_bytes": estimated,
        "measured_bytes": None if found is None else found.arena_bytes,
        "missing": missing,
        "tflite_micro": version("tflite-micro"),
        "litert_torch": version("litert-torch"),
    }


def main() -> None:
    """Measure the networks that are named, or all of the table."""
    parser = plain_parser(__doc__)
    parser.add_argument("networks", nargs="*", default=list(MODELS))
    parser.add_argument("--image-size", type=int, default=32, help="side in pixels")
    args = parser.parse_args()
    print(json.dumps([measure(name, args.image_size) for name in args.networks], indent=2))


if __name__ == "__main__":
    main()
