"""A network as a LiteRT file (`.tflite`) in int8, run by LiteRT and by TFLite Micro.

Google's converter and quantizer write the file. Two of their habits would keep it from a
microcontroller, so they are undone: a global maximum by `amax` stays in float32, and becomes a
max-pooling; weights stand behind the file's tables, where TFLite Micro does not look (it then
computes with zeros and says nothing), and are put inside.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from halfmeg.data.dataset import Dataset, spread_over
from halfmeg.data.shape import ImageSize
from halfmeg.errors import one_line
from halfmeg.files import scratch_folder
from halfmeg.networks.trace import quiet
from halfmeg.shipping.onnx import fold_batchnorm
from halfmeg.shipping.program import require_packages, taken_from_the_screen, with_pooling
from halfmeg.shipping.proof import check_loss, loses, lost

NUM_CALIBRATION = 200
NUM_MICRO_IMAGES = 100
"""TFLite Micro's own kernels are its slow, plain ones."""
MICRO_ARENA_BYTES = 8_000_000
"""Offered to it; what it takes is measured."""
SAME_CLASS = 0.95
"""Share of images whose class has to be LiteRT's; sums are rounded in another way there."""

Run = Callable[[Any], Any]


@dataclass(frozen=True)
class Micro:
    """What TFLite Micro's interpreter did with the file.

    Attributes:
        n: number of images.
        same: how many got LiteRT's class.
        arena_bytes: what it took for maps, and for its own tables.
    """

    n: int
    same: int
    arena_bytes: int

    @property
    def agrees(self) -> bool:
        """Whether the file runs there as it does in LiteRT."""
        return self.same >= SAME_CLASS * self.n


@dataclass(frozen=True)
class LitertFile:
    """A LiteRT file with its proof.

    Attributes:
        content: of the file; input and output are int8, a normalized image H×W×C.
        input: scale and zero point of the input.
        loss: accuracy lost in LiteRT, as a share, on `n` images.
        runtime: name and version of what ran it.
        micro: None where the interpreter is not installed or does not take the file, and then
            `micro_missing` says why.
    """

    content: bytes
    input: tuple[float, int]
    loss: float
    n: int
    runtime: str
    micro: Micro | None
    micro_missing: str = ""

    @property
    def proof_text(self) -> str:
        """What was proved, in a line."""
        text = f"{loses(self.loss)} on {self.n:,} images in {self.runtime}"
        if self.micro is None:
            return f"{text}; not run on TFLite Micro: {self.micro_missing}"
        met = f"LiteRT's class for {self.micro.same} of {self.micro.n} images"
        if not self.micro.agrees:
            return f"{text}; does not run on TFLite Micro: {met}"
        return f"{text}; runs on TFLite Micro: {met}, arena {self.micro.arena_bytes:,} bytes"

    def to_dict(self) -> dict[str, Any]:
        """Return what a bundle states, as JSON types."""
        micro = None if self.micro is None else vars(self.micro) | {"agrees": self.micro.agrees}
        return {
            "bytes": len(self.content), "input_scale": self.input[0],
            "input_zero_point": self.input[1], "loss": self.loss, "n": self.n,
            "runtime": self.runtime, "tflite_micro": micro,
        }  # fmt: skip


def require_litert() -> None:
    """Check for the converter.

    Raises:
        ValueError: it is missing; the message says what to install.
    """
    require_packages("litert", "litert_torch", "ai_edge_quantizer", "ai_edge_litert")


def build_litert(
    model: nn.Module,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    image_size: ImageSize,
    calibration: Tensor,
    held_out: Dataset,
    accuracy: float,
    allowed_loss: float,
) -> LitertFile:
    """Return a network as a LiteRT file in int8, run on images before it is handed out.

    Args:
        model: the network.
        mean, std: of the pixels scaled to [0, 1], for each channel.
        image_size: of the images.
        calibration: uint8 B×C×H×W, of the training images.
        held_out: images and labels of the proof.
        accuracy: of the network in float32 on them.
        allowed_loss: accuracy that the file may lose, as a share.

    Raises:
        ValueError: the converter refuses the network, or the file loses more.
    """
    require_litert()
    # normalization stays outside: as int8 operators it would round every pixel twice
    seen = _normalized(calibration[:NUM_CALIBRATION], mean, std)
    content = convert(model, image_size, seen)
    run, scale, zero_point = _litert(content)
    images = _normalized(held_out.images, mean, std).numpy()
    inputs = np.clip(np.rint(images / scale + zero_point), -128, 127).astype(np.int8)
    found = np.array([run(image[None]).argmax() for image in inputs])
    loss = lost(accuracy, float((found == held_out.labels.numpy()).mean()))
    check_loss("the LiteRT file", loss, allowed_loss, f"{len(found):,} images")
    few = spread_over(len(inputs), NUM_MICRO_IMAGES).numpy()
    micro, missing = run_micro(content, inputs[few], found[few])
    runtime = f"LiteRT {version('ai-edge-litert')}"
    return LitertFile(content, (scale, zero_point), loss, len(found), runtime, micro, missing)


def convert(model: nn.Module, image_size: ImageSize, images: Tensor) -> bytes:
    """Return a network as a LiteRT file in int8, calibrated on normalized images B×H×W×C.

    Raises:
        ValueError: the converter refuses the network.
    """
    folded = fold_batchnorm(model, image_size)
    # the converter does not see weights in channels_last as they are
    folded.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    try:
        content = _with_weights_inside(_convert(folded, images))
        _litert(content)
    except Exception as error:  # whatever the converter raises has no common base
        reason = one_line(error, 200)
        raise ValueError(f"litert-torch does not convert the network: {reason}") from None
    return content


def run_micro(
    content: bytes, inputs: NDArray[np.int8], classes: NDArray[np.int64]
) -> tuple[Micro | None, str]:
    """Run a file in TFLite Micro's interpreter; return why not where it cannot be.

    Args:
        content: of the file.
        inputs: int8 B×H×W×C.
        classes: int64 B, LiteRT's of these images.
    """
    if find_spec("tflite_micro") is None:
        return None, "tflite-micro is not installed"
    from tflite_micro.python.tflite_micro import runtime

    try:
        interpreter = runtime.Interpreter.from_bytes(content, arena_size=MICRO_ARENA_BYTES)
        same = 0
        for image, expected in zip(inputs, classes, strict=True):
            interpreter.set_input(image[None], 0)
            interpreter.invoke()
            same += int(interpreter.get_output(0).argmax() == expected)
    except Exception as error:  # an operator that it lacks
        return None, one_line(error, 200)
    with taken_from_the_screen() as printed:
        interpreter.print_allocations()
    told = re.search(r"allocation total (\d+) bytes", printed())
    assert told is not None, "the interpreter prints its arena"
    return Micro(len(inputs), same, int(told.group(1))), ""


def _normalized(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return uint8 B×C×H×W as float32 B×H×W×C, normalized."""
    pixels = images.permute(0, 2, 3, 1).float() / 255
    return ((pixels - torch.tensor(mean)) / torch.tensor(std)).contiguous()


def _convert(model: nn.Module, images: Tensor) -> bytes:
    """Return an int8 file for images B×H×W×C, as the converter and the quantizer write it."""
    with scratch_folder() as folder, quiet(), taken_from_the_screen():
        import litert_torch
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_quantizer import quantizer, recipe
        from ai_edge_quantizer.calibrator import Calibrator

        plain, small = (str(folder / f"{name}.tflite") for name in ("plain", "int8"))
        program = torch.export.export(model, (images[:1].permute(0, 3, 1, 2),))
        last = litert_torch.to_channel_last_io(with_pooling(program.module()), args=[0])
        litert_torch.convert(last, (images[:1],)).export(plain)
        ((key, signature),) = Interpreter(plain).get_signature_list().items()
        (name,) = signature["inputs"]
        made = quantizer.Quantizer(plain, recipe.static_wi8_ai8())
        calibrator = Calibrator(plain, num_threads=1, qsv_update_func=_wider)
        samples = [{name: image[None].numpy()} for image in images]
        calibrator.calibrate({key: samples}, made._recipe_manager)
        seen = calibrator.get_model_qsvs()
        made.quantize(seen).export_model(small)
        return (folder / "int8.tflite").read_bytes()


def _wider(before: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
    """Return the range of all images; the quantizer's own is a moving average of their ranges."""
    if not before:
        return here
    return {
        "min": np.minimum(before["min"], here["min"]),
        "max": np.maximum(before["max"], here["max"]),
    }


def _with_weights_inside(content: bytes) -> bytes:
    """Move what stands behind a file's tables into them."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    for buffer in model.buffers:
        if buffer.offset > 1:  # 0 and 1 mean that it stands inside
            outside = content[buffer.offset :][: buffer.size]
            buffer.data = np.frombuffer(outside, np.uint8)
            buffer.offset = buffer.size = 0
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _litert(content: bytes) -> tuple[Run, float, int]:
    """Return what runs a file in LiteRT, and scale and zero point of its input."""
    from ai_edge_litert.interpreter import Interpreter

    with quiet(), taken_from_the_screen():
        interpreter = Interpreter(model_content=content)
        interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(image: NDArray[np.int8]) -> NDArray[np.int8]:
        interpreter.set_tensor(given["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(result["index"])  # type: ignore[no-any-return]

    scale, zero_point = given["quantization"]
    return run, float(scale), int(zero_point)
