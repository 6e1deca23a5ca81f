"""A file of CIFAR-10 or CIFAR-100, in the binary form or in the Python form.

Those of the Python form are pickles of plain values and of arrays of bytes. They are read by a
reader of its own, which makes and runs nothing that a pickle names, and takes memory in proportion
to the file.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

PIXEL_BYTES = 3 * 32 * 32

MAX_OPERATIONS = 1_000_000
"""CIFAR-100's training part has some 200,000: a byte may be one, and leave an object of 60 bytes
and a place in the memo of 50."""

_OPERATIONS = (
    pickle.PROTO, pickle.FRAME, pickle.MARK, pickle.STOP,
    pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2,
    pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES,
    pickle.BINUNICODE, pickle.SHORT_BINUNICODE,
    pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
    pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS,
    pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS,
    pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET,
    pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BUILD,
)  # fmt: skip
"""What a batch is written with since protocol 2."""


def read_records(content: bytes, name: str, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read a file in the binary form of CIFAR-10 or CIFAR-100.

    Args:
        content: of the file.
        name: what to call it.
        label_bytes: in front of an image's pixels; the last of them is the label.

    Returns:
        uint8 pixels B×3072, channel by channel, and uint8 labels B.

    Raises:
        ValueError: it is empty, or ends within an image.
    """
    size = label_bytes + PIXEL_BYTES
    if not content or len(content) % size:
        raise ValueError(
            f"{name} is damaged: {len(content)} bytes are no whole number of {size}-byte records"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return records[:, label_bytes:], records[:, label_bytes - 1]


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
        texts = _load_pickle(content)[key.encode()]
        if sum(map(len, texts)) > len(content):  # one long text, named again and again
            raise ValueError("its names are longer than the file")
        return [text.decode() for text in texts]
    except Exception as error:  # as above
        raise ValueError(f"{name} is damaged or has no names of CIFAR: {error}") from None


def _load_pickle(content: bytes) -> Any:
    return _BatchUnpickler(content).load()


class _Array:
    """Stands in for numpy's array in a pickle: takes the raw bytes, and makes nothing of them.

    numpy's own constructors follow pointers that a crafted pickle gives them.
    """

    content: object = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("the state of its array is no array's")
        _, _, dtype, is_fortran, self.content = state
        if not isinstance(dtype, _Dtype) or not dtype.is_byte or is_fortran:
            raise ValueError("its array holds something else than rows of bytes")

    def pixels(self, count: int) -> np.ndarray:
        """Return uint8 `count`×3072."""
        if not isinstance(self.content, bytes) or len(self.content) != count * PIXEL_BYTES:
            raise ValueError(f"its array does not hold {count} images")
        return np.frombuffer(self.content, np.uint8).reshape(count, PIXEL_BYTES)


class _Dtype:
    """Stands in for numpy's dtype; knows only whether it is that of single bytes."""

    def __init__(self, name: object, *options: object) -> None:
        self.is_byte = name in (b"u1", "u1")

    def __setstate__(self, state: object) -> None:
        """Byte order and fields mean nothing to single bytes."""


def _reconstruct(kind: object, *arguments: object) -> _Array:
    if kind is not _Array:
        raise ValueError("it reconstructs something else than an array")
    return _Array()


class _Operations(dict[int, Callable[..., None]]):
    """What a pickle may do, `MAX_OPERATIONS` times in all."""

    def __init__(self, reader: type[pickle._Unpickler]) -> None:
        inherited = pickle._Unpickler.dispatch
        super().__init__(
            {code[0]: getattr(reader, inherited[code[0]].__name__) for code in _OPERATIONS}
        )
        self.left = MAX_OPERATIONS

    def __getitem__(self, code: int) -> Callable[..., None]:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"it has more than {MAX_OPERATIONS:,} operations")
        return super().__getitem__(code)

    def __missing__(self, code: int) -> Callable[..., None]:
        raise ValueError(f"it has an operation {bytes([code])!r}, which is not admitted")


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

    stack: list[Any]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.dispatch = _Operations(type(self))  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.STAND_INS:
            raise ValueError(f"it asks for {f'{module}.{name}'[:80]}, which is not admitted")
        return self.STAND_INS[module, name]

    def load_reduce(self) -> None:
        if type(self.stack[-1]) is not tuple:  # each byte of a string would be an argument
            raise ValueError("it calls with something else than a tuple")
        super().load_reduce()  # type: ignore[misc]

    def load_setitem(self) -> None:
        self._require_texts(self.stack[-2:-1])
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        self._require_texts(self.stack[::2])
        super().load_setitems()  # type: ignore[misc]

    def _require_texts(self, keys: list[object]) -> None:
        """Raise where a key is no text: the hash of tuples in tuples may take for ever."""
        if not all(isinstance(key, bytes | str) for key in keys):
            raise ValueError("it has a key that is no text")
