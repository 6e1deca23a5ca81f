"""Image files, in bytes or on disk, to one uint8 array.

Whatever a decoder raises is caught here, in one place, and every bound stands before decoding.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from halfmeg.data.formats import (
    HEIC_HINT,
    LARGE_PIXELS,
    LFS_HEAD,
    LFS_HINT,
    MAX_FILE_BYTES,
    MAX_PIXELS,
    MIN_SIDE,
    check_icons,
    check_ppm,
    check_wide_colour,
    has_more_frames,
    is_heic,
    max_pixels,
    read_formats,
    stored_bits,
)
from halfmeg.data.shape import RGB, ImageShape, ImageSize, image_shape
from halfmeg.errors import text_of

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

FitName = Literal["crop", "pad", "squash"]
FITS: tuple[FitName, ...] = get_args(FitName)
"""How an image of other proportions is brought to size: its centre, on black, or distorted."""

FRAMES = "hold several frames or pages, of which the first is read"

CHUNK = 32
"""Images of one task of the pool; between two of them Ctrl-C is heard."""

_TOLD = (OSError, ValueError, SyntaxError, RuntimeError)
"""Errors of decoders whose text says what is wrong; of others the kind is told too."""

_one_large_image = threading.Lock()


def _large_alone(num_pixels: int) -> contextlib.AbstractContextManager[object]:
    """Return what to decode an image within, so that there is one large one at a time."""
    return _one_large_image if num_pixels > LARGE_PIXELS else contextlib.nullcontext()


@dataclass(frozen=True)
class EncodedImage:
    """An image before it is decoded: where it comes from, and its bytes or its file.

    Attributes:
        name: its path below the source, or its row.
        group: what it has to stay together with in every split; "" where it stands alone.
    """

    name: str
    content: bytes | Path | np.ndarray
    label: int
    group: str = ""

    def decode(self, image_size: ImageSize, fit: FitName) -> DecodedImage:
        """Decode it; pixels that come as an array, uint8 H×W or H×W×3, are brought to size alone.

        What decoders warn of is the caller's, as with `decode_beside_others`.

        Raises:
            ValueError: it cannot be decoded.
            OSError: a file that cannot be read.
        """
        if isinstance(self.content, np.ndarray):
            height, width = self.content.shape[:2]
            if height * width > MAX_PIXELS:
                raise ValueError(f"{width}×{height} pixels; allowed: {MAX_PIXELS:,} in all")
            with _large_alone(height * width):
                image = Image.fromarray(self.content).convert("RGB")
                return fit_image(image, image_shape(image_size), fit)
        content = self.content if isinstance(self.content, bytes) else read_file(self.content)
        return decode_beside_others(content, image_size, fit)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the encoded bytes, or the pixels; of the name where they cannot be read."""
        try:
            if isinstance(self.content, Path):
                return hashlib.sha256(read_file(self.content)).digest()
            content = self.content
            raw = content if isinstance(content, bytes) else content.tobytes()
            return hashlib.sha256(raw).digest()
        except (OSError, ValueError):
            return hashlib.sha256(self.name.encode(errors="surrogateescape")).digest()


class DecodedImage(NamedTuple):
    """One decoded image.

    Attributes:
        pixels: uint8 C×H×W.
        size: its own width and height.
        note: what a user should know of how it was read, to follow "3 image(s)"; "" mostly.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    note: str


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


def read_file(path: Path) -> bytes:
    """Read an image file.

    Raises:
        ValueError: larger than `MAX_FILE_BYTES`, or no regular file.
        OSError: it cannot be read.
    """
    if not path.is_file():  # a pipe or a device would never end
        path.stat()  # raises where there is nothing
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        content = file.read(min(os.fstat(file.fileno()).st_size, MAX_FILE_BYTES) + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES:,} bytes")
    return content


def decode_image(content: bytes, image_size: ImageSize, fit: FitName = "crop") -> DecodedImage:
    """Decode one image to uint8 C×H×W.

    It is turned as its EXIF orientation says, transparency is laid on white, gray of more than 8
    bits is scaled by the bits it uses, and an image of another size is scaled with Pillow's
    bicubic filter, which averages where it shrinks. Where one channel is wanted, colour becomes
    gray before that. `preprocess` in a bundle's model card says the same in ten lines.

    Args:
        content: the bytes of a file.
        image_size: a side in pixels, (height, width), or (channels, height, width).
        fit: "crop" cuts out the centre, "pad" lays the whole image on black, "squash" distorts it.

    Raises:
        ValueError: not an image, broken, too large, or with a side below `MIN_SIDE`.
    """
    with no_warnings():
        return decode_beside_others(content, image_size, fit)


def no_warnings() -> warnings.catch_warnings[None]:
    """Return what to decode within: decoders warn of metadata that does not concern the pixels.

    One thread enters it for all: the filters are the process's, and threads that entered it side
    by side could leave them changed.
    """
    return warnings.catch_warnings(action="ignore")


def decode_beside_others(content: bytes, image_size: ImageSize, fit: FitName) -> DecodedImage:
    """Do what `decode_image` does, in one of several threads, within `no_warnings` of another.

    Raises:
        ValueError: as there.
    """
    if not content:
        raise ValueError("empty")
    shape = image_shape(image_size)
    try:
        check_icons(content)
        with Image.open(io.BytesIO(content), formats=read_formats()) as opened:
            size = opened.size
            allowed = max_pixels(opened)
            if size[0] * size[1] > allowed:
                raise ValueError(f"{size[0]}×{size[1]} pixels; allowed: {allowed:,} in all")
            with _large_alone(size[0] * size[1]):
                return _decode(opened, content, shape, fit)
    except UnidentifiedImageError:
        if is_heic(Path(), content[:12]):
            raise ValueError(HEIC_HINT) from None
        if content.startswith(LFS_HEAD):
            raise ValueError(LFS_HINT) from None
        raise ValueError(
            "cannot identify image file; JPEG, PNG and most other formats can be read"
        ) from None
    except Exception as error:  # what a decoder raises depends on format and damage
        text = text_of(error).partition("<")[0].strip()
        if not text or not isinstance(error, (*_TOLD, Image.DecompressionBombError)):
            text = f"damaged ({type(error).__name__}{': ' if text else ''}{text})"
        raise ValueError(text) from None


def _decode(opened: Image.Image, content: bytes, shape: ImageShape, fit: FitName) -> DecodedImage:
    bits = stored_bits(opened, content)
    if opened.format == "PPM":
        check_ppm(opened, content, bits)
    has_more = has_more_frames(opened, content)
    opened.load()
    if bits == 16:
        check_wide_colour(opened)
    image, note = _to_rgb(_turned(opened))
    if has_more:
        note = ", and ".join(filter(None, (FRAMES, note)))
    return fit_image(image, shape, fit, note)


def fit_image(image: Image.Image, shape: ImageShape, fit: FitName, note: str = "") -> DecodedImage:
    """Bring an image in RGB to a shape; one channel is luma as of ITU-R BT.601, Pillow's mode L.

    Raises:
        ValueError: a side below `MIN_SIDE`, or one that would have no pixels left.
    """
    size = image.size
    if min(size) < MIN_SIDE:
        raise ValueError(f"{size[0]}×{size[1]} pixels; allowed: sides of 2 and more")
    if shape.channels != RGB:
        image = image.convert("L")
    wanted = shape.width, shape.height  # Pillow's order
    if size != wanted:
        bicubic = Image.Resampling.BICUBIC
        if fit == "crop":
            image = ImageOps.fit(image, wanted, bicubic)
        elif fit == "pad":
            scale = min(wanted[0] / size[0], wanted[1] / size[1])
            if min(size) * scale <= 0.5:
                raise ValueError(f"{size[0]}×{size[1]} pixels are too narrow for fit=pad")
            image = ImageOps.pad(image, wanted, bicubic)
        else:
            image = image.resize(wanted, bicubic)
    pixels = np.asarray(image)
    return DecodedImage(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), size, note)


def to_image(pixels: np.ndarray) -> Image.Image:
    """Return an image, uint8 C×H×W of one channel or three, for Pillow."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def png_address(pixels: np.ndarray) -> str:
    """Return an image, uint8 C×H×W of one channel or three, as a PNG in a data URI."""
    buffer = io.BytesIO()
    to_image(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _turned(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says.

    `ImageOps.exif_transpose` writes the other tags anew too, which fails on a tag of a wrong type.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a block that cannot be parsed says nothing about orientation
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    if image.mode.startswith("I"):
        return _scaled_gray(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no stated range; store 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB"), ""
    return image if image.mode == "RGB" else image.convert("RGB"), ""


def _scaled_gray(image: Image.Image) -> tuple[Image.Image, str]:
    """Bring gray of 16 or 32 bits to 8, by the 8, 12 or 16 bits that its values need.

    Cameras and scanners store 12 bits in 16 without saying so, and tools 8 bits in 32.

    Raises:
        ValueError: values below 0 or above 65,535.
    """
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise ValueError(
            f"gray values from {low:,} to {high:,} have no known range; store 8 or 16 bits"
        )
    bits = next(bits for bits in (8, 12, 16) if high < 2**bits)
    levels = (np.arange(2**bits) * (255 / (2**bits - 1))).round().astype(np.uint8)
    gray = Image.fromarray(levels[values])
    note = f"hold gray of {bits} bits in more, and are scaled so" if bits < 16 else ""
    if bits == 16 and high < 2**14:
        note = "use 14 of 16 bits of gray or fewer, and stay as dark; store the full range"
    return gray.convert("RGB"), note


@dataclass(frozen=True)
class DecodedImages:
    """What `decode_images` made.

    Attributes:
        pixels: uint8 B×C×H×W; 0 for an image that could not be read.
        sizes: int B×2, the images' own widths and heights.
        unreadable: why, for each index that could not be read.
        notes: what was found out about the values, for each index where it was something.
    """

    pixels: np.ndarray
    sizes: np.ndarray
    unreadable: dict[int, str]
    notes: dict[int, str]


def decode_images(
    encoded: Sequence[EncodedImage],
    image_size: ImageSize,
    progress: Progress = no_progress,
    fit: FitName = "crop",
) -> DecodedImages:
    """Decode images on all cores; Ctrl-C ends it within a few images.

    Pillow lets other threads run while it decodes and scales, so threads suffice.
    """
    count = len(encoded)
    sizes = np.zeros((count, 2), dtype=np.int64)
    pixels = np.zeros((count, *image_shape(image_size)), dtype=np.uint8)
    chunks = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    unreadable: dict[int, str] = {}
    notes: dict[int, str] = {}
    stopped = threading.Event()

    def decode_chunk(indices: range) -> None:
        for index in indices:
            if stopped.is_set():
                return
            try:
                image = encoded[index].decode(image_size, fit)
            except (ValueError, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) else None
                unreadable[index] = reason or str(error)
                continue
            pixels[index], sizes[index] = image.pixels, image.size
            if image.note:
                notes[index] = image.note

    pool = ThreadPoolExecutor(os.cpu_count())
    with no_warnings():
        try:
            for indices, _ in zip(chunks, pool.map(decode_chunk, chunks), strict=True):
                progress("decoding images", indices.stop, count)
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
    return DecodedImages(
        pixels, sizes, dict(sorted(unreadable.items())), dict(sorted(notes.items()))
    )
