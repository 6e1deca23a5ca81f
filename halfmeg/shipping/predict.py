"""Classes of a user's own images, by a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfmeg.artifacts.bundle import Bundle
from halfmeg.artifacts.graph import open_onnx
from halfmeg.data.decode import DecodedImage, FitName, decode_image, read_file
from halfmeg.data.shape import ImageShape
from halfmeg.evaluation.evaluate import compute_logits
from halfmeg.shipping.verify import verify_onnx

BATCH_SIZE = 16
"""Images of one pass, after which their answers are given; smaller ones are hardly slower."""

Runner = Callable[[Tensor], Tensor]
"""Maps uint8 B×C×H×W to float32 logits B×K."""

NO_NUMBERS = "the network gives no numbers for it"


@dataclass(frozen=True)
class Prediction:
    """The answer for one image, or why there is none.

    Attributes:
        top: classes with their calibrated probabilities, the likeliest first; empty on an error.
        unfamiliar: whether it is unlike the images that the network was trained on; None where
            that is not known.
        error: why there is none: the image could not be read, or the network gives no numbers for
            it; None where there is one.
        note: what a user should know of how it was read, to follow "3 image(s)"; "" mostly.
    """

    path: str
    top: tuple[tuple[str, float], ...]
    error: str | None = None
    unfamiliar: bool | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        label, probability = self.top[0]
        answer = {
            "path": self.path,
            "label": label,
            "probability": probability,
            "top": [{"label": name, "probability": p} for name, p in self.top],
        }
        return answer if self.unfamiliar is None else answer | {"unfamiliar": self.unfamiliar}


def open_runner(bundle: Bundle) -> Runner:
    """Return the fastest exact way to run a bundle here: onnxruntime, or without it torch.

    Exact is float32; `halfmeg bench` shows the times (docs/performance.md).

    Raises:
        ValueError: the bundle's ONNX file does not do what its weights do, or only onnxruntime
            could run it, and it is not installed.
    """
    if bundle.is_own or (bundle.has("model.onnx") and all(map(find_spec, ("onnx", "onnxruntime")))):
        return open_onnx(verify_onnx(bundle, "model.onnx"))
    model = bundle.load_model()
    mean, std = bundle.mean, bundle.std
    return lambda images: compute_logits(model, images, mean, std, precision="fp32")


def predict(bundle: Bundle, paths: Sequence[Path], *, top: int = 3) -> Iterator[Prediction]:
    """Classify images one batch after another; one without an answer gets its error.

    Args:
        bundle: the network.
        paths: image files of any format and size that Pillow reads.
        top: how many classes to name.

    Raises:
        ValueError: top below 1.
    """
    if top < 1:
        raise ValueError(f"top={top} is out of range; allowed: 1 or more")
    return _answers(bundle, paths, top, open_runner(bundle))


def _answers(bundle: Bundle, paths: Sequence[Path], top: int, run: Runner) -> Iterator[Prediction]:
    fit = bundle.options.fit
    for start in range(0, len(paths), BATCH_SIZE):
        decoded = [
            (path, _read(path, bundle.image_shape, fit)) for path in paths[start:][:BATCH_SIZE]
        ]
        pixels = [image.pixels for _, image in decoded if isinstance(image, DecodedImage)]
        answers: Iterator[tuple[bool, tuple[tuple[str, float], ...], bool | None]] = iter(())
        if pixels:
            images = torch.from_numpy(np.stack(pixels))
            logits = run(images)
            finite = logits.isfinite().all(1).tolist()
            tops = top_classes(bundle, logits, top)
            answers = zip(finite, tops, unfamiliar(bundle, images, logits), strict=True)
        for path, image in decoded:
            if isinstance(image, str):
                yield Prediction(str(path), (), image)
                continue
            is_finite, classes, is_unfamiliar = next(answers)
            if is_finite:
                yield Prediction(str(path), classes, None, is_unfamiliar, image.note)
            else:
                yield Prediction(str(path), (), NO_NUMBERS)


def unfamiliar(bundle: Bundle, images: Tensor, logits: Tensor) -> Sequence[bool | None]:
    """Return for each image, uint8 B×C×H×W with logits B×K, whether it is unfamiliar.

    None where the bundle does not know.
    """
    if bundle.familiarity is None:
        return [None] * len(images)
    return bundle.familiarity.unfamiliar(images, logits)


def top_classes(bundle: Bundle, logits: Tensor, top: int) -> list[tuple[tuple[str, float], ...]]:
    """Return for each row of logits B×K the likeliest classes with calibrated probabilities."""
    probs = (logits.double() / bundle.temperature).softmax(1)
    values, indices = probs.topk(min(top, len(bundle.classes)))
    return [
        tuple((bundle.classes[i], p) for i, p in zip(row_indices, row_values, strict=True))
        for row_indices, row_values in zip(indices.tolist(), values.tolist(), strict=True)
    ]


def _read(path: Path, shape: ImageShape, fit: FitName) -> DecodedImage | str:
    try:
        return decode_image(read_file(path), shape, fit)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
