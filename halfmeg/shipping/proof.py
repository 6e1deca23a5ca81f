"""What the ONNX files of a bundle do on held-out images, before they get their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from halfmeg.artifacts.graph import onnx_logits
from halfmeg.data.dataset import Dataset
from halfmeg.evaluation.evaluate import score
from halfmeg.shipping.operations import Float32
from halfmeg.shipping.verify import logit_tolerance


def lost(accuracy: float, of_form: float) -> float:
    """Return the accuracy that a form loses, as a share; 0.9242 − 0.9222 is no more than 0.002."""
    return round(accuracy - of_form, 12)


def loses(share: float) -> str:
    """Say what a form loses in accuracy, a share; below zero it gains."""
    return f"{'loses' if share >= 0 else 'gains'} {100 * abs(share):.2f} points"


def check_loss(form: str, loss: float, allowed: float, images: str, hint: str = "") -> None:
    """Hold what a form loses, as `lost` gives it, to what is allowed.

    Raises:
        ValueError: it loses more; `hint` is what may help, before the option that allows it.
    """
    if loss > allowed:
        raise ValueError(
            f"{form} loses {100 * loss:.2f} points on {images}, more than {100 * allowed:g}; "
            f"{hint}with --allow-loss it is exported all the same"
        )


@dataclass(frozen=True)
class Proof:
    """What was checked before the files got their names.

    Attributes:
        images: which images: "validation", or "training" where the run and its data held none out.
        n: number of them.
        max_difference: largest difference between a logit of the ONNX file and torch's.
        accuracy, onnx_accuracy, int8_accuracy: of torch in float32 and of the two files.
        int8_exact: whether all int8 logits are those of the integers that C is written from; None
            where an operator has no form in integers, and a library made the int8 file.
    """

    images: str
    n: int
    max_difference: float
    accuracy: float
    onnx_accuracy: float
    int8_accuracy: float
    int8_exact: bool | None

    @property
    def int8_loss(self) -> float:
        """Accuracy lost by int8, as a share."""
        return lost(self.accuracy, self.int8_accuracy)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return dict(vars(self)) | {"int8_loss": self.int8_loss}


def prove(
    reference: Tensor, held_out: Dataset, kind: str, onnx_model: bytes, int8_model: bytes,
    oracle: Float32 | None,
) -> Proof:  # fmt: skip
    """Compare one file with torch in float32, the other with the integers.

    Args:
        reference: torch's logits of the images, in float32.
        held_out: the images and labels, and `kind` what they are.
        onnx_model, int8_model: contents of the two files.
        oracle: the integers' logits; None where a library made the int8 file.

    Raises:
        ValueError: the ONNX file differs by more than rounding, or the int8 file at all.
    """
    images, labels = held_out.images, held_out.labels
    logits = onnx_logits(onnx_model, images)
    difference = (logits - reference).abs().max().item()
    for batch in (1, 2, 7):  # an exporter may freeze the batch, or be wrong at some sizes
        part = onnx_logits(onnx_model, images[:7], batch_size=batch)
        difference = max(difference, (part - reference[:7]).abs().max().item())
    int8_logits = onnx_logits(int8_model, images)
    different = 0 if oracle is None else int((int8_logits.numpy() != oracle).sum())
    if different:
        raise ValueError(
            f"the int8 ONNX file gives {different:,} of {int8_logits.numel():,} logits other than "
            "the integers: this onnxruntime rounds in another way"
        )
    proof = Proof(
        images=kind,
        n=len(labels),
        max_difference=difference,
        accuracy=score(reference, labels).accuracy,
        onnx_accuracy=score(logits, labels).accuracy,
        int8_accuracy=score(int8_logits, labels).accuracy,
        int8_exact=None if oracle is None else True,
    )
    if not difference <= logit_tolerance(reference) or proof.onnx_accuracy != proof.accuracy:
        raise ValueError(
            f"the ONNX file does not do what the network does: logits differ by {difference:g}, "
            f"accuracy {proof.onnx_accuracy:.2%} instead of {proof.accuracy:.2%}"
        )
    return proof


@dataclass(frozen=True)
class EqualLogits:
    """That code gave the oracle's logits on this machine, to the last bit.

    Attributes:
        n: number of images.
        logits: how many logits were held against the oracle's; all were equal.
        conditions: under which it ran.
        ran_by: name and version of what compiled or ran it.
    """

    n: int
    logits: int
    conditions: str
    ran_by: str

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"all {self.logits:,} logits of {self.n:,} images equal, {self.conditions} "
            f"({self.ran_by})"
        )

    def to_dict(self, ran_by: str) -> dict[str, Any]:
        """Return what a bundle states, as JSON types, with the name that it has for `ran_by`."""
        return {"n": self.n, "logits": self.logits, ran_by: self.ran_by}


def proof_text(proof: EqualLogits | None, missing: str) -> str:
    """Say what was proved, in a line, or what was missing on this machine to prove it by."""
    return f"not proved on this machine: {missing}" if proof is None else str(proof)
