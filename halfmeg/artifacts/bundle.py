"""A bundle: a trained network as a folder that needs nothing else, and can be trusted.

| file | holds |
|---|---|
| `model.json` | architecture, classes, normalization, accuracy as measured, checksums |
| `model.safetensors` | the weights |
| `model.onnx`, `model.int8.onnx` | the network for other runtimes, where they were exported |
| `c/` | the network in C, where it was asked for |
| `web/` | the network as a page, where it was asked for |
| `README.md` | the model card |

Nothing in it is unpickled, every file is checked against its checksum before it is read, and every
number of `model.json` against what it may be.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, final

from torch import nn

from halfmeg.artifacts.rebuild import check_classes, rebuild
from halfmeg.config import BUDGET
from halfmeg.data.dataset import DataSplits
from halfmeg.evaluation.evaluate import Evaluation, evaluate
from halfmeg.networks.table import build_model

FORMAT = 1
MAX_FILE_BYTES = 256 * 2**20
MAX_DESCRIPTION_BYTES = 2**20
MAX_CLASSES = 10_000
MAX_BUDGET = 10_000_000
FILES = ("model.safetensors", "model.onnx", "model.int8.onnx", "README.md")

TARGET_FILE = re.compile(r"(c|web)(/[A-Za-z0-9_][A-Za-z0-9_.]*){1,3}")
"""Names of files in the folders of C and of the page."""

BUNDLED = Path(str(files("halfmeg") / "bundled"))
"""The network that is installed with the program."""

SHIPPED = {"record": BUNDLED}
"""Bundles that go by a name where no folder of that name is."""


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
            content = _read_limited(path, MAX_DESCRIPTION_BYTES)
            described = json.loads(content)
            bundle = cls._from_description(folder, described)
        except (FileNotFoundError, NotADirectoryError):
            missing = "it has no model.json" if folder.exists() else "it does not exist"
            raise ValueError(f"{folder} is no bundle: {missing}") from None
        except (KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from None
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        bundle._check_files()
        return bundle

    @classmethod
    def _from_description(cls, folder: Path, described: Any) -> Bundle:
        if described["format"] != FORMAT:
            raise ValueError(f"format={described['format']!r} is not known; allowed: {FORMAT}")
        classes = described["classes"]
        if not (isinstance(classes, list) and 2 <= len(classes) <= MAX_CLASSES):
            raise ValueError(f"classes: a list of 2 to {MAX_CLASSES:,} names is expected")
        if not all(isinstance(name, str) for name in classes):
            raise ValueError("classes: names are expected")
        image_size = described["image_size"]
        if type(image_size) is not int or not 8 <= image_size <= 512:
            raise ValueError(f"image_size={image_size!r} is out of range; allowed: [8, 512]")
        mean, std = (_numbers(described[key], key) for key in ("mean", "std"))
        if not all(value > 0 for value in std):
            raise ValueError(f"std={std} is out of range; allowed: above 0")
        (temperature,) = _numbers([described["temperature"]], "temperature", count=1)
        if not 0 < temperature <= 1_000:
            raise ValueError(f"temperature={temperature} is out of range; allowed: (0, 1000]")
        accuracy = described["accuracy"]
        if not isinstance(accuracy, dict) or not isinstance(described["files"], dict):
            raise ValueError("accuracy and files: objects are expected")
        for name in sorted(set(described["files"]) - set(FILES)):
            if not TARGET_FILE.fullmatch(name):
                allowed = ", ".join((*FILES, "c/", "web/"))
                raise ValueError(f"files: {name!r} is not known; allowed: {allowed}")
        if "model.safetensors" not in described["files"]:
            raise ValueError("files: model.safetensors is missing")
        model = described["model"]
        if not isinstance(model, str):
            raise ValueError(f"model={model!r} is not known")
        budget = described.get("budget", BUDGET)
        if type(budget) is not int or not 0 < budget <= MAX_BUDGET:
            raise ValueError(f"budget={budget!r} is out of range; allowed: [1, {MAX_BUDGET:,}]")
        build_model(model, len(classes), image_size, budget)  # raises for an unknown or unfit one
        return cls(
            folder=folder,
            model=model,
            budget=budget,
            classes=tuple(classes),
            image_size=image_size,
            mean=mean,
            std=std,
            temperature=temperature,
            accuracy=accuracy,
            described=described,
        )

    def _check_files(self) -> None:
        for name, stated in self.described["files"].items():
            path = self.folder / name
            try:
                content = _read_limited(path, MAX_FILE_BYTES)
            except OSError as error:
                raise ValueError(f"{path} cannot be read: {error.strerror}") from None
            if checksum(content) != stated:
                raise ValueError(f"{path} is damaged or was altered: its checksum is another")

    def load_model(self) -> nn.Module:
        """Rebuild the network, in evaluation mode.

        Raises:
            ValueError: weights of another network.
        """
        weights = self.folder / "model.safetensors"
        return rebuild(self.model, self.classes, self.image_size, self.budget, weights)

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


def _read_limited(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path.name} is larger than {limit:,} bytes")
    return content


def _numbers(values: Any, key: str, count: int = 3) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{key}: {count} number(s) are expected")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key}: {value!r} is no number")
        if not math.isfinite(value) or abs(value) > 1e6:
            raise ValueError(f"{key}: {value!r} is out of range")
    return tuple(float(value) for value in values)
