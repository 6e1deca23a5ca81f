"""Image files, in bytes or on disk, to one uint8 array."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64 * 10**6
MAX_TRANSPARENT_PIXELS = 16 * 10**6
"""Larger images are refused before they are decoded, so that none takes a gigabyte of memory."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

MIN_SIDE = 2
"""An image with a side of one pixel shows nothing; it is reported as unreadable."""


@dataclass(frozen=True)
class EncodedImage:
    """An image before it is decoded: where it comes from, and its bytes or its file."""

    name: str
    content: bytes | Path
    label: int

    def read(self) -> bytes:
        """Return the encoded bytes."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


def decode_image(content: bytes, image_size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode one image to uint8 3×image_size×image_size; return its own width and height too.

    EXIF orientation is honoured, transparency is laid on white, 16-bit gray is scaled, and an
    image that is not square is cut to its centre.

    Raises:
        ValueError: not an image, broken, or with a side below `MIN_SIDE`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that does not concern the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as opened:
                _check_size(opened)
                image = _to_rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        raise ValueError(
            "cannot identify image file; JPEG, PNG and most other formats can be read"
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(str(error).partition("<")[0].strip() or type(error).__name__) from None
    except Image.DecompressionBombWarning as warning:
        raise ValueError(str(warning)) from None
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"{image.width}×{image.height} pixels; allowed: sides of 2 and more")
    size = image.size
    if size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1), size


def _check_size(image: Image.Image) -> None:
    limit = MAX_TRANSPARENT_PIXELS if image.has_transparency_data else MAX_PIXELS
    if image.width * image.height > limit:
        raise ValueError(f"{image.width}×{image.height} pixels; allowed: {limit:,} in all")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        gray = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(gray.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no stated range; store 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclass(frozen=True)
class DecodedImages:
    """What `decode_images` made.

    Attributes:
        pixels: uint8 B×3×image_size×image_size; 0 for an image that could not be read.
        sizes: int B×2, the images' own widths and heights.
        unreadable: why, for each index that could not be read.
    """

    pixels: np.ndarray
    sizes: np.ndarray
    unreadable: dict[int, str]


def decode_images(
    encoded: Sequence[EncodedImage], image_size: int, progress: Progress = no_progress
) -> DecodedImages:
    """Decode images on all cores.

    Pillow lets other threads run while it decodes and scales, so threads suffice.
    """
    sizes = np.zeros((len(encoded), 2), dtype=np.int64)
    pixels = np.zeros((len(encoded), 3, image_size, image_size), dtype=np.uint8)
    chunks = [range(i, min(i + 256, len(encoded))) for i in range(0, len(encoded), 256)]

    def decode_chunk(indices: range) -> dict[int, str]:
        unreadable = {}
        for index in indices:
            try:
                pixels[index], sizes[index] = decode_image(encoded[index].read(), image_size)
            except (ValueError, OSError) as error:
                unreadable[index] = str(error)
        return unreadable

    failures: dict[int, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for indices, unreadable in zip(chunks, pool.map(decode_chunk, chunks), strict=True):
            failures |= unreadable
            progress("decoding images", indices.stop, len(encoded))
    return DecodedImages(pixels, sizes, failures)
