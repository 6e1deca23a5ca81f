"""From a run folder to a bundle: ONNX and int8, each proved before it gets its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
from torch import Tensor, nn

from halfmeg.artifacts.bundle import FORMAT, Bundle, checksum
from halfmeg.artifacts.environment import environment
from halfmeg.artifacts.graph import onnx_logits
from halfmeg.artifacts.run import Run
from halfmeg.artifacts.seen import TRAINED_ON, ids_to_bytes
from halfmeg.artifacts.sources import read_sources
from halfmeg.artifacts.weights import weights_to_bytes
from halfmeg.data.dataset import Dataset, DataSplits, hold_out
from halfmeg.evaluation.calibration import FEWEST_ERRORS, fit_temperature
from halfmeg.evaluation.evaluate import Evaluation, compute_logits, evaluate, score
from halfmeg.files import json_bytes, new_folder
from halfmeg.networks.summary import count_macs, count_params
from halfmeg.places.place import is_place, short_name
from halfmeg.shipping.onnx import quantize, to_onnx
from halfmeg.shipping.preprocess import preprocessing, snippet
from halfmeg.shipping.verify import logit_tolerance

NUM_CALIBRATION = 512


MAX_PROOF_IMAGES = 5_000


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
            file that does not do what the network does; weights that were damaged or altered.
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
    temperature, origin = _temperature(reference, held_out, kind)
    run.log_test_reading("export: the accuracy that the bundle states")
    measured = evaluate(model, data.test, mean, std, precision="fp32")
    run.check_accuracy(measured.accuracy)
    contents = {
        "model.safetensors": weights_to_bytes(model),
        "model.onnx": onnx_model,
        "model.int8.onnx": int8_model,
    }
    trained_on = run.trained_on()
    if trained_on is not None:
        contents[TRAINED_ON] = ids_to_bytes(trained_on)
    facts = {
        "format": FORMAT,
        "model": short_name(run.config.model),
        "budget": run.config.budget,
        "params": count_params(model),
        "macs": count_macs(model, run.data.image_size),
        "classes": list(run.data.classes),
        "image_size": run.data.image_size,
        "mean": list(mean),
        "std": list(std),
        "temperature": temperature,
        "temperature_origin": origin,
        "preprocessing": preprocessing(run.data.image_size, run.options.fit),
        "data": {"name": run.data.name, "fingerprint": run.data.fingerprint},
        "accuracy": {
            "test_accuracy": measured.accuracy,
            "test_n": measured.n,
            "test_balanced_accuracy": measured.balanced_accuracy,
            "test_macro_f1": measured.macro_f1,
            "constant_accuracy": measured.constant_accuracy,
            "data": run.data.name,
            "precision": "float32",
        },
        "proof": proof.to_dict(),
        "recipe": run.config.to_dict(),
        "exported": _versions(),
    }
    if is_place(run.config.model):  # named, not carried: a bundle holds no Python
        facts["source"] = {"sha256": read_sources(run.folder)["model"]["sha256"]}
    contents["README.md"] = _model_card(facts, measured, contents).encode()
    facts["files"] = {name: checksum(content) for name, content in contents.items()}
    contents["model.json"] = json_bytes(facts)
    with new_folder(out) as part:
        for name, content in contents.items():
            (part / name).write_bytes(content)
    return Bundle.open(out), proof


def _temperature(logits: Tensor, held_out: Dataset, kind: str) -> tuple[float, str]:
    """Return the temperature that a bundle states, and where it is from."""
    # Without held-out images the confidence of training images would be fitted, so it is left.
    if kind != "validation":
        return 1.0, "none was fitted: the run held no images out"
    fitted = fit_temperature(logits, held_out.labels)
    if fitted is None:
        wrong = int((logits.argmax(1) != held_out.labels).sum())
        return 1.0, (
            f"none was fitted: {wrong} of {len(held_out):,} validation images are answered "
            f"wrongly, and {FEWEST_ERRORS} are needed"
        )
    return fitted, "fitted on validation images"


def copy_bundle(bundle: str | Path, out: str | Path) -> Bundle:
    """Copy a bundle, its files checked, to a new folder.

    Raises:
        ValueError: no bundle or a damaged one.
        OSError: `out` exists or cannot be written.
    """
    opened = Bundle.open(bundle)
    with new_folder(Path(out)) as part:
        (part / "model.json").write_bytes((opened.folder / "model.json").read_bytes())
        for name in opened.described["files"]:
            (part / name).write_bytes(opened.read_file(name))
    return Bundle.open(out)


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
    _, held_out = hold_out(data, fraction, run.config.seed)
    return held_out.subset(slice(MAX_PROOF_IMAGES)), kind


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
    if not difference <= logit_tolerance(reference) or proof.onnx_accuracy != proof.accuracy:
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


def _model_card(facts: dict[str, Any], measured: Evaluation, contents: dict[str, bytes]) -> str:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("halfmeg.shipping"), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, autoescape=False,
    )  # fmt: skip
    return templates.get_template("card.md").render(
        facts=facts,
        classes=list(zip(facts["classes"], measured.per_class, measured.precision, strict=True)),
        snippet=snippet(facts["image_size"], facts["preprocessing"]["fit"]),
        sizes={name: len(content) for name, content in contents.items()},
    )
