"""The C folder of a bundle: written, compiled on this machine, and held against the oracle."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halfmeg.errors import error_line, one_line
from halfmeg.files import scratch_folder
from halfmeg.shipping.answered import Answered
from halfmeg.shipping.c import write_c
from halfmeg.shipping.c_constants import c_name
from halfmeg.shipping.operations import Float32, UInt8
from halfmeg.shipping.proof import EqualLogits, proof_text
from halfmeg.shipping.render import render
from halfmeg.shipping.unfamiliar import Unfamiliar

WARNINGS = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")

NO_COMPILER = "no compiler"
NOTHING = (
    "#include <math.h>\n#include <stdint.h>\n#include <stdio.h>\nint main(void) { return 0; }\n"
)


@dataclass(frozen=True)
class CSource:
    """A network in C with what belongs to it.

    Attributes:
        name: prefix of its files and of all that they declare.
        files: contents by path, `/` between folders.
        arena_bytes, constant_bytes: of RAM and of flash.
        peak: the operation that sets the size of the arena.
        proof: None where there is no compiler that works, and then `proof_missing` says so.
    """

    name: str
    files: dict[str, bytes]
    arena_bytes: int
    constant_bytes: int
    peak: str
    proof: EqualLogits | None
    proof_missing: str = ""

    @property
    def proof_text(self) -> str:
        """What was proved, in a line."""
        return proof_text(self.proof, self.proof_missing)

    def to_dict(self) -> dict[str, Any]:
        """Return what a bundle states, as JSON types."""
        return {
            "name": self.name,
            "arena_bytes": self.arena_bytes,
            "constant_bytes": self.constant_bytes,
            "peak": self.peak,
            "proof": self.proof and self.proof.to_dict("compiler"),
        }


def build_c(network: Answered) -> CSource:
    """Return a network in C, compiled and run on images before it is handed out.

    Raises:
        ValueError: a compiler that does not take the file, logits that are not equal, or another
            score.
    """
    graph, identifier = network.graph, c_name(network.name)
    sources = write_c(graph, identifier, network.classes, network.temperature)
    unfamiliar = network.unfamiliar
    facts: dict[str, Any] = {
        "name": identifier, "macro": identifier.upper(), "image": graph.image,
        "unfamiliar": unfamiliar and unfamiliar.for_c(),
    }  # fmt: skip
    if unfamiliar is not None:
        for ending in ("c", "h"):
            sources[f"{identifier}_unfamiliar.{ending}"] = render(f"c/unfamiliar.{ending}", **facts)
    main = render("c/main.c", **facts)
    proof, missing = prove(sources, main, identifier, network.images, network.logits, unfamiliar)
    plan = graph.plan
    peak = graph.operations[int(np.argmax(plan.live_bytes))].name
    facts |= {
        "arena_bytes": plan.arena_bytes,
        "constant_bytes": graph.constant_bytes,
        "peak": peak,
        "proof": f"On this network's images: {proof_text(proof, missing)}.",
    }
    texts = {f"src/{file}": text for file, text in sources.items()} | {"main.c": main}
    for path in (
        "Makefile", "CMakeLists.txt", "library.properties", "library.json", "README.md",
        "zephyr/module.yml", "examples/classify/classify.ino",
    ):  # fmt: skip
        texts[path] = render(f"c/{Path(path).name}", **facts)
    files = {path: text.encode() for path, text in texts.items()}
    return CSource(identifier, files, plan.arena_bytes, graph.constant_bytes, peak, proof, missing)


def prove(
    network: dict[str, str], main: str, name: str, images: UInt8, logits: Float32,
    unfamiliar: Unfamiliar | None = None,
) -> tuple[EqualLogits | None, str]:  # fmt: skip
    """Compile a network with gcc and run it on images; return why not where gcc cannot compile.

    Under gcc's sanitizers, where their runtimes are installed.

    Raises:
        ValueError: gcc does not take it, a sanitizer stops it, or a logit or a score is another.
    """
    compiler = shutil.which("gcc")
    if compiler is None:
        return None, NO_COMPILER
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    with scratch_folder() as folder:
        if reason := _refuses_nothing(compiler, folder):
            return None, f"gcc cannot compile here: {reason}"
        sanitizers = SANITIZERS if _sanitizes(compiler, folder, environment) else ()
        for file, text in (*network.items(), ("main.c", main)):
            (folder / file).write_text(text)
        command = [compiler, *WARNINGS, "-O2", *sanitizers, "-o", "proof"]
        command += [file for file in (*network, "main.c") if file.endswith(".c")]
        command += ["-lm"] if unfamiliar else []
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"gcc does not compile {name}.c: {error_line(done.stderr)}")
        pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).tobytes()
        ran = subprocess.run(
            [str(folder / "proof")], input=pixels, capture_output=True, env=environment,
            check=False,
        )  # fmt: skip
        if ran.returncode:
            reason = error_line(ran.stderr.decode(errors="replace"))
            raise ValueError(f"{name}.c stops on this machine: {reason}")
    printed = ran.stdout.decode()
    found = read_logits(printed, logits.shape[1])
    different = int((found != logits).sum()) if found.shape == logits.shape else logits.size
    if different:
        raise ValueError(f"{name}.c gives {different:,} of {logits.size:,} logits differently")
    if unfamiliar is not None:
        scores = [float(line.split("\t")[2]) for line in printed.splitlines()]
        unfamiliar.check(scores, f"{name}_unfamiliar.c")
    conditions = (
        "under address and undefined-behaviour sanitizers" if sanitizers
        else "without sanitizers, which this gcc lacks"
    )  # fmt: skip
    return EqualLogits(len(images), logits.size, conditions, f"gcc {_version(compiler)}"), ""


def _version(compiler: str) -> str:
    """Return gcc's version, or what it calls itself: under its name there may be clang."""
    for option in ("-dumpfullversion", "--version"):
        asked = subprocess.run([compiler, option], capture_output=True, text=True, check=False)
        if told := asked.stdout.strip():
            return told.splitlines()[0]
    return "of no version"


def _refuses_nothing(compiler: str, folder: Path, *options: str) -> str:
    """Return why gcc does not compile a program of nothing; empty where it does.

    It may be a Mac's, that only says what to install, or lack the headers of C's library.
    """
    (folder / "nothing.c").write_text(NOTHING)
    command = [compiler, *options, "-o", "nothing", "nothing.c"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:  # it is of another machine
        return error.strerror or one_line(error)
    return error_line(done.stderr) if done.returncode else ""


def _sanitizes(compiler: str, folder: Path, environment: dict[str, str]) -> bool:
    """Return whether a program of nothing compiles and runs with gcc's sanitizers.

    Some distributions have their runtimes in packages of their own.
    """
    if _refuses_nothing(compiler, folder, *SANITIZERS):
        return False
    ran = subprocess.run([folder / "nothing"], env=environment, capture_output=True, check=False)
    return ran.returncode == 0


def read_logits(output: str, num_classes: int) -> Float32:
    """Return logits B×K as main.c prints them: the last columns of each line."""
    rows = [line.split("\t")[-num_classes:] for line in output.splitlines()]
    return np.array(rows, np.float64).reshape(-1, num_classes).astype(np.float32)
