"""A network in C on an emulated Cortex-M: the same logits, and how many instructions they take."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta

from halfmeg.artifacts.bundle import SHIPPED, Bundle
from halfmeg.artifacts.graph import onnx_logits
from halfmeg.errors import error_line, quoted
from halfmeg.files import check_json, read_limited, scratch_folder
from halfmeg.shipping.operations import Float32, UInt8
from halfmeg.shipping.render import render
from halfmeg.shipping.verify import verify_onnx

COMPILER = "arm-none-eabi-gcc"
EMULATOR = "qemu-system-arm"
FLAGS = (
    "-std=c99", "-O2", "-mthumb", "-ffp-contract=off", "-ffunction-sections", "-fdata-sections",
)  # fmt: skip
TIMEOUT_S = 3600
LAST_WORD = "finished"
MAX_SENT_BYTES = 64 * 2**20
NUM_IMAGES = 2
"""Drawn images that a device is asked about; an emulated one takes seconds for each."""


@dataclass(frozen=True)
class Device:
    """A board that QEMU emulates.

    Attributes:
        machine: QEMU's name of it.
        flags: of the compiler, for its processor.
        timer_hz: clock of its timer, in the emulator.
        uart: address of its first serial port.
        vectors, code, ram, code_length, ram_length: addresses and sizes of its memory.
        clock_mhz: a usual clock of such a processor, for an estimate of time.
    """

    machine: str
    flags: tuple[str, ...]
    timer_hz: int
    clock_mhz: int
    uart: str = "0x40004000"
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
        160, "0x50200000", "0x10000000", "0x10000400", "0x3FF000", "0x38000000", "0x100000",
    ),
    "cortex-m55": Device(
        "mps3-an547", ("-mcpu=cortex-m55", "-mfloat-abi=hard"), 32_000_000,
        400, "0x59303000", "0x00000000", "0x11000000", "0x200000", "0x31000000", "0x100000",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class DeviceRun:
    """What a network did on an emulated device.

    Attributes:
        device: a key of `DEVICES`.
        logits: float32 B×K.
        instructions: of each image.
        flash_bytes: code and constants of the network, as compiled; without the compiler's own
            routines, which multiply floats where a chip has no unit for them.
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


def _check_known(device: str) -> None:
    if device not in DEVICES:
        raise ValueError(f"device={device!r} is not known; allowed: {', '.join(DEVICES)}")


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
    _check_known(device)
    if missing := missing_tool():
        raise ValueError(missing)
    board = DEVICES[device]
    with scratch_folder() as where:
        macro = name.upper()
        facts = {"name": name, "macro": macro, "device": board, "last_word": LAST_WORD}
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
                "-serial", "file:sent.bin", "-nic", "none", "-icount", "shift=0", "-no-reboot",
                "-kernel", "board.elf",
            ],
            where,
        )  # fmt: skip
        logits, ticks = _parse(read_limited(where / "sent.bin", MAX_SENT_BYTES), len(images))
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


@dataclass(frozen=True)
class _StoredC:
    """What is read of model.json's `c`; more stands there."""

    name: Annotated[str, Meta(pattern="^[A-Za-z_][A-Za-z0-9_]*$")]


def _parse(sent: bytes, num_images: int) -> tuple[Float32, list[int]]:
    """Return logits B×K and timer ticks B of what a board has sent.

    Raises:
        ValueError: it stopped before it had finished.
    """
    row, rest = divmod(len(sent) - len(LAST_WORD), num_images)
    if not sent.endswith(LAST_WORD.encode()) or rest or row < 12 or row % 4:
        raise ValueError(f"{EMULATOR}: the board stopped before it had finished")
    words = np.frombuffer(sent[: -len(LAST_WORD)], "<u4").reshape(num_images, -1)
    ticks = words[:, -2:].copy().view("<u8")
    return words[:, :-2].copy().view(np.float32), ticks.ravel().tolist()


def bench_device(bundle: Bundle, device: str) -> DeviceRun:
    """Run a bundle's C on a device, on random images, and hold it against its int8 ONNX file.

    Raises:
        ValueError: as `run_on`; a bundle without C, or logits that are not equal.
    """
    _check_known(device)
    if "c" not in bundle.described:
        raise ValueError(f"{bundle.folder} holds no C; {_how_to_get_c(bundle)}")
    try:
        name = check_json(bundle.described["c"], _StoredC).name
    except ValueError as error:
        raise ValueError(f"{bundle.folder / 'model.json'} is damaged: {error}") from None
    source, header = (_text(bundle, f"c/src/{name}.{kind}") for kind in "ch")
    size = (NUM_IMAGES, *bundle.image_shape)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator())
    found = run_on(device, source, header, name, images.numpy())
    if find_spec("onnxruntime") is None:
        return found
    content = verify_onnx(bundle, "model.int8.onnx", compare=False)
    expected = onnx_logits(content, images).numpy()
    different = int((found.logits != expected).sum())
    if different:
        raise ValueError(f"{different} of {expected.size} logits on {device} are not onnxruntime's")
    return replace(
        found,
        checked=f"all {expected.size} of {NUM_IMAGES} random images equal to onnxruntime's int8",
    )


def _how_to_get_c(bundle: Bundle) -> str:
    if bundle.is_own:  # whose Python only its run has
        return "export its run with --target c"
    name = next((n for n, path in SHIPPED.items() if path == bundle.folder), bundle.folder)
    command = f"halfmeg export {quoted(name)} --data DATA --out NEW --target c"
    return f"export it anew, DATA being what it was trained on: `{command}`"


def _text(bundle: Bundle, name: str) -> str:
    if not bundle.has(name):
        raise ValueError(f"{bundle.folder} has no {name}")
    return bundle.read_file(name).decode(errors="replace")


def _bound_files() -> None:
    """Let a process write no file larger than what a board may send."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_SENT_BYTES, MAX_SENT_BYTES))


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL, preexec_fn=_bound_files if os.name == "posix" else None,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ValueError(f"{command[0]} has not finished after {TIMEOUT_S} s") from None
    if done.returncode:
        told = done.stderr.strip()
        reason = error_line(told) if told else f"exit code {done.returncode}"
        raise ValueError(f"{command[0]} fails: {reason}")
    return done.stdout
