"""A bundle: a trained network as a folder that needs nothing else, and can be trusted.

| file | holds |
|---|---|
| `model.json` | architecture, classes, normalization, accuracy as measured, checksums |
| `model.safetensors` | the weights |
| `model.onnx`, `model.int8.onnx` | the network for other runtimes, where they were exported |
| `README.md` | the model card |

Nothing in it is unpickled, every file is checked against its checksum before it is read, and every
number of `model.json` against what it may be.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, final

from msgspec import Meta
from torch import nn

from halfmeg.artifacts.rebuild import check_classes, rebuild
from halfmeg.config import BUDGET
from halfmeg.data.dataset import DataSplits
from halfmeg.evaluation.evaluate import Evaluation, evaluate
from halfmeg.files import check_json, read_json, read_limited
from halfmeg.networks.table import build_model

FORMAT = 1
MAX_FILE_BYTES = 256 * 2**20
MAX_DESCRIPTION_BYTES = 2**20
MAX_CLASSES = 10_000
MAX_BUDGET = 10_000_000
FILES = ("model.safetensors", "model.onnx", "model.int8.onnx", "README.md")

BUNDLED = Path(str(files("halfmeg") / "bundled"))
"""The network that is installed with the program."""

SHIPPED = {"record": BUNDLED}
"""Bundles that go by a name where no folder of that name is."""


@dataclass(frozen=True)
class Accuracy:
    """What the program reads of a bundle's accuracy."""

    test_accuracy: Annotated[float, Meta(ge=0, le=1)]
    test_n: Annotated[int, Meta(ge=0)]
    data: str


@dataclass(frozen=True)
class StoredBundle:
    """What the program reads of model.json; more stands there."""

    model: str
    params: Annotated[int, Meta(ge=0)]
    classes: tuple[str, ...]
    image_size: int
    mean: Annotated[tuple[float, ...], Meta(min_length=3, max_length=3)]
    std: Annotated[tuple[float, ...], Meta(min_length=3, max_length=3)]
    temperature: float
    accuracy: Accuracy
    files: dict[str, str]
    budget: int = BUDGET


@final
@dataclass(frozen=True)
class Bundle:
    """An opened bundle, its files checked.

    Attributes:
        model: a key of `MODELS`.
        budget: what chose its widths, for a network that scales.
        mean, std: of pixels scaled to [0, 1].
        temperature: what the logits are divided by for calibrated probabilities.
        accuracy: as measured when it was exported: `test_accuracy`, `test_n`, and on what data.
        described: the whole of model.json.
    """

    folder: Path
    model: str
    budget: int
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    temperature: float
    accuracy: dict[str, Any]
    described: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Bundle:
        """Open a bundle, by its folder or its name in `SHIPPED`, and check each of its files.

        Raises:
            ValueError: no bundle, or one that was damaged or altered; the message says where.
        """
        folder = _locate(folder)
        path = folder / "model.json"
        try:
            described = read_json(path, dict[str, Any], MAX_DESCRIPTION_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            missing = "it has no model.json" if folder.exists() else "it does not exist"
            raise ValueError(f"{folder} is no bundle: {missing}") from None
        try:
            bundle = cls._from_description(folder, described)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        for name in described["files"]:
            bundle.read_file(name)
        return bundle

    @classmethod
    def _from_description(cls, folder: Path, described: dict[str, Any]) -> Bundle:
        if described.get("format") != FORMAT:
            raise ValueError(f"format={described.get('format')!r} is not known; allowed: {FORMAT}")
        stored = check_json(described, StoredBundle)
        if not 2 <= len(stored.classes) <= MAX_CLASSES:
            raise ValueError(f"classes: 2 to {MAX_CLASSES:,} names are expected")
        if not 8 <= stored.image_size <= 512:
            raise ValueError(f"image_size={stored.image_size} is out of range; allowed: [8, 512]")
        for value in (*stored.mean, *stored.std, stored.temperature):
            if not abs(value) <= 1e6:
                raise ValueError(f"mean, std, temperature: {value!r} is out of range")
        if not all(value > 0 for value in stored.std):
            raise ValueError(f"std={stored.std} is out of range; allowed: above 0")
        if not 0 < stored.temperature <= 1_000:
            raise ValueError(
                f"temperature={stored.temperature} is out of range; allowed: (0, 1000]"
            )
        if unknown := sorted(set(stored.files) - set(FILES)):
            raise ValueError(f"files: {unknown[0]!r} is not known; allowed: {', '.join(FILES)}")
        if "model.safetensors" not in stored.files:
            raise ValueError("files: model.safetensors is missing")
        if not 0 < stored.budget <= MAX_BUDGET:
            raise ValueError(
                f"budget={stored.budget} is out of range; allowed: [1, {MAX_BUDGET:,}]"
            )
        # raises for an unknown or unfit one
        build_model(stored.model, len(stored.classes), stored.image_size, stored.budget)
        return cls(
            folder=folder,
            model=stored.model,
            budget=stored.budget,
            classes=stored.classes,
            image_size=stored.image_size,
            mean=stored.mean,
            std=stored.std,
            temperature=stored.temperature,
            accuracy=described["accuracy"],
            described=described,
        )

    def load_model(self) -> nn.Module:
        """Rebuild the network, in evaluation mode.

        Raises:
            ValueError: weights of another network.
        """
        name = "model.safetensors"
        path, sha256 = self.folder / name, self.described["files"][name]
        return rebuild(self.model, self.classes, self.image_size, self.budget, path, sha256)

    def read_file(self, name: str) -> bytes:
        """Return a file's content, checked once more.

        Raises:
            ValueError: it was damaged or altered.
        """
        path = self.folder / name
        try:
            content = read_limited(path, MAX_FILE_BYTES)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        if checksum(content) != self.described["files"][name]:
            raise ValueError(f"{path} is damaged or was altered: its checksum is another")
        return content

    def has(self, name: str) -> bool:
        """Return whether the bundle holds a file."""
        return name in self.described["files"]

    def evaluate(self, data: DataSplits) -> Evaluation:
        """Evaluate the network on the test part of `data`, in float32 as when it was exported.

        Raises:
            ValueError: other classes, or another size.
        """
        check_classes(data, self.classes, "bundle")
        return evaluate(self.load_model(), data.test, self.mean, self.std, precision="fp32")


def is_bundle(folder: str | Path) -> bool:
    """Return whether a folder, or what a name in `SHIPPED` stands for, looks like a bundle."""
    return (_locate(folder) / "model.json").is_file()


def _locate(folder: str | Path) -> Path:
    path = Path(folder)
    return path if path.exists() else SHIPPED.get(str(folder), path)


def checksum(content: bytes) -> str:
    """Return the SHA-256 of a file's content as model.json states it."""
    return hashlib.sha256(content).hexdigest()
