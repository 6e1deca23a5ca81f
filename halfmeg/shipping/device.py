"""A network in C on an emulated Cortex-M: the same logits, and how many instructions they take."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halfmeg.artifacts.bundle import Bundle
from halfmeg.artifacts.graph import onnx_logits
from halfmeg.files import scratch_folder
from halfmeg.shipping.operations import Float32, UInt8
from halfmeg.shipping.render import render

COMPILER = "arm-none-eabi-gcc"
EMULATOR = "qemu-system-arm"
FLAGS = (
    "-std=c99", "-O2", "-mthumb", "-ffp-contract=off", "-ffunction-sections", "-fdata-sections",
)  # fmt: skip
TIMEOUT_S = 3600


@dataclass(frozen=True)
class Device:
    """A board that QEMU emulates.

    Attributes:
        machine: QEMU's name of it.
        flags: of the compiler, for its processor.
        timer_hz: clock of its timer, in the emulator.
        vectors, code, ram, code_length, ram_length: addresses and sizes of its memory.
        clock_mhz: a usual clock of such a processor, for an estimate of time.
    """

    machine: str
    flags: tuple[str, ...]
    timer_hz: int
    clock_mhz: int
    vectors: str = "0x00000000"
    code: str = "0x00000400"
    code_length: str = "0x3FF000"
    ram: str = "0x20000000"
    ram_length: str = "0x100000"


DEVICES = {
    "cortex-m3": Device("mps2-an385", ("-mcpu=cortex-m3",), 25_000_000, 72),
    "cortex-m4": Device(
        "mps2-an386", ("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"), 25_000_000, 168
    ),
    "cortex-m7": Device(
        "mps2-an500", ("-mcpu=cortex-m7", "-mfpu=fpv5-sp-d16", "-mfloat-abi=hard"), 25_000_000, 480
    ),
    "cortex-m33": Device(
        "mps2-an505", ("-mcpu=cortex-m33", "-mfpu=fpv5-sp-d16", "-mfloat-abi=hard"), 20_000_000,
        160, "0x10000000", "0x10000400", "0x3FF000", "0x38000000", "0x100000",
    ),
    "cortex-m55": Device(
        "mps3-an547", ("-mcpu=cortex-m55", "-mfloat-abi=hard"), 32_000_000,
        400, "0x00000000", "0x11000000", "0x200000", "0x31000000", "0x100000",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class DeviceRun:
    """What a network did on an emulated device.

    Attributes:
        device: a key of `DEVICES`.
        logits: float32 B×K.
        instructions: of each image.
        flash_bytes: code and constants of the network, as compiled.
        ram_bytes: its static memory.
        stack_bytes: it takes no more: the frames of all functions together.
        compiler: its name and version.
        checked: against what the logits were held, in words.
    """

    device: str
    logits: Float32
    instructions: tuple[int, ...]
    flash_bytes: int
    ram_bytes: int
    stack_bytes: int
    compiler: str
    checked: str = "not held against others"

    @property
    def mean_instructions(self) -> float:
        """Instructions an image."""
        return sum(self.instructions) / len(self.instructions)

    @property
    def machine(self) -> str:
        """QEMU's name of the board."""
        return DEVICES[self.device].machine

    @property
    def clock_mhz(self) -> int:
        """A usual clock of such a processor."""
        return DEVICES[self.device].clock_mhz

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return {
            "device": self.device,
            "machine": self.machine,
            "instructions": self.mean_instructions,
            "images": len(self.instructions),
            "flash_bytes": self.flash_bytes,
            "ram_bytes": self.ram_bytes,
            "stack_bytes": self.stack_bytes,
            "compiler": self.compiler,
            "logits": self.checked,
        }


def missing_tool() -> str | None:
    """Return what an emulated run needs and is not here, or None."""
    for tool, package in (
        (COMPILER, "gcc-arm-none-eabi libnewlib-arm-none-eabi"),
        (EMULATOR, "qemu-system-arm"),
    ):
        if shutil.which(tool) is None:
            return f"{tool} is missing: apt-get install {package}"
    return None


def run_on(device: str, source: str, header: str, name: str, images: UInt8) -> DeviceRun:
    """Compile a network for a device and run it there on images.

    Args:
        device: a key of `DEVICES`.
        source, header: texts of NAME.c and NAME.h.
        name: prefix of all that the header declares.
        images: uint8 B×C×H×W.

    Raises:
        ValueError: no such device, a tool is missing, or the board stops before it has finished.
    """
    if device not in DEVICES:
        raise ValueError(f"device={device!r} is not known; allowed: {', '.join(DEVICES)}")
    if missing := missing_tool():
        raise ValueError(missing)
    board = DEVICES[device]
    with scratch_folder() as where:
        facts = {"name": name, "macro": name.upper(), "device": board}
        (where / f"{name}.c").write_text(source)
        (where / f"{name}.h").write_text(header)
        (where / "board.c").write_text(render("device/board.c", **facts))
        (where / "board.ld").write_text(render("device/board.ld", **facts))
        pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        (where / "images.bin").write_bytes(pixels.tobytes())
        compiler = [COMPILER, *FLAGS, *board.flags]
        _run([*compiler, "-fstack-usage", "-c", f"{name}.c"], where)
        # -O1: a loop that sets memory must not become a call of memset, which it is
        _run([*compiler, "-O1", "-c", "board.c"], where)
        link = ["-nostdlib", "-T", "board.ld", "-Wl,--gc-sections", "-o", "board.elf"]
        _run([*compiler, f"{name}.o", "board.o", *link, "-lgcc"], where)
        _run(
            [
                EMULATOR, "-machine", board.machine, "-nographic", "-monitor", "none",
                "-serial", "none", "-icount", "shift=0", "-kernel", "board.elf",
                "-semihosting-config", "enable=on,target=native",
            ],
            where,
        )  # fmt: skip
        logits = np.fromfile(where / "logits.bin", np.float32).reshape(len(images), -1)
        ticks = np.fromfile(where / "ticks.bin", np.uint32)
        sizes = _run(["arm-none-eabi-size", f"{name}.o"], where).splitlines()[1].split()
        usage = (where / f"{name}.su").read_text().splitlines()
    text, data, bss = map(int, sizes[:3])
    # a nanosecond an instruction, by -icount
    instructions = tuple(int(count) * 1_000_000_000 // board.timer_hz for count in ticks)
    frames = {line.split("\t")[0].rsplit(":", 1)[1]: int(line.split("\t")[1]) for line in usage}
    frames.pop(f"{name}_probabilities", None)  # it is called by itself
    deepest = sum(frames.values())  # nothing calls itself
    version = _run([COMPILER, "-dumpfullversion"], Path.cwd()).strip()
    return DeviceRun(
        device, logits, instructions, text + data, data + bss, deepest, f"{COMPILER} {version}"
    )


def bench_device(bundle: Bundle, device: str, num_images: int = 2) -> DeviceRun:
    """Run a bundle's C on a device, on random images, and hold it against its int8 ONNX file.

    Raises:
        ValueError: as `run_on`; a bundle without C, or logits that are not equal.
    """
    if "c" not in bundle.described:
        raise ValueError(f"{bundle.folder} holds no C; export its run with --target c")
    name = str(bundle.described["c"]["name"])
    source, header = ((bundle.folder / "c" / "src" / f"{name}.{kind}").read_text() for kind in "ch")
    size = (num_images, *bundle.image_shape)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator())
    found = run_on(device, source, header, name, images.numpy())
    if find_spec("onnxruntime") is None:
        return found
    expected = onnx_logits((bundle.folder / "model.int8.onnx").read_bytes(), images).numpy()
    different = int((found.logits != expected).sum())
    if different:
        raise ValueError(f"{different} of {expected.size} logits on {device} are not onnxruntime's")
    return replace(
        found,
        checked=f"all {expected.size} of {num_images} random images equal to onnxruntime's int8",
    )


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ValueError(f"{command[0]} has not finished after {TIMEOUT_S} s") from None
    if done.returncode:
        lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
        raise ValueError(f"{command[0]} fails: {lines[0][:200]}")
    return done.stdout
