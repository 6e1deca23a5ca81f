"""The integers as one page: the C as WebAssembly, inside an HTML file that asks nobody anything.

The page is held against the oracle before it is handed out, with SIMD and without.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from halfmeg.errors import error_line
from halfmeg.files import scratch_folder
from halfmeg.shipping.answered import Answered
from halfmeg.shipping.c import write_c
from halfmeg.shipping.c_constants import c_name
from halfmeg.shipping.demo import draw_examples
from halfmeg.shipping.integer import IntegerGraph
from halfmeg.shipping.operations import Float32, UInt8
from halfmeg.shipping.proof import EqualLogits, proof_text
from halfmeg.shipping.render import render
from halfmeg.shipping.unfamiliar import Unfamiliar

COMPILE = (
    "clang", "--target=wasm32", "-std=c99", "-O3", "-ffp-contract=off", "-ffreestanding",
    "-fno-builtin", "-nostdlib", "-Wl,--no-entry,--strip-all,--no-gc-sections,-z,stack-size=65536",
)  # fmt: skip
"""Free of built-ins, since a loop that becomes a call of memset would have nothing to call. No
constant is thrown away, so that both builds have the same data."""

BUILDS = {"simd": ("-msimd128",), "plain": ()}

DATA_SECTION = 11

OLDEST_NODE = (16, 4)
"""Older ones do not read SIMD's instructions."""

SCRIPTS = ("resize.js", "network.js", "unfamiliar.js", "page.js")

ICON_SIZES = (192, 512)


@dataclass(frozen=True)
class WebPage:
    """A network as a page, with what makes it installable where a server offers it.

    Attributes:
        files: contents by name; `index.html` needs none of the others.
        proof: None where there is no node, or an old one, and then `proof_missing` says so.
    """

    files: dict[str, bytes]
    proof: EqualLogits | None
    proof_missing: str = ""

    @property
    def proof_text(self) -> str:
        """What was proved, in a line."""
        return proof_text(self.proof, self.proof_missing)

    def to_dict(self) -> dict[str, Any]:
        """Return what a bundle states, as JSON types."""
        return {
            "page_bytes": len(self.files["index.html"]),
            "proof": self.proof and self.proof.to_dict("runtime"),
        }


def require_compiler() -> None:
    """Check for what compiles C to WebAssembly.

    Raises:
        ValueError: it is missing; the message says what to install.
    """
    for program in ("clang", "wasm-ld"):
        if shutil.which(program) is None:
            raise ValueError(
                f"--target web needs {program}, which is not installed: on Debian or Ubuntu "
                "`apt-get install clang lld`, on a Mac `brew install llvm lld`, "
                'then `export PATH="$(brew --prefix llvm)/bin:$PATH"`'
            )


def build_web(network: Answered, facts: dict[str, Any]) -> WebPage:
    """Return a network as a page, run on images before it is handed out.

    Args:
        network: with its answers.
        facts: what the page states: `params`, `accuracy`, `preprocessing` and `proof` as in
            model.json.

    Raises:
        ValueError: no compiler, one that does not take the file, logits that are not equal, or
            another score.
    """
    graph, name, classes = network.graph, network.name, network.classes
    unfamiliar = network.unfamiliar
    parts = compile_builds(graph, name, classes)
    proof, missing = prove(parts, network.images, network.logits, unfamiliar)
    data = {"simd": base85(parts["simd"][1])}
    if parts["plain"][1] != parts["simd"][1]:  # else the weights stand in the page once
        data["plain"] = base85(parts["plain"][1])
    stored = {
        "classes": list(classes),
        "channels": graph.image[0],
        "height": graph.image[1],
        "width": graph.image[2],
        "fit": facts["preprocessing"]["fit"],
        "temperature": network.temperature,
        "familiarity": unfamiliar and unfamiliar.for_page(),
        "data": data,
        "code": {build: base85(code) for build, (code, _) in parts.items()},
        "examples": _examples(classes),
    }
    style, script = _read("page.css"), "".join(map(_read, SCRIPTS))
    page = render(
        "web/page.html",
        name=name,
        facts=facts,
        classes=classes,
        unfamiliar=unfamiliar,
        style=style,
        style_hash=_content_hash(style),
        script=script,
        script_hash=_content_hash(script),
        icon=_text(draw_icon(64)),
        # A text in a script element ends at any `</script`, also inside quotation marks.
        network=json.dumps(stored).replace("<", "\\u003c"),
    ).encode()
    contents = {"index.html": page}
    contents |= {f"icon_{size}.png": draw_icon(size) for size in ICON_SIZES}
    manifest = {
        "name": f"{name}: an image classifier",
        "short_name": name,
        "start_url": "./",
        "display": "standalone",
        "background_color": "#f6f4ef",
        "theme_color": "#f6f4ef",
        "icons": [
            {"src": f"icon_{size}.png", "sizes": f"{size}x{size}", "type": "image/png"}
            for size in ICON_SIZES
        ],
    }
    contents["manifest.webmanifest"] = json.dumps(manifest, indent=1).encode()
    version = hashlib.sha256(page).hexdigest()[:16]
    kept = json.dumps(["./", *(file for file in contents if file != "index.html")])
    contents["worker.js"] = render("web/worker.js", version=version, kept=kept).encode()
    return WebPage(contents, proof, missing)


def compile_builds(
    graph: IntegerGraph, name: str, classes: Sequence[str]
) -> dict[str, tuple[bytes, bytes]]:
    """Return a network's WebAssembly for each of `BUILDS`, in two parts: code and weights.

    Raises:
        ValueError: no compiler, or one that does not take the file.
    """
    require_compiler()
    identifier = c_name(name)
    sources = write_c(graph, identifier, classes)
    sources["entry.c"] = render("web/entry.c", name=identifier, macro=identifier.upper())
    return {build: _split(_compile(sources, build)) for build in BUILDS}


def prove(
    parts: dict[str, tuple[bytes, bytes]], images: UInt8, logits: Float32,
    unfamiliar: Unfamiliar | None = None,
) -> tuple[EqualLogits | None, str]:  # fmt: skip
    """Run both builds on images with the page's own code; return why not where that cannot be.

    Args:
        parts: code and weights of each build.
        images: uint8 B×C×H×W.
        logits: float32 B×K, what must come out.
        unfamiliar: the scores that must come out.

    Raises:
        ValueError: a build does not run, or a logit or a score is another.
    """
    node = shutil.which("node") or shutil.which("nodejs")
    if node is None:
        return None, "no node"
    told = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    version = re.match(r"v((\d+)\.(\d+)\S*)", told.stdout)
    if version is None:
        return None, "node names no version"
    if (int(version[2]), int(version[3])) < OLDEST_NODE:
        return None, f"node {version[1]} is older than {'.'.join(map(str, OLDEST_NODE))}"
    texts = {
        build: {"code": base85(code), "data": base85(data)} for build, (code, data) in parts.items()
    }
    with scratch_folder() as folder:
        script, given, pixels, found_path, scores_path = (
            folder / file for file in ("prove.js", "given.json", "pixels", "logits", "scores")
        )
        script.write_text("".join(map(_read, ("network.js", "unfamiliar.js", "prove.js"))))
        channels, height, width = images.shape[1:]
        shape = {"channels": channels, "height": height, "width": width}
        known = unfamiliar and unfamiliar.for_page()
        given.write_text(json.dumps({"builds": texts, "shape": shape, "familiarity": known}))
        pixels.write_bytes(np.ascontiguousarray(images.transpose(0, 2, 3, 1)).tobytes())
        paths = (script, given, pixels, found_path, scores_path)
        command = [node, *map(str, (*paths, logits.shape[1]))]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise ValueError(f"node does not run the page's network: {error_line(ran.stderr)}")
        found = np.fromfile(found_path, np.float32).reshape(len(BUILDS), *logits.shape)
        if unfamiliar is not None:
            unfamiliar.check(np.fromfile(scores_path, np.float64), "unfamiliar.js")
    for build, of_build in zip(BUILDS, found, strict=True):
        if different := int((of_build != logits).sum()):
            raise ValueError(
                f"WebAssembly ({build}) gives {different:,} of {logits.size:,} logits differently"
            )
    proof = EqualLogits(len(images), logits.size, "with SIMD and without", f"node {version[1]}")
    return proof, ""


def _compile(sources: dict[str, str], build: str) -> bytes:
    with scratch_folder() as folder:
        for file, text in sources.items():
            (folder / file).write_text(text)
        inputs = [file for file in sources if file.endswith(".c")]
        command = [*COMPILE, *BUILDS[build], "-o", "network.wasm", *inputs]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = error_line(done.stderr)
            raise ValueError(f"clang does not compile the network to WebAssembly: {reason}")
        return (folder / "network.wasm").read_bytes()


def _split(module: bytes) -> tuple[bytes, bytes]:
    """Return a module's bytes before its data section, and from there on.

    A module is eight bytes, then sections: a number, a length in LEB128, the content
    (https://webassembly.github.io/spec/core/binary/modules.html).
    """
    place = 8
    while place < len(module):
        start, kind = place, module[place]
        length = shift = 0
        more = True
        while more:
            place += 1
            length |= (module[place] & 127) << shift
            shift += 7
            more = module[place] > 127
        if kind == DATA_SECTION:
            return module[:start], module[start:]
        place += 1 + length
    raise AssertionError("a network has weights")


def _examples(classes: Sequence[str]) -> list[str]:
    """Return a few drawn images to try, PNG as base64; there may be none."""
    with scratch_folder() as folder:
        return [_text(path.read_bytes()) for path in draw_examples(classes, folder)]


def draw_icon(size: int) -> bytes:
    """Return the icon, three bars of an answer, as PNG."""
    icon = Image.new("RGB", (512, 512), "#0f5e5c")
    draw = ImageDraw.Draw(icon)
    for top, width, colour in ((120, 296, "#f6f4ef"), (226, 180, "#8fc1b5"), (332, 96, "#4d918a")):
        draw.rounded_rectangle((108, top, 108 + width, top + 60), 30, fill=colour)
    buffer = io.BytesIO()
    icon.resize((size, size), Image.Resampling.LANCZOS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _read(name: str) -> str:
    return files("halfmeg.shipping").joinpath("templates", "web", name).read_text("utf-8")


def base85(content: bytes) -> str:
    """Return bytes as text, a quarter longer (base64: a third); `network.js` reads it.

    The digits are those of RFC 1924, but a comma for `<`, which a page would need six signs for.
    """
    return base64.b85encode(content).replace(b"<", b",").decode()


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _content_hash(text: str) -> str:
    """Return what a Content-Security-Policy allows an inline text by."""
    return f"sha256-{_text(hashlib.sha256(text.encode()).digest())}"
