"""The image formats that are read, how large an image of each may be, and what is wrong in some."""

from __future__ import annotations

import ctypes
import ctypes.util
import io
import logging
import re
import struct
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

MAX_FILE_BYTES = 128 * 2**20
"""A larger file is refused before it is read."""

MIN_SIDE = 2
"""An image with a side of one pixel shows nothing; it is reported as unreadable."""

MAX_PIXELS = 64 * 10**6
"""Larger images are refused before they are decoded, so that none takes a gigabyte of memory."""

MAX_COSTLY_PIXELS = 16 * 10**6
"""The same for what takes several copies: transparency, more than 8 bits, some decoders."""

MAX_WEBP_PIXELS = 32 * 10**6
"""The same for WebP, whose decoder keeps two canvases: 64 million pixels took 1,010 MB."""

LARGE_PIXELS = 4 * 10**6
"""Larger images are decoded one at a time, so that several threads take no more than one."""

# Not among them: what starts another program (EPS), holds files within files (ICNS), or is no
# picture that a camera, a scanner or an editor leaves (DDS, FITS, SPIDER and the like).
_FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM",
    "QOI", "SGI", "TGA", "TIFF", "WEBP",
)  # fmt: skip
_COSTLY_FORMATS = ("JPEG2000", "HEIF", "AVIF")
_HEIC_ENDINGS = (".heic", ".heif", ".hif")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")

_ICO = b"\0\0\1\0"
_PNG = b"\x89PNG\r\n\x1a\n"

LFS_HEAD = b"version https://git-lfs"
LFS_HINT = "a pointer of Git LFS, not the file itself; run git lfs pull"

HEIC_HINT = "HEIC needs pillow-heif: pip install -e '.[heif]'"


@cache
def read_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are read here; HEIF with its extra only."""
    if find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    _silence_decoders()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@cache
def image_endings() -> frozenset[str]:
    """Return the endings of files that are taken for images, in lower case."""
    formats = (*read_formats(), "MPO")  # which Pillow opens as JPEG
    return frozenset(e for e, name in Image.registered_extensions().items() if name in formats)


def is_heic(path: Path, head: bytes) -> bool:
    """Return whether a file is HEIC by its ending or its first bytes."""
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    return path.suffix.lower() in _HEIC_ENDINGS or brand in _HEIC_BRANDS


def max_pixels(image: Image.Image) -> int:
    """Return how many pixels an opened, not yet decoded image may have."""
    wide = image.mode.startswith("I") or image.mode == "F"
    if wide or image.has_transparency_data or image.format in _COSTLY_FORMATS:
        return MAX_COSTLY_PIXELS
    return MAX_WEBP_PIXELS if image.format == "WEBP" else MAX_PIXELS


def check_icons(content: bytes) -> None:
    """Refuse an ICO file that holds a large image: Pillow decodes one as soon as it is opened.

    The sizes in the file's list of icons, which Pillow tells, are not those of the icons.

    Raises:
        ValueError: of which the text says how large it is.
    """
    if content[:4] != _ICO:
        return
    (count,) = struct.unpack_from("<H", content.ljust(6, b"\0"), 4)
    for entry in range(6, min(6 + 16 * count, len(content) - 15), 16):
        (start,) = struct.unpack_from("<I", content, entry + 12)
        head = content[start : start + 24].ljust(24, b"\0")
        if head[:8] == _PNG:
            if head[12:16] != b"IHDR":
                raise ValueError("damaged: an icon does not begin with its size")
            width, height = struct.unpack_from(">II", head, 16)
        else:
            form = "<HH" if head[:4] == b"\x0c\0\0\0" else "<ii"
            width, height = map(abs, struct.unpack_from(form, head, 4))
        if width * height > LARGE_PIXELS:
            raise ValueError(
                f"an icon of {width}×{height} pixels; allowed: {LARGE_PIXELS:,} in all"
            )


def _silence_decoders() -> None:
    """Keep Pillow and libtiff from writing their own lines about damaged files on the screen.

    What they find is raised as an error all the same. Who sets up logging still gets Pillow's.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    folder = Path(PIL.__file__).parent
    bundled = [*folder.parent.glob("pillow.libs/libtiff*"), *folder.glob(".dylibs/libtiff*")]
    name = str(bundled[0]) if bundled else ctypes.util.find_library("tiff")
    if name is None:
        return
    try:
        library = ctypes.CDLL(name)
        for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)
    except (OSError, AttributeError):
        return  # another build of Pillow: the lines stay


def has_more_frames(image: Image.Image, content: bytes) -> bool:
    """Return whether a file holds an animation or pages; a camera's MPO is one photograph."""
    if image.format == "MPO":
        return False
    try:
        if image.format == "GIF":  # which looks for a second frame, and may stop at damage there
            with Image.open(io.BytesIO(content), formats=("GIF",)) as again:
                return bool(getattr(again, "is_animated", False))
        return bool(getattr(image, "is_animated", False))
    except Exception:  # what follows the first frame is not read
        return False


def stored_bits(image: Image.Image, content: bytes) -> int:
    """Return the bits of a sample in an opened, not yet decoded PNG, TIFF or PPM; else 8."""
    if image.format == "PNG":
        return content[24]  # of the header, which is the first chunk
    if image.format == "TIFF":
        stored = image.tag_v2.get(258)  # type: ignore[attr-defined]
        return max(stored, default=8) if isinstance(stored, tuple) else 8
    if image.format == "PPM":
        arguments = image.tile[0].args  # type: ignore[attr-defined]
        if isinstance(arguments, tuple):  # the greatest value is the last, where it is not 255
            return int(arguments[-1]).bit_length()
    return 8


_PPM_HEADER = re.compile(rb"P([456])(?:\s|#[^\n]*\n)")


def check_ppm(image: Image.Image, content: bytes, bits: int) -> None:
    """Refuse a PBM, PGM or PPM file whose bytes went through a text conversion.

    Raises:
        ValueError: its header ends lines as texts do, or more bytes follow than its pixels need.
    """
    header = _PPM_HEADER.match(content)
    if header is None:
        return  # numbers written as text, or floating point
    start = image.tile[0].offset  # type: ignore[attr-defined]
    width = 1 if header[1] == b"4" else 16 if bits > 8 or image.mode.startswith("I") else 8
    row = image.width * len(image.getbands())
    needed = image.height * ((row * width + 7) // 8)
    rest = content[start + needed :]
    if b"\r\n" in content[:start] or (rest.strip() and not _PPM_HEADER.match(rest.lstrip())):
        raise ValueError(
            "damaged: it went through a text conversion, or has more bytes than its size says"
        )


def check_wide_colour(image: Image.Image) -> None:
    """Refuse colour of 16 bits that uses the lower 12 alone: of each, Pillow reads the upper 8.

    Raises:
        ValueError: next to nothing would be left of the image.
    """
    if len(image.getbands()) < 2:
        return
    ranges: Any = image.getextrema()
    bands = zip(image.getbands(), ranges, strict=True)
    most = 2**4 if image.format == "PPM" else 2**4 - 1  # there Pillow rounds
    if max((high for band, (_, high) in bands if band in "RGBL"), default=255) <= most:
        raise ValueError(
            "colour of 16 bits that uses 12 or fewer of them is read as next to black; "
            "store 8 bits, or the full range"
        )
