"""The int8 file of a bundle, from the integers that C is written from, or from a library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from halfmeg.data.dataset import Dataset
from halfmeg.errors import one_line, with_kind
from halfmeg.evaluation.evaluate import score
from halfmeg.networks.simplify import simplify
from halfmeg.networks.trace import trace
from halfmeg.shipping.finetune import Finetuning
from halfmeg.shipping.finetune import finetune as finetune_graph
from halfmeg.shipping.integer import IntegerGraph
from halfmeg.shipping.integer import run as run_integers
from halfmeg.shipping.integer_onnx import to_onnx
from halfmeg.shipping.onnx import quantize_by_library
from halfmeg.shipping.operations import Float32
from halfmeg.shipping.proof import lost
from halfmeg.shipping.quantize import measure_ranges, quantize_graph
from halfmeg.shipping.trained import Trained

NUM_CALIBRATION = 512


@dataclass(frozen=True)
class Integers:
    """A network in integers, and what the oracle answers to the images of the proof.

    Attributes:
        graph: the integers.
        logits: float32 N×classes.
        tuned: what fine-tuning did; None without it.
    """

    graph: IntegerGraph
    logits: Float32
    tuned: Finetuning | None


def to_int8(
    trained: Trained,
    onnx_model: bytes,
    training: Tensor,
    held_out: Dataset,
    reference: Tensor,
    *,
    finetune: bool,
    required: bool,
) -> tuple[bytes, Integers | str]:
    """Return a network's int8 file, and its integers or why it has none: a library made it then.

    Args:
        trained: the network.
        onnx_model: its file in float32.
        training: uint8 B×C×H×W, images to learn from; the first `NUM_CALIBRATION` give the ranges.
        held_out: images of the proof.
        reference: the network's logits of them, in float32.
        finetune: train the weights on where int8 loses more than 0.2 points.
        required: whether something else is made of the integers.

    Raises:
        ValueError: no integers where they are required or fine-tuned, or no file by the library.
    """
    calibration = training[:NUM_CALIBRATION]
    tuned: Finetuning | None = None
    try:
        graph = simplify(trace(trained.model, trained.image_shape), trained.mean, trained.std)
        ranges = measure_ranges(graph, calibration)
        if finetune:
            loss_of = _loss_on(held_out, reference)
            seed = trained.config.seed
            integers, tuned = finetune_graph(graph, ranges, training, loss_of, seed=seed)
        else:
            integers = quantize_graph(graph, ranges)
    except ValueError as error:
        if finetune or required:
            raise
        why_none = one_line(error, 200)
        return _by_library(onnx_model, calibration, why_none), why_none
    logits = run_integers(integers, held_out.images.numpy())
    return to_onnx(integers), Integers(integers, logits, tuned)


def _by_library(onnx_model: bytes, calibration: Tensor, why: str) -> bytes:
    try:
        return quantize_by_library(onnx_model, calibration)
    except Exception as failure:  # its quantizer's have no common base
        raise ValueError(
            f"model.int8.onnx cannot be made: {why}, and onnxruntime's quantizer raises "
            f"{with_kind(failure, 200)}"
        ) from None


def _loss_on(held_out: Dataset, reference: Tensor) -> Callable[[IntegerGraph], float]:
    """Return what tells the accuracy that integers lose against float logits of images."""
    labels, images = held_out.labels, held_out.images.numpy()
    accuracy = score(reference, labels).accuracy

    def loss_of(integers: IntegerGraph) -> float:
        logits = torch.from_numpy(run_integers(integers, images))
        return lost(accuracy, score(logits, labels).accuracy)

    return loss_of
