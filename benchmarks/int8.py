"""What 8 bits cost: accuracy of a bundle's int8 network on test images, in each of its forms.

    halfmeg export record --data cifar10-jpeg --out record-c --target c
    python benchmarks/int8.py record-c --data cifar10-jpeg

The C is compiled with gcc and run as it is exported; it has to give onnxruntime's logits. Nothing
keeps that C from this machine's files and network: name bundles of your own only. A bundle
made with `--target executorch` has its programs run by that runtime.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import torch
from arguments import build_parser, open_data

from halfmeg.artifacts.bundle import Bundle
from halfmeg.artifacts.graph import onnx_logits
from halfmeg.evaluation.evaluate import score
from halfmeg.shipping.build import read_logits
from halfmeg.shipping.executorch import run_program


def run_c(bundle: Bundle, images: torch.Tensor) -> torch.Tensor:
    """Return the logits that the bundle's C gives on this machine."""
    name = bundle.described["c"]["name"]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, name)
        code = bundle.folder / "c" / "src"
        sources = [bundle.folder / "c" / "main.c", *sorted(code.glob("*.c"))]
        include = f"-I{code}"
        command = ["gcc", "-std=c99", "-O3", include, "-o", str(program), *map(str, sources), "-lm"]
        subprocess.run(command, check=True)
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy().tobytes()
        done = subprocess.run([program], input=pixels, capture_output=True, check=True)
    return torch.from_numpy(read_logits(done.stdout.decode(), len(bundle.classes)))


def main() -> None:
    """Print accuracies and how many logits differ, as JSON."""
    parser = build_parser(__doc__)
    parser.add_argument("bundle")
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    test = open_data(parser, args).test
    files = {
        name: (bundle.folder / name).read_bytes() for name in ("model.onnx", "model.int8.onnx")
    }
    found = {name: onnx_logits(content, test.images) for name, content in files.items()}
    figures = {
        "n": len(test),
        "float_accuracy": score(found["model.onnx"], test.labels).accuracy,
        "int8_accuracy": score(found["model.int8.onnx"], test.labels).accuracy,
        "int8_bytes": len(files["model.int8.onnx"]),
    }
    if "c" in bundle.described:
        logits = run_c(bundle, test.images)
        figures["logits"] = logits.numel()
        figures["different_in_c"] = int((logits != found["model.int8.onnx"]).sum())
    if "executorch" in bundle.described:
        for name in ("model.pte", "model.int8.pte"):
            content = bundle.read_file(name)
            accuracy = score(run_program(content, test.images), test.labels).accuracy
            figures |= {f"{name}_accuracy": accuracy, f"{name}_bytes": len(content)}
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
