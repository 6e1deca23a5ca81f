"""From a run folder to a bundle: ONNX and int8, each proved before it gets its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfmeg.artifacts.bundle import FORMAT, Bundle, checksum
from halfmeg.artifacts.environment import environment, public_command, without_folders
from halfmeg.artifacts.readings import warn_if_read_only
from halfmeg.artifacts.run import Run
from halfmeg.artifacts.seen import TRAINED_ON, ids_to_bytes
from halfmeg.artifacts.sources import read_sources
from halfmeg.artifacts.weights import weights_to_bytes
from halfmeg.config import RunConfig
from halfmeg.data.dataset import Dataset, DataSplits, spread_over
from halfmeg.data.shape import data_shape
from halfmeg.data.split import hold_out, stratified_split
from halfmeg.evaluation.calibration import FEWEST_ERRORS, fit_temperature
from halfmeg.evaluation.evaluate import Evaluation, compute_logits, evaluate
from halfmeg.evaluation.familiarity import Familiarity
from halfmeg.files import json_bytes, new_folder, refuse_existing, refuse_unwritable
from halfmeg.networks.summary import count_macs, count_params
from halfmeg.places.place import is_place, short_name
from halfmeg.shipping.answered import Answered
from halfmeg.shipping.int8 import NUM_CALIBRATION, Integers, to_int8
from halfmeg.shipping.onnx import to_onnx
from halfmeg.shipping.preprocess import preprocessing, snippet
from halfmeg.shipping.proof import Proof, check_loss, prove
from halfmeg.shipping.render import render
from halfmeg.shipping.targets import TARGETS, Source
from halfmeg.shipping.trained import Trained
from halfmeg.shipping.unfamiliar import Unfamiliar
from halfmeg.shipping.verify import verify_onnx

DRAWN_SHARE = 0.1
"""Share of the training images that a proof is of where a run held none out."""

MAX_PROOF_IMAGES = 5_000
MAX_TUNING_IMAGES = 20_000
"""Of an epoch of fine-tuning, so that it takes minutes."""

ALLOWED_LOSS = 0.005
"""Share of the held-out images that int8 may lose."""


def check_request(out: str | Path, targets: Sequence[str] = ()) -> None:
    """Check what can be told of an export before a run or its data is opened.

    Args:
        out: the bundle's folder, which must not exist.
        targets: names from `TARGETS`.

    Raises:
        ValueError: `out` exists or cannot be made, a target is not known, or an extra is missing.
    """
    for target in targets:
        if target not in TARGETS:
            raise ValueError(f"target={target!r} is not known; allowed: {', '.join(TARGETS)}")
    refuse_existing(Path(out))
    refuse_unwritable(Path(out))
    for target in targets:
        TARGETS[target].require()
    _require_ship_extra()


def export(
    source: Run | Bundle,
    data: DataSplits,
    out: str | Path,
    *,
    allow_loss: bool = False,
    targets: Sequence[str] = (),
    finetune: bool = False,
) -> tuple[Bundle, Proof]:
    """Export a finished run as a bundle, proved on the run's validation images.

    Reads the test set once, for the accuracy that the bundle states.

    Args:
        source: a finished run, or a bundle, as to write a target that it lacks.
        data: its data.
        out: the bundle's folder, which must not exist.
        allow_loss: keep an int8 file that loses more than half a point.
        targets: names from `TARGETS`, of what is written beside ONNX.
        finetune: train int8 weights on behind the rounding where they lose more than 0.2 points.

    Raises:
        ValueError: as `check_request`; other data than the run's, an operator that a target does
            not have, or a file that does not do what the network does; weights that were damaged or
            altered; a bundle that was fine-tuned, without `finetune`.
    """
    check_request(out, targets)
    out = Path(out)
    run = Trained.of(source)
    _check_source(run, data, finetune=finetune)
    model, mean, std = run.model, run.mean, run.std
    held_out, trained, kind = _proof_images(run.config, data)
    training = _drawn_of(data.train.images, trained)
    onnx_model = to_onnx(model, mean, std, run.image_shape)
    reference = compute_logits(model, held_out.images, mean, std, precision="fp32")
    int8_model, integers = to_int8(
        run, onnx_model, training, held_out, reference, finetune=finetune,
        required=any(TARGETS[target].of_integers for target in targets),
    )  # fmt: skip
    oracle = integers.logits if isinstance(integers, Integers) else None
    proof = prove(reference, held_out, kind, onnx_model, int8_model, oracle)
    allowed = 1.0 if allow_loss else ALLOWED_LOSS
    hint = "--finetune may mend it, and " if oracle is not None and not finetune else ""
    check_loss("int8", proof.int8_loss, allowed, f"{proof.n:,} {kind} images", hint)
    familiarity = None
    if kind == "validation":
        familiarity = Familiarity.fit(data.train.images, trained, held_out.images, reference)
    temperature, origin = _temperature(reference, held_out, kind)
    measured = _measure(source, run, data)
    facts = _describe(run, measured, proof, integers) | {
        "temperature": temperature,
        "temperature_origin": origin,
        "familiarity": familiarity.to_dict() if familiarity else None,
    }
    contents = {
        "model.safetensors": weights_to_bytes(model),
        "model.onnx": onnx_model,
        "model.int8.onnx": int8_model,
    }
    if run.trained_on is not None:
        contents[TRAINED_ON] = ids_to_bytes(run.trained_on)
    answered: Answered | None = None
    if isinstance(integers, Integers):
        images = held_out.images.numpy()
        unfamiliar = familiarity and Unfamiliar.of(familiarity, images, integers.logits)
        answered = Answered(
            integers.graph, facts["model"], run.classes, temperature, images, integers.logits,
            unfamiliar,
        )  # fmt: skip
    exported = Source(
        model, mean, std, run.image_shape, training[:NUM_CALIBRATION], held_out, reference,
        proof.accuracy, allowed, answered, dict(facts),
    )  # fmt: skip
    for target in targets:
        built, files = TARGETS[target].build(exported)
        contents |= files
        facts[target] = built.to_dict() | {"proof_text": built.proof_text}
    _write(out, facts, measured, contents)
    return Bundle.open(out), proof


def _check_source(run: Trained, data: DataSplits, *, finetune: bool) -> None:
    if data.fingerprint != run.data["fingerprint"]:
        raise ValueError(
            f"{run.folder} was trained on other data than {data.name}; name its own with --data"
        )
    if run.tuned and not finetune:  # what was learned stands in the int8 file alone
        raise ValueError(f"{run.folder} was fine-tuned; add --finetune, which does so anew")


def _measure(source: Run | Bundle, run: Trained, data: DataSplits) -> Evaluation:
    """Read the test set for the accuracy that the bundle states; a run has to have the same."""
    if isinstance(source, Run):
        with warn_if_read_only(source.folder):
            source.log_test_reading("export: the accuracy that the bundle states")
    measured = evaluate(run.model, data.test, run.mean, run.std, precision="fp32")
    if isinstance(source, Run):
        source.check_accuracy(measured.accuracy)
    return measured


def _write(
    out: Path, facts: dict[str, Any], measured: Evaluation, contents: dict[str, bytes]
) -> None:
    """Write a bundle, its card and its description, and read it back before it gets its name."""
    contents["README.md"] = _model_card(facts, measured, contents).encode()
    facts["files"] = {name: checksum(content) for name, content in contents.items()}
    contents["model.json"] = json_bytes(facts)
    with new_folder(out) as part:
        for path, content in contents.items():
            (part / path).parent.mkdir(parents=True, exist_ok=True)
            (part / path).write_bytes(content)
        try:
            _verify_written(Bundle.open(part))
        except ValueError as error:  # it names the folder that is removed now
            raise ValueError(str(error).replace(str(part), str(out))) from None


def _describe(
    run: Trained, measured: Evaluation, proof: Proof, integers: Integers | str
) -> dict[str, Any]:
    """Return what `model.json` states of any network."""
    facts = {
        "format": FORMAT,
        "model": short_name(run.config.model),
        "budget": run.config.budget,
        "params": count_params(run.model),
        "macs": count_macs(run.model, run.image_shape),
        "classes": list(run.classes),
        "image_size": run.image_shape.size,
        "channels": run.image_shape.channels,
        "mean": list(run.mean),
        "std": list(run.std),
        "preprocessing": preprocessing(run.image_shape, run.options.fit),
        "options": run.options.to_dict(),
        "data": run.data | ({"seen_in_other_forms": True} if run.seen_in_other_forms else {}),
        "accuracy": {
            "test_accuracy": measured.accuracy,
            "test_n": measured.n,
            "test_balanced_accuracy": measured.balanced_accuracy,
            "test_macro_f1": measured.macro_f1,
            "constant_accuracy": measured.constant_accuracy,
            "data": run.data["name"],
            "precision": "float32",
        },
        "proof": proof.to_dict(),
        "recipe": {
            setting: without_folders(value) if isinstance(value, str) else value
            for setting, value in run.config.to_dict().items()
        },
        "exported": _versions(),
    }
    if isinstance(integers, str):
        facts["why_no_integers"] = integers
    elif integers.tuned is not None:
        facts["finetuning"] = vars(integers.tuned) | {"text": str(integers.tuned)}
    if is_place(run.config.model):  # named, not carried: a bundle holds no Python
        source_text = read_sources(run.folder).get("model")
        if source_text is not None:
            facts["source"] = {"sha256": source_text.sha256}
    return facts


def _verify_written(bundle: Bundle) -> None:
    """Hold what was read back to what is asked of it later: no bundle is made in vain."""
    verify_onnx(bundle, "model.onnx")
    # proved on validation images; drawn ones leave the ranges of a network of few epochs
    verify_onnx(bundle, "model.int8.onnx", compare=False)


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
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes(opened.read_file(name))
    return Bundle.open(out)


def _require_ship_extra() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"exporting needs {error.name}: pip install -e '.[ship]'") from None


def _proof_images(config: RunConfig, data: DataSplits) -> tuple[Dataset, Tensor, str]:
    """Return the images of the proof, the indices of the other training images, and what it is of.

    A run without a share for validation has trained on all training images, and on no other: where
    the data has a validation part, the proof is of that.
    """
    drawn = config.val_fraction == 0 and data.validation is None
    try:
        trained, held_out = hold_out(data, config.val_fraction or DRAWN_SHARE, config.seed)
    except ValueError:
        if not drawn:
            raise
        trained, chosen = _drawn_without_groups(data.train, config.seed)
        held_out = data.train.subset(chosen)
    shown = held_out.subset(spread_over(len(held_out), MAX_PROOF_IMAGES))
    return shown, trained, "training" if drawn else "validation"


def _drawn_without_groups(images: Dataset, seed: int) -> tuple[Tensor, Tensor]:
    """Divide training images that whole groups do not divide; all of them were trained on."""
    try:
        return stratified_split(images.labels, DRAWN_SHARE, seed)
    except ValueError:  # no class has two images
        every = torch.arange(len(images))
        chosen = every % round(1 / DRAWN_SHARE) == 0
        return every[~chosen], every[chosen]


def _drawn_of(images: Tensor, trained: Tensor) -> Tensor:
    """Return the images that int8 may learn from; the first are as good a calibration as any."""
    order = torch.randperm(len(trained), generator=torch.Generator().manual_seed(0))
    return images[trained[order[:MAX_TUNING_IMAGES]]]


def _versions() -> dict[str, Any]:
    import onnx
    import onnxruntime

    facts = environment() | {"command": public_command()}
    kept = ("command", "halfmeg", "commit", "torch", "processor")
    versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    return {key: facts[key] for key in kept} | versions


def _model_card(facts: dict[str, Any], measured: Evaluation, contents: dict[str, bytes]) -> str:
    shape = data_shape(facts["image_size"], facts["channels"])
    return render(
        "card.md",
        facts=facts,
        classes=list(zip(facts["classes"], measured.per_class, measured.precision, strict=True)),
        shape=shape,
        snippet=snippet(shape, facts["preprocessing"]["fit"]),
        sizes={name: len(content) for name, content in contents.items()},
    )
