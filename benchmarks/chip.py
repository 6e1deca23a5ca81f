"""What each network needs on a Cortex-M: RAM, flash and instructions an image, in QEMU.

    python benchmarks/chip.py cnn resnet20 record > chip.json

Weights are those of a start, since only sums that saturate could make a difference: a clamp is as
long for all values. Counts are exact and need no quiet machine.
"""

from __future__ import annotations

from typing import Any

import torch
from arguments import print_rows

from halfmeg.networks.memory import measure_memory
from halfmeg.networks.summary import count_macs
from halfmeg.networks.table import build_model
from halfmeg.shipping.c import write_c
from halfmeg.shipping.c_constants import c_name
from halfmeg.shipping.device import run_on
from halfmeg.shipping.integer import run
from halfmeg.shipping.quantize import quantize

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def measure(name: str, devices: tuple[str, ...] = ("cortex-m4", "cortex-m7")) -> dict[str, Any]:
    """Return the row of a network, whose logits on each device are the oracle's."""
    torch.manual_seed(0)
    model = build_model(name)
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    graph = quantize(model, MEAN, STD, images)
    identifier = c_name(name)
    files = write_c(graph, identifier, [str(label) for label in range(10)])
    expected = run(graph, images[:2].numpy())
    row: dict[str, Any] = {"network": name, "macs": count_macs(model)}
    row |= measure_memory(model).to_dict()
    for device in devices:
        source, header = (files[f"{identifier}.{kind}"] for kind in "ch")
        found = run_on(device, source, header, identifier, images[:2].numpy())
        assert (found.logits == expected).all(), f"{name} on {device}"
        row[device] = {
            "instructions": found.mean_instructions,
            "flash_with_code_bytes": found.flash_bytes,
            "compiler": found.compiler,
        }
    return row


def main() -> None:
    """Measure the networks that are named, or all; one that C cannot be written of stops it."""
    print_rows(measure)


if __name__ == "__main__":
    main()
