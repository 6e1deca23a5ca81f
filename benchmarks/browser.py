"""What the WebAssembly of each network takes in node: milliseconds an image.

    python benchmarks/browser.py record > results/browser.json

Weights are those of a start: the time does not depend on them. Needs a quiet machine.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from arguments import print_rows

from halfmeg.networks.summary import count_macs
from halfmeg.networks.table import build_model
from halfmeg.shipping.quantize import quantize
from halfmeg.shipping.web import BUILDS, compile_builds

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

TIMING = """
const { readFileSync } = require("node:fs");
const compiled = new WebAssembly.Module(readFileSync(process.argv[2]));
const { classify } = new WebAssembly.Instance(compiled).exports;
const times = [];
for (let i = 0; i < 300; i++) {
  const start = performance.now();
  classify();
  times.push(performance.now() - start);
}
const sorted = times.slice(100).sort((a, b) => a - b); // the first 100 are for its compiler
console.log(JSON.stringify({ median_ms: sorted[100], fastest_ms: sorted[0] }));
"""


def measure(name: str) -> dict[str, Any]:
    """Return the row of a network."""
    torch.manual_seed(0)
    model = build_model(name)
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    graph = quantize(model, MEAN, STD, images)
    parts = compile_builds(graph, name, [str(label) for label in range(10)])
    row: dict[str, Any] = {"network": name, "macs": count_macs(model)}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "timing.js").write_text(TIMING)
        for build in BUILDS:
            Path(folder, "network.wasm").write_bytes(b"".join(parts[build]))
            command = ["node", "timing.js", "network.wasm"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
            row[build] = json.loads(done.stdout)
    return row


def main() -> None:
    """Measure the networks that are named, or all."""
    print_rows(measure)


if __name__ == "__main__":
    main()
