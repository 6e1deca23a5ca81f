"""A bundle: a trained network as a folder that needs nothing else, and can be trusted.

| file | holds |
|---|---|
| `model.json` | architecture, classes, normalization, accuracy as measured, checksums |
| `model.safetensors` | the weights |
| `model.onnx`, `model.int8.onnx` | the network for other runtimes, where they were exported |
| `model.tflite` | the network for LiteRT, where it was asked for |
| `model.pte`, `model.int8.pte` | the network for ExecuTorch, where it was asked for |
| `c/` | the network in C, where it was asked for |
| `web/` | the network as a page, where it was asked for |
| `README.md` | the model card |

A bundle of a network of one's own names it, but does not hold its Python: it predicts from the
exported graphs.

Nothing in it is unpickled, every file is checked against its checksum before it is read, and every
number of `model.json` against what it may be.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, final

import numpy as np
from msgspec import Meta
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from halfmeg.artifacts.facts import Channels, StoredSize
from halfmeg.artifacts.graph import check_graph, onnx_logits
from halfmeg.artifacts.rebuild import rebuild
from halfmeg.artifacts.refusals import no_bundle, unfinished
from halfmeg.artifacts.run import Run
from halfmeg.artifacts.seen import TRAINED_ON, Known, read_ids, unseen
from halfmeg.artifacts.weights import read_checked
from halfmeg.config import BUDGET, check_range
from halfmeg.data.dataset import MAX_CLASSES, DataSplits
from halfmeg.data.decode import FitName
from halfmeg.data.options import DataOptions
from halfmeg.data.shape import ImageShape, data_shape
from halfmeg.errors import did_you_mean, one_line
from halfmeg.evaluation.calibration import fit_temperature
from halfmeg.evaluation.evaluate import Evaluation, evaluate, score
from halfmeg.evaluation.familiarity import Familiarity
from halfmeg.files import check_json, find_json
from halfmeg.networks.table import build_model
from halfmeg.places.place import is_place

FORMAT = 1
MAX_FILE_BYTES = 256 * 2**20
MAX_DESCRIPTION_BYTES = 2**20
FILES = (
    "model.safetensors", "model.onnx", "model.int8.onnx", "model.tflite", "model.pte",
    "model.int8.pte", "README.md", TRAINED_ON,
)  # fmt: skip

TARGET_FILE = re.compile(r"(c|web)(/[A-Za-z0-9_][A-Za-z0-9_.]*){1,3}")
"""Names of files in the folders of C and of the page."""

SHIPPED = {name: Path(str(files("halfmeg") / "bundled" / name)) for name in ("record", "gated")}
"""The bundles that are installed with the program: our most accurate below 500,000 parameters, and
below 100,000. They go by their names where no folder of that name is."""

BUNDLED = SHIPPED["record"]
"""The one that answers where none is named."""


@dataclass(frozen=True)
class Accuracy:
    """What the program reads of a bundle's accuracy."""

    test_accuracy: Annotated[float, Meta(ge=0, le=1)]
    test_n: Annotated[int, Meta(ge=0)]
    data: str


@dataclass(frozen=True)
class Preprocessing:
    """What the program reads of the steps from a file to the network."""

    fit: FitName = "crop"


@dataclass(frozen=True)
class StoredBundle:
    """What the program reads of model.json; more stands there."""

    model: str
    params: Annotated[int, Meta(ge=0)]
    classes: tuple[str, ...]
    image_size: StoredSize
    mean: Channels
    std: Channels
    temperature: float
    accuracy: Accuracy
    files: dict[str, str]
    budget: int = BUDGET
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    options: dict[str, Any] = field(default_factory=dict)
    familiarity: Familiarity | None = None


@final
@dataclass(frozen=True)
class Bundle:
    """An opened bundle, its files checked.

    Attributes:
        model: a key of `MODELS`, or the name of a network of one's own.
        image_size: a side in pixels, or (height, width).
        budget: what chose its widths, for a network that scales.
        mean, std: of pixels scaled to [0, 1].
        temperature: what the logits are divided by for calibrated probabilities.
        accuracy: as measured when it was exported: `test_accuracy`, `test_n`, and on what data.
        described: the whole of model.json.
        run: the run folder that answers in place of an exported bundle; None for one.
        familiarity: what tells unfamiliar images; None in bundles from before there was one, and
            where the run held too few images out.
    """

    folder: Path
    model: str
    budget: int
    classes: tuple[str, ...]
    image_size: int | tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    temperature: float
    accuracy: dict[str, Any]
    described: dict[str, Any]
    run: Run | None = None
    familiarity: Familiarity | None = None

    @classmethod
    def open(cls, folder: str | Path) -> Bundle:
        """Open a bundle, by its folder or its name in `SHIPPED`, and check each of its files.

        Raises:
            ValueError: no bundle, or one that was damaged or altered; the message says where.
        """
        folder = _locate(folder)
        path = folder / "model.json"
        described = find_json(path, dict[str, Any], MAX_DESCRIPTION_BYTES)
        if described is None:
            raise no_bundle(folder, did_you_mean(str(folder), SHIPPED).strip())
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
        DataOptions.from_dict(stored.options)
        if not 2 <= len(stored.classes) <= MAX_CLASSES:
            raise ValueError(f"classes: 2 to {MAX_CLASSES:,} names are expected")
        if len(set(stored.classes)) < len(stored.classes):
            raise ValueError("classes: a name stands there twice")
        if len(stored.std) != len(stored.mean):
            raise ValueError("mean and std have different numbers of channels")
        shape = data_shape(stored.image_size, len(stored.mean))
        for value in (*stored.mean, *stored.std, stored.temperature):
            if not abs(value) <= 1e6:
                raise ValueError(f"mean, std, temperature: {value!r} is out of range")
        if not all(value > 0 for value in stored.std):
            raise ValueError(f"std={stored.std} is out of range; allowed: above 0")
        if not 0 < stored.temperature <= 1_000:
            raise ValueError(
                f"temperature={stored.temperature} is out of range; allowed: (0, 1000]"
            )
        for name in sorted(set(stored.files) - set(FILES)):
            if not TARGET_FILE.fullmatch(name):
                allowed = ", ".join((*FILES, "c/", "web/"))
                raise ValueError(f"files: {name!r} is not known; allowed: {allowed}")
        if "model.safetensors" not in stored.files:
            raise ValueError("files: model.safetensors is missing")
        check_range("budget", stored.budget)
        if not is_place(stored.model):  # raises for an unknown or unfit one
            build_model(stored.model, len(stored.classes), shape, stored.budget)
        elif "model.onnx" not in stored.files:
            raise ValueError("files: model.onnx is missing, which a network of one's own needs")
        return cls(
            folder=folder,
            model=stored.model,
            budget=stored.budget,
            classes=stored.classes,
            image_size=shape.size,
            mean=stored.mean,
            std=stored.std,
            temperature=stored.temperature,
            accuracy=described["accuracy"],
            described=described,
            familiarity=stored.familiarity,
        )

    @property
    def image_shape(self) -> ImageShape:
        """Channels, height and width of the images."""
        return data_shape(self.image_size, len(self.mean))

    @property
    def is_own(self) -> bool:
        """Whether it holds a network of one's own, which only the exported graphs can run."""
        return is_place(self.model) and self.run is None

    @classmethod
    def of_run(cls, run: Run) -> Bundle:
        """Return what a finished run can answer with, though it was not exported.

        Raises:
            ValueError: the run has not finished, or its files are damaged.
        """
        result = run.result()
        if result is None:
            raise unfinished(run.folder)
        logits = run.load_logits()
        held_out = "val_logits" in logits and "val_labels" in logits
        temperature = None
        if held_out:
            temperature = fit_temperature(logits["val_logits"], logits["val_labels"])
        facts, stored = run.data, result.get("familiarity")
        return cls(
            folder=run.folder, model=run.config.model, budget=run.config.budget,
            classes=facts.classes, image_size=facts.image_shape.size, mean=facts.mean,
            std=facts.std, temperature=temperature or 1.0,
            accuracy={
                "test_accuracy": result["test_accuracy"], "test_n": result["test_n"],
                "data": facts.name,
            },
            described={
                "params": result["params"], "files": {},
                "data": {"name": facts.name, "fingerprint": facts.fingerprint},
                "preprocessing": {"fit": run.options.fit},
            },
            run=run,
            familiarity=Familiarity.from_dict(stored) if stored else None,
        )  # fmt: skip

    def load_model(self) -> nn.Module:
        """Rebuild the network, in evaluation mode.

        Raises:
            ValueError: weights of another network, or a network of one's own.
        """
        if self.run is not None:
            return self.run.load_model()
        if self.is_own:
            raise ValueError(
                f"{self.folder} holds {self.model}, a network of one's own, without its Python; "
                f"its exported graphs run it"
            )
        name = "model.safetensors"
        path, sha256 = self.folder / name, self.described["files"][name]
        return rebuild(self.model, self.classes, self.image_shape, self.budget, path, sha256)

    def read_file(self, name: str) -> bytes:
        """Return a file's content, checked once more.

        Raises:
            ValueError: it is not there, or was damaged or altered.
        """
        if not self.has(name):
            raise ValueError(f"{self.folder} has no {name}")
        return read_checked(self.folder / name, MAX_FILE_BYTES, self.described["files"][name])

    def load_state(self) -> dict[str, Tensor]:
        """Return the weights by their names.

        Raises:
            ValueError: the file is damaged.
        """
        name = "model.safetensors"
        content = self.read_file(name)
        try:
            return load_tensors(content)
        except Exception as error:  # what a damaged file raises depends on where the damage is
            raise ValueError(f"{self.folder / name} is damaged: {error}") from None

    def has(self, name: str) -> bool:
        """Return whether the bundle holds a file."""
        return name in self.described["files"]

    def evaluate(self, data: DataSplits) -> Evaluation:
        """Evaluate the network on the test part of `data`, in float32 as when it was exported.

        Of other data than its own, images that it was trained or validated on are left out.

        Raises:
            ValueError: images of other classes, or none but those.
        """
        test, left_out = unseen(data, self.classes, self.known, str(self.folder))
        if self.is_own:
            graph = self.read_file("model.onnx")
            num_params = sum(tensor.numel() for tensor in self.load_state().values())
            try:
                check_graph(graph, self.image_shape, num_params)
                logits = onnx_logits(graph, test.images)
            except Exception as error:  # the runtime's errors have no common base
                path, told = self.folder / "model.onnx", one_line(error, 200)
                raise ValueError(f"{path} cannot be used: {told}") from None
            if logits.shape != (len(test), len(self.classes)):
                raise ValueError(f"{self.folder / 'model.onnx'} gives something else than logits")
            result = score(logits, test.labels)
        else:
            result = evaluate(self.load_model(), test, self.mean, self.std, precision="fp32")
        return replace(result, left_out=left_out)

    @property
    def fingerprint(self) -> str | None:
        """Of the data that it was trained on; None where model.json does not say."""
        data = self.described.get("data")
        return (
            str(data["fingerprint"]) if isinstance(data, dict) and "fingerprint" in data else None
        )

    @property
    def knows_its_images(self) -> bool:
        """Whether the bundle says which images it was trained on."""
        return self.has(TRAINED_ON)

    def trained_on(self) -> np.ndarray | None:
        """Return the sorted ids of the images it was trained or validated on, where it says so.

        Raises:
            ValueError: the file is damaged.
        """
        return read_ids(self.folder / TRAINED_ON) if self.has(TRAINED_ON) else None

    @property
    def known(self) -> Known:
        """What the bundle says of the images that the network has seen."""
        data = self.described.get("data")
        whole = not (isinstance(data, dict) and data.get("seen_in_other_forms"))
        fit = self.options.fit
        return Known(self.fingerprint, self.image_shape, fit, self.trained_on, whole)

    @property
    def weights_sha256(self) -> str:
        """The checksum of the weights."""
        return str(self.described["files"]["model.safetensors"])

    @property
    def options(self) -> DataOptions:
        """How its data was read, and images are brought to the network's size."""
        options = DataOptions.from_dict(self.described.get("options", {}))
        fit = self.described.get("preprocessing", {}).get("fit", "crop")
        return replace(options, fit=fit, channels=len(self.mean))


def open_network(folder: str | Path) -> Bundle:
    """Open a bundle, or a finished run folder as one.

    Raises:
        ValueError: neither, or one that was damaged.
    """
    folder = _locate(folder)
    if (folder / "config.json").is_file() and not (folder / "model.json").is_file():
        return Bundle.of_run(Run.open(folder))
    return Bundle.open(folder)


def is_bundle(folder: str | Path) -> bool:
    """Return whether a folder, or what a name in `SHIPPED` stands for, looks like a bundle."""
    return (_locate(folder) / "model.json").is_file()


def _locate(folder: str | Path) -> Path:
    path = Path(folder)
    return path if path.exists() else SHIPPED.get(str(folder), path)


def checksum(content: bytes) -> str:
    """Return the SHA-256 of a file's content as model.json states it."""
    return hashlib.sha256(content).hexdigest()
