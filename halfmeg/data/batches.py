"""The Python form of CIFAR-10 and CIFAR-100: pickles of plain values and of arrays of bytes.

They are read by a reader of its own, which makes and runs nothing that a pickle names.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, ClassVar

import numpy as np

PIXEL_BYTES = 3 * 32 * 32


def read_batch(content: bytes, name: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a batch in the Python form of CIFAR-10 or CIFAR-100; nothing it names is run.

    Args:
        content: of the file.
        name: what to call it.
        key: of the labels in it.

    Returns:
        uint8 pixels B×3072, channel by channel, and uint8 labels B.

    Raises:
        ValueError: it is damaged, or something else.
    """
    try:
        batch = _load_pickle(content)
        labels = np.frombuffer(bytes(batch[key.encode()]), np.uint8)  # numbers from 0 to 255 only
        if type(batch[b"data"]) is not _Array:
            raise ValueError("its data is no array")
        return batch[b"data"].pixels(len(labels)), labels
    except Exception as error:  # what a damaged pickle raises depends on where the damage is
        raise ValueError(f"{name} is damaged or no batch of CIFAR: {error}") from None


def read_names(content: bytes, name: str, key: str) -> list[str]:
    """Read the names of classes in the Python form, as `read_batch` reads a batch."""
    try:
        return [text.decode() for text in _load_pickle(content)[key.encode()]]
    except Exception as error:  # as above
        raise ValueError(f"{name} is damaged or has no names of CIFAR: {error}") from None


def _load_pickle(content: bytes) -> Any:
    return _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()


class _Array:
    """Stands in for numpy's array in a pickle: takes the raw bytes, and makes nothing of them.

    numpy's own constructors follow pointers that a crafted pickle gives them.
    """

    content: object = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("the state of its array is no array's")
        _, _, dtype, is_fortran, self.content = state
        if not isinstance(dtype, _Dtype) or dtype.name != "u1" or is_fortran:
            raise ValueError("its array holds something else than rows of bytes")

    def pixels(self, count: int) -> np.ndarray:
        """Return uint8 `count`×3072."""
        if not isinstance(self.content, bytes) or len(self.content) != count * PIXEL_BYTES:
            raise ValueError(f"its array does not hold {count} images")
        return np.frombuffer(self.content, np.uint8).reshape(count, PIXEL_BYTES)


class _Dtype:
    """Stands in for numpy's dtype; knows its name only."""

    def __init__(self, name: object, *options: object) -> None:
        self.name = name.decode("ascii") if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:
        """Byte order and fields mean nothing to single bytes."""


def _reconstruct(kind: object, *arguments: object) -> _Array:
    if kind is not _Array:
        raise ValueError("it reconstructs something else than an array")
    return _Array()


class _BatchUnpickler(pickle._Unpickler):
    """Admits the three names that the official batches use, each by its stand-in.

    It is Python's own in Python: the one in C can be asked for gigabytes by a few bytes.
    """

    STAND_INS: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.STAND_INS:
            raise ValueError(f"it asks for {module}.{name}, which is not admitted")
        return self.STAND_INS[module, name]
