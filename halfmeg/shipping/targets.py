"""What `export --target` writes beside ONNX: a row of `TARGETS` for each target.

How a target is built and proved stands in a file of its own; here stands what it is made of, and
where its files lie in a bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from halfmeg.data.dataset import Dataset
from halfmeg.data.shape import ImageShape
from halfmeg.shipping.answered import Answered
from halfmeg.shipping.build import build_c
from halfmeg.shipping.executorch import build_executorch, require_executorch
from halfmeg.shipping.litert import build_litert, require_litert
from halfmeg.shipping.web import build_web, require_compiler


@dataclass(frozen=True)
class Source:
    """A network that a target is made of.

    Attributes:
        model: in float32, in evaluation mode.
        mean, std: of the pixels scaled to [0, 1], for each channel.
        image_shape: of its images.
        calibration: uint8 B×C×H×W, of the training images.
        held_out: images and labels of the proof.
        reference: the network's logits of these images, in float32.
        accuracy: of these logits.
        allowed_loss: accuracy that int8 may lose, as a share.
        integers: the network in integers; None where it has an operator that they do not.
        facts: of `model.json`, without those of targets.
    """

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: ImageShape
    calibration: Tensor
    held_out: Dataset
    reference: Tensor
    accuracy: float
    allowed_loss: float
    integers: Answered | None
    facts: dict[str, Any]

    @property
    def answered(self) -> Answered:
        """The network in integers, for a target `of_integers`: without them no export gets here."""
        assert self.integers is not None
        return self.integers


class Built(Protocol):
    """What a bundle states of a target: numbers as JSON types, and the proof in a line."""

    @property
    def proof_text(self) -> str:
        """What was proved, in a line."""

    def to_dict(self) -> dict[str, Any]:
        """Return what a bundle states, as JSON types."""


@dataclass(frozen=True)
class Target:
    """A row of `TARGETS`.

    Attributes:
        build: builds and proves it, and returns its files by their paths in a bundle; raises
            ValueError where it does not do what the network does.
        require: raises ValueError, with what to install, where something it needs is missing.
        path: of its files in a bundle, the one that a user is told of.
        about: what else is told, with the keys of what the bundle states in braces.
        of_integers: whether it is written from the network in integers.
    """

    build: Callable[[Source], tuple[Built, dict[str, bytes]]]
    path: str
    about: str = ""
    require: Callable[[], None] = lambda: None
    of_integers: bool = False

    def lines(self, stated: Mapping[str, Any]) -> list[str]:
        """Say what was made, by what the bundle states, and what was proved."""
        return [*filter(None, [self.about.format_map(stated)]), stated["proof_text"]]


def _c(source: Source) -> tuple[Built, dict[str, bytes]]:
    built = build_c(source.answered)
    return built, {f"c/{path}": content for path, content in built.files.items()}


def _web(source: Source) -> tuple[Built, dict[str, bytes]]:
    built = build_web(source.answered, source.facts)
    return built, {f"web/{path}": content for path, content in built.files.items()}


def _litert(source: Source) -> tuple[Built, dict[str, bytes]]:
    built = build_litert(
        source.model, source.mean, source.std, source.image_shape, source.calibration,
        source.held_out, source.accuracy, source.allowed_loss,
    )  # fmt: skip
    return built, {"model.tflite": built.content}


def _executorch(source: Source) -> tuple[Built, dict[str, bytes]]:
    built = build_executorch(
        source.model, source.mean, source.std, source.image_shape, source.calibration,
        source.held_out, source.reference, source.allowed_loss,
    )  # fmt: skip
    return built, {"model.pte": built.float32, "model.int8.pte": built.int8}


TARGETS = {
    "c": Target(
        _c, "c/", "{arena_bytes:,} bytes of RAM, set by {peak}; {constant_bytes:,} of flash "
        "without code", of_integers=True,
    ),
    "web": Target(
        _web, "web/index.html", "{page_bytes:,} bytes; open it in a browser", require_compiler,
        of_integers=True,
    ),
    "litert": Target(_litert, "model.tflite", require=require_litert),
    "executorch": Target(_executorch, "model.pte", require=require_executorch),
}  # fmt: skip
