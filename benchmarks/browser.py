"""What the WebAssembly of each network takes in node and in headless Chromium: ms an image.

    taskset -c 0 python benchmarks/browser.py logistic resnet8 record > results/browser.json

Weights are those of a start: the time does not depend on them. Needs a quiet machine; on one that
is shared, the fastest time says more than the median. Each of the 200 times is the mean of as many
images as take 5 ms.
"""

from __future__ import annotations

import base64
import json
import shutil
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
async function timed(bytes) {
  const { instance } = await WebAssembly.instantiate(bytes, {});
  const { classify } = instance.exports;
  let images = 1; // for 5 ms at least: Chromium's clock has steps of 0.1
  const mean = () => {
    const start = performance.now();
    for (let image = 0; image < images; image++) classify();
    return (performance.now() - start) / images;
  };
  for (let i = 0; i < 100; i++) mean(); // for its compiler
  while (Math.min(...Array.from({ length: 9 }, mean)) * images < 5) images *= 2;
  const sorted = Array.from({ length: 200 }, mean).sort((a, b) => a - b);
  return { median_ms: sorted[100], fastest_ms: sorted[0] };
}
"""


def in_node(module: bytes) -> dict[str, float]:
    """Return the times of a build in node."""
    run = "timed(require('node:fs').readFileSync(0)).then((t) => console.log(JSON.stringify(t)))"
    command = ["node", "-e", TIMING + run]
    done = subprocess.run(command, input=module, capture_output=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def in_chromium(modules: dict[str, bytes]) -> dict[str, Any]:
    """Return its version, and the times of each build in it."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        found: dict[str, Any] = {"version": browser.version}
        for build, module in modules.items():
            page = browser.new_page()
            Path(folder, "page.html").write_text(f"<script>{TIMING}</script>")
            page.goto(Path(folder, "page.html").as_uri())
            call = "(text) => timed(Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0)))"
            found[build] = page.evaluate(call, base64.b64encode(module).decode())
        browser.close()
    return found


def measure(name: str) -> dict[str, Any]:
    """Return the row of a network."""
    torch.manual_seed(0)
    model = build_model(name)
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    graph = quantize(model, MEAN, STD, images)
    parts = compile_builds(graph, name, [str(label) for label in range(10)])
    modules = {build: b"".join(parts[build]) for build in BUILDS}
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    return {
        "network": name,
        "macs": count_macs(model),
        "node": {"version": version.stdout.strip()}
        | {build: in_node(module) for build, module in modules.items()},
        "chromium": in_chromium(modules),
    }


def main() -> None:
    """Measure the networks that are named, or all."""
    print_rows(measure)


if __name__ == "__main__":
    main()
