"""Arrays and structures of numbers, texts and names as C."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfmeg.places.place import shortened

Fields = dict[str, str | int | np.float32]
"""Of a structure; texts are C expressions."""

C_TYPES = {
    "int8": "int8_t",
    "uint8": "uint8_t",
    "int16": "int16_t",
    "uint16": "uint16_t",
    "int32": "int32_t",
    "float32": "float",
}

TAKEN = {
    # files and folders beside it
    "main", "entry", "proof", "src", "examples", "zephyr",
    # targets of make and CMake
    "all", "clean", "classify", "edit_cache", "help", "install", "package", "rebuild_cache", "test",
    # headers, whose place NAME.h would take
    "assert", "complex", "ctype", "errno", "fenv", "float", "inttypes", "iso646", "limits",
    "locale", "math", "setjmp", "signal", "stdalign", "stdarg", "stdatomic", "stdbool", "stddef",
    "stdint", "stdio", "stdlib", "stdnoreturn", "string", "strings", "tgmath", "threads", "time",
    "uchar", "wchar", "wctype", "arduino", "arm_mve", "wasm_simd128",
}  # fmt: skip
"""Names that the files and the targets of a build have already."""


def c_name(name: str) -> str:
    """Return a network's name as an identifier of C, which nothing beside it is called by.

    The end of a long one is a hash of it, since files are called by it too.
    """
    found = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
    is_free = found and not found[0].isdigit() and found not in TAKEN
    return shortened(found if is_free else f"net_{found}", "_")


class Constants:
    """Collects arrays; what has the same key stands in the text once."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._texts: list[str] = []
        self._keys: dict[str, str] = {}

    def add(self, name: str, array: NDArray[Any], key: str | None = None) -> str:
        """Add an array and return its name in C."""
        if key is not None and key in self._keys:
            return self._keys[key]
        self._keys[key or name] = name
        self.names.append(name)
        flat = array.ravel()
        kind = C_TYPES[flat.dtype.name]
        numbers = ", ".join(map(number, flat.tolist() if flat.dtype != np.float32 else flat))
        body = textwrap.fill(numbers, 99, initial_indent="    ", subsequent_indent="    ")
        aligned = " ALIGNED KEPT" if kind == "int8_t" else " KEPT"
        self._texts.append(f"static const {kind} {name}[{flat.size}]{aligned} = {{\n{body}\n}};\n")
        return name

    def text(self) -> str:
        """Return all definitions."""
        return "\n".join(self._texts)


def number(value: Any) -> str:
    """Return a number as C text; float32 in hexadecimal, which every compiler reads exactly."""
    return f"{float(value).hex()}f" if isinstance(value, np.float32) else str(int(value))


def structure(kind: str, name: str, fields: Fields) -> str:
    """Return the definition of a constant structure."""
    parts = (
        f".{key} = {value if isinstance(value, str) else number(value)}"
        for key, value in fields.items()
    )
    body = textwrap.fill(", ".join(parts), 99, initial_indent="    ", subsequent_indent="    ")
    return f"static const struct {kind} {name} = {{\n{body}\n}};\n"


def quoted(text: str) -> str:
    """Return a text as a string of C, in ASCII and on one line."""
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}"
        for byte in " ".join(text.split()).encode()
    )
    return f'"{escaped}"'
