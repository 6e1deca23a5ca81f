"""From a run folder to a bundle: ONNX and int8, each proved before it gets its name."""

from __future__ import annotations

import copy
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from halfmeg.bundle import FORMAT, Bundle, checksum
from halfmeg.data import Dataset, DataSplits, stratified_split
from halfmeg.evaluate import compute_logits, evaluate, fit_temperature, score
from halfmeg.runs import Run, environment, json_bytes, weights_to_bytes
from halfmeg.summary import count_macs, count_params

NUM_CALIBRATION = 512
MAX_PROOF_IMAGES = 5_000
LOGIT_TOLERANCE = 1e-3
"""Largest difference of a logit that rounding in another order of sums explains."""

ALLOWED_LOSS = 0.005


@dataclass(frozen=True)
class Proof:
    """What was checked before the files got their names.

    Attributes:
        images: which images, "validation" or "training" where the run held none out.
        n: number of them.
        max_difference: largest difference between a logit of the ONNX file and torch's.
        accuracy, onnx_accuracy, int8_accuracy: of torch in float32 and of the two files.
    """

    images: str
    n: int
    max_difference: float
    accuracy: float
    onnx_accuracy: float
    int8_accuracy: float

    @property
    def int8_loss(self) -> float:
        """Accuracy lost by int8, as a share."""
        return self.accuracy - self.int8_accuracy

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return dict(vars(self)) | {"int8_loss": self.int8_loss}


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode with each BatchNorm folded into the layer before it.

    The layer before it is the child before it: so all networks of `MODELS` are written. A max-pool
    between the two may stay where BatchNorm's scale is positive, as a maximum then moves with it.
    """
    folded = copy.deepcopy(model).eval()
    for module in list(folded.modules()):
        before: tuple[str, nn.Module] | None = None
        pooled = False
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MaxPool2d):
                pooled = True
                continue
            movable = not pooled or (isinstance(child, nn.BatchNorm2d) and child.weight.min() > 0)
            if not (before and movable):
                pass
            elif isinstance(child, nn.BatchNorm2d) and isinstance(before[1], nn.Conv2d):
                setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.BatchNorm1d) and isinstance(before[1], nn.Linear):
                setattr(module, before[0], fuse_linear_bn_eval(before[1], child))
                setattr(module, name, nn.Identity())
            before, pooled = (name, child), False
    return folded


class FromPixels(nn.Module):
    """A network that takes pixels: uint8 B×3×H×W to logits B×K."""

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.scale: Tensor
        self.offset: Tensor
        self.register_buffer("scale", (1 / 255 / torch.tensor(std)).view(1, 3, 1, 1))
        self.register_buffer("offset", (-torch.tensor(mean) / torch.tensor(std)).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalize and classify."""
        return self.model(pixels.float() * self.scale + self.offset)  # type: ignore[no-any-return]


def to_onnx(
    model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], image_size: int
) -> bytes:
    """Return a network as ONNX: input `pixels` uint8 B×3×H×W, output `logits` B×K, any B."""
    deployed = FromPixels(fold_batchnorm(model), mean, std).eval()
    # A batch of 1 in the example would be taken for a constant.
    example = torch.zeros(2, 3, image_size, image_size, dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            deployed,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1, max=65_536)}},
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def quantize(onnx_model: bytes, calibration: Tensor) -> bytes:
    """Return an ONNX model in int8, calibrated on uint8 images B×3×H×W.

    Static, in QDQ form: weights in 7 of 8 bits for each channel, since processors with AVX2 but
    without VNNI overflow at 8, activations in 8 bits between the largest and smallest seen.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(calibration.split(64))  # type: ignore[no-untyped-call]

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"pixels": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder, _quiet():
        plain, prepared, small = (Path(folder) / f"{n}.onnx" for n in ("plain", "prepared", "int8"))
        plain.write_bytes(onnx_model)
        quant_pre_process(str(plain), str(prepared))
        quantize_static(
            str(prepared),
            str(small),
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        return small.read_bytes()


def onnx_logits(onnx_model: bytes, images: Tensor, *, batch_size: int = 250) -> Tensor:
    """Return the logits of an ONNX model for uint8 images, by onnxruntime on the processor."""
    session = open_session(onnx_model)
    chunks = images.split(batch_size)  # type: ignore[no-untyped-call]
    return torch.cat(
        [torch.from_numpy(session.run(None, {"pixels": chunk.numpy()})[0]) for chunk in chunks]
    )


def open_session(onnx_model: bytes, threads: int = 0) -> Any:
    """Return an onnxruntime session on the processor; 0 threads means as many as there are."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(onnx_model, options, providers=["CPUExecutionProvider"])


def export(
    run: Run, data: DataSplits, out: str | Path, *, allow_loss: bool = False
) -> tuple[Bundle, Proof]:
    """Export a finished run as a bundle, proved on the run's validation images.

    Reads the test set once, for the accuracy that the bundle states.

    Args:
        run: a finished run.
        data: its data.
        out: the bundle's folder, which must not exist.
        allow_loss: keep an int8 file that loses more than half a point.

    Raises:
        ValueError: `out` exists, other data than the run's, the `ship` extra is missing, or a
            file that does not do what the network does.
    """
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out} exists already and is not overwritten; choose another --out")
    if run.result() is None:
        raise ValueError(f"{run.folder} has not finished; continue it with `halfmeg resume`")
    if data.fingerprint != run.data.fingerprint:
        raise ValueError(f"{run.folder} was trained on other data than {data.name}")
    _require_ship_extra()
    model = run.load_model().eval()
    mean, std = run.data.mean, run.data.std
    held_out, kind = _proof_images(run, data)
    onnx_model = to_onnx(model, mean, std, run.data.image_size)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    int8_model = quantize(onnx_model, data.train.images[order[:NUM_CALIBRATION]])
    proof, reference = _prove(model, run, held_out, kind, onnx_model, int8_model)
    if proof.int8_loss > ALLOWED_LOSS and not allow_loss:
        raise ValueError(
            f"int8 loses {100 * proof.int8_loss:.2f} points on {proof.n:,} {kind} images, more "
            f"than {100 * ALLOWED_LOSS:g}; with --allow-loss it is exported all the same"
        )
    # Without held-out images the confidence of training images would be fitted, so it is left.
    temperature = fit_temperature(reference, held_out.labels) if kind == "validation" else 1.0
    run.log_test_reading("export: the accuracy that the bundle states")
    measured = evaluate(model, data.test, mean, std, precision="fp32")
    contents = {
        "model.safetensors": weights_to_bytes(model),
        "model.onnx": onnx_model,
        "model.int8.onnx": int8_model,
    }
    facts = {
        "format": FORMAT,
        "model": run.config.model,
        "budget": run.config.budget,
        "params": count_params(model),
        "macs": count_macs(model, run.data.image_size),
        "classes": list(run.data.classes),
        "image_size": run.data.image_size,
        "mean": list(mean),
        "std": list(std),
        "temperature": temperature,
        "data": {"name": run.data.name, "fingerprint": run.data.fingerprint},
        "accuracy": {
            "test_accuracy": measured.accuracy,
            "test_n": measured.n,
            "data": run.data.name,
            "precision": "float32",
        },
        "proof": proof.to_dict(),
        "recipe": run.config.to_dict(),
        "exported": _versions(),
    }
    contents["README.md"] = _model_card(facts, measured.per_class, contents).encode()
    facts["files"] = {name: checksum(content) for name, content in contents.items()}
    contents["model.json"] = json_bytes(facts)
    _write_folder(out, contents)
    return Bundle.open(out), proof


def _require_ship_extra() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"exporting needs {error.name}: pip install -e '.[ship]'") from None


def _proof_images(run: Run, data: DataSplits) -> tuple[Dataset, str]:
    fraction, kind = run.config.val_fraction, "validation"
    if fraction == 0:
        fraction, kind = 0.1, "training"
    _, indices = stratified_split(data.train.labels, fraction, run.config.seed)
    return data.train.subset(indices[:MAX_PROOF_IMAGES]), kind


def _prove(
    model: nn.Module, run: Run, held_out: Dataset, kind: str, onnx_model: bytes, int8_model: bytes
) -> tuple[Proof, Tensor]:
    """Compare both files with torch in float32.

    Raises:
        ValueError: the ONNX file differs by more than rounding.
    """
    images, labels = held_out.images, held_out.labels
    reference = compute_logits(model, images, run.data.mean, run.data.std, precision="fp32")
    logits = onnx_logits(onnx_model, images)
    difference = (logits - reference).abs().max().item()
    scale = max(1.0, reference.abs().max().item())
    for batch in (1, 2, 7):  # an exporter may freeze the batch, or be wrong at some sizes
        part = onnx_logits(onnx_model, images[:7], batch_size=batch)
        difference = max(difference, (part - reference[:7]).abs().max().item())
    proof = Proof(
        images=kind,
        n=len(labels),
        max_difference=difference,
        accuracy=score(reference, labels).accuracy,
        onnx_accuracy=score(logits, labels).accuracy,
        int8_accuracy=score(onnx_logits(int8_model, images), labels).accuracy,
    )
    if not difference <= LOGIT_TOLERANCE * scale or proof.onnx_accuracy != proof.accuracy:
        raise ValueError(
            f"the ONNX file does not do what the network does: logits differ by {difference:g}, "
            f"accuracy {proof.onnx_accuracy:.2%} instead of {proof.accuracy:.2%}"
        )
    return proof, reference


def _versions() -> dict[str, Any]:
    import onnx
    import onnxruntime

    facts = environment()
    kept = ("command", "halfmeg", "commit", "torch", "processor")
    versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    return {key: facts[key] for key in kept} | versions


def _model_card(
    facts: dict[str, Any], per_class: tuple[float | None, ...], contents: dict[str, bytes]
) -> str:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("halfmeg"), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, autoescape=False,
    )  # fmt: skip
    return templates.get_template("card.md").render(
        facts=facts,
        classes=list(zip(facts["classes"], per_class, strict=True)),
        sizes={name: len(content) for name, content in contents.items()},
    )


def _write_folder(out: Path, contents: dict[str, bytes]) -> None:
    """Write a folder whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.partial-"))
    try:
        for name, content in contents.items():
            with (partial / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        partial.chmod(0o755)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' own chatter from the user's screen."""
    from contextlib import redirect_stderr, redirect_stdout

    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
