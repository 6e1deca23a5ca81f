"""Pictures in every format that is read, as programs write them, and damage to them."""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib
from importlib.util import find_spec
from typing import Any

import numpy as np
from inputs import mutate
from PIL import Image

VARIANTS: dict[str, tuple[tuple[str, str, dict[str, Any]], ...]] = {
    ".png": (
        ("RGB", "PNG", {}), ("RGBA", "PNG", {}), ("P", "PNG", {"transparency": 3}),
        ("L", "PNG", {}), ("LA", "PNG", {}), ("1", "PNG", {}), ("I;16", "PNG", {}),
        ("RGB", "PNG", {"dpi": (72, 72), "icc_profile": b"none"}),
    ),
    ".apng": (("RGB", "PNG", {"save_all": True}), ("P", "PNG", {"save_all": True})),
    ".jpg": (
        ("RGB", "JPEG", {}), ("RGB", "JPEG", {"progressive": True}), ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}), ("RGB", "JPEG", {"subsampling": 2, "restart_marker_rows": 1}),
        ("RGB", "MPO", {"save_all": True}),
    ),
    ".gif": (("P", "GIF", {}), ("P", "GIF", {"save_all": True, "transparency": 2})),
    ".bmp": (("RGB", "BMP", {}), ("P", "BMP", {}), ("1", "BMP", {}), ("RGBA", "BMP", {})),
    ".dib": (("RGB", "DIB", {}), ("L", "DIB", {})),
    ".tif": (
        ("RGB", "TIFF", {}), ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("RGB", "TIFF", {"compression": "jpeg"}), ("L", "TIFF", {"compression": "packbits"}),
        ("1", "TIFF", {"compression": "group4"}), ("I;16", "TIFF", {}), ("I", "TIFF", {}),
        ("CMYK", "TIFF", {"compression": "tiff_adobe_deflate"}), ("RGBA", "TIFF", {}),
        ("RGB", "TIFF", {"big_tiff": True}), ("P", "TIFF", {"save_all": True}),
    ),
    ".webp": (
        ("RGB", "WEBP", {}), ("RGBA", "WEBP", {"lossless": True}),
        ("RGB", "WEBP", {"save_all": True}),
    ),
    ".ppm": (("RGB", "PPM", {}), ("L", "PPM", {}), ("1", "PPM", {}), ("I;16", "PPM", {})),
    ".ico": (("RGBA", "ICO", {"sizes": [(32, 32), (16, 16)]}),
             ("RGB", "ICO", {"bitmap_format": "bmp", "sizes": [(24, 24)]})),
    ".tga": (("RGB", "TGA", {}), ("RGBA", "TGA", {"compression": "tga_rle"}), ("P", "TGA", {})),
    ".pcx": (("RGB", "PCX", {}), ("P", "PCX", {}), ("1", "PCX", {})),
    ".sgi": (("RGB", "SGI", {}), ("L", "SGI", {})),
    ".qoi": (("RGB", "QOI", {}), ("RGBA", "QOI", {})),
    ".jp2": (("RGB", "JPEG2000", {}), ("RGBA", "JPEG2000", {"irreversible": True}),
             ("L", "JPEG2000", {"tile_size": (32, 32)})),
    ".avif": (("RGB", "AVIF", {"speed": 10}), ("RGBA", "AVIF", {"speed": 10})),
}  # fmt: skip
"""By ending: mode, Pillow's name of the format, and how it is saved."""

if find_spec("pillow_heif") is not None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    VARIANTS[".heic"] = (("RGB", "HEIF", {}),)

NUM_PICTURES = 24
"""Different ones of each variant."""

EXIF_TAGS = (0x0112, 0x010E, 0x8769, 0x8825, 0x9286, 0x501B, 0x0111, 0x927C)


@functools.cache
def picture(ending: str, variant: int, number: int) -> bytes:
    """Encode one of the pictures; some have EXIF data."""
    mode, form, options = VARIANTS[ending][variant]
    rng = np.random.default_rng((number, variant, len(ending)))
    coarse = rng.integers(0, 256, (5, 6, 4), dtype=np.uint8)
    size = (int(rng.integers(33, 70)), int(rng.integers(33, 70)))
    image = Image.fromarray(coarse, "RGBA").resize(size, Image.Resampling.BICUBIC)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 250)
    elif mode == "I":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.int32))
    else:
        image = image.convert("RGB").convert(mode) if mode != "RGBA" else image
    options = dict(options)
    if options.get("save_all"):
        options["append_images"] = [image.transpose(Image.Transpose.ROTATE_180)]
    if form in ("JPEG", "PNG", "WEBP", "AVIF", "MPO") and number % 3 == 0:
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 1 + number % 8, "a picture"
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def damaged_picture(ending: str, rng: random.Random) -> bytes:
    """Return a picture with one damage or several, of the kinds that happen and that are meant."""
    content = picture(ending, rng.randrange(len(VARIANTS[ending])), rng.randrange(NUM_PICTURES))
    for _ in range(rng.choice((1, 1, 2))):
        content = rng.choice(_DAMAGES)(content, rng)
    if rng.random() < 0.5:
        content = _seal_png(content)
    return content


def _numbers(content: bytes, rng: random.Random) -> bytes:
    """Write odd numbers where headers keep sizes, offsets and counts."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        form = rng.choice(("<H", ">H", "<I", ">I"))
        width = struct.calcsize(form)
        largest = 256**width - 1
        value = rng.choice((0, 1, 2, 7, 255, 4000, 65535, largest // 2, largest, largest - 3))
        place = rng.randrange(max(1, min(len(changed) - width, rng.choice((32, 256, 10**6)))))
        changed[place : place + width] = struct.pack(form, min(value, largest))
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _join(content: bytes, rng: random.Random) -> bytes:
    """Two files in one, as a copy that went wrong leaves it."""
    ending = rng.choice([*VARIANTS][:10])
    other = picture(ending, 0, rng.randrange(NUM_PICTURES))
    place = rng.randrange(len(content) + 1)
    return content[:place] + other[rng.choice((0, place)) :]


def _as_text(content: bytes, rng: random.Random) -> bytes:
    """Through a text conversion: line ends, an encoding, a byte order mark."""
    return rng.choice(
        (
            content.replace(b"\n", b"\r\n"), content.replace(b"\r\n", b"\n"),
            content.decode("latin-1").encode(), b"\xef\xbb\xbf" + content,
            content.decode("ascii", "replace").encode(),
        )
    )  # fmt: skip


def _exif(content: bytes, rng: random.Random) -> bytes:
    """Put a block of EXIF with odd types, counts and offsets into a JPEG file, or into a TIFF's."""
    order = rng.choice("<>")
    rows = b"".join(
        struct.pack(
            f"{order}HHII", rng.choice((*EXIF_TAGS, rng.randrange(65536))), rng.randrange(16),
            rng.choice((0, 1, 2, 9, 2**31, 2**32 - 1)), rng.choice((0, 1, 8, 26, 2**32 - 1)),
        )
        for _ in range(rng.randrange(1, 6))
    )  # fmt: skip
    head = b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08"
    block = b"Exif\0\0" + head + struct.pack(f"{order}H", len(rows) // 12) + rows + bytes(4)
    if content[:2] == b"\xff\xd8":
        segment = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
        return content[:2] + segment + content[2:]
    at = content.find(head[:4])
    return content + block if at < 0 else content[: at + 8] + block[14:] + content[at + 8 :]


def _swap(content: bytes, rng: random.Random) -> bytes:
    """Exchange two blocks, as a disk may."""
    size = rng.choice((16, 64, 512))
    one, other = (rng.randrange(max(1, len(content) // size)) * size for _ in range(2))
    changed = bytearray(content)
    first, second = changed[one : one + size], changed[other : other + size]
    length = min(len(first), len(second))
    changed[one : one + length], changed[other : other + length] = second[:length], first[:length]
    return bytes(changed)


_DAMAGES = (mutate, mutate, _numbers, _numbers, _cut, _join, _as_text, _exif, _swap)


def _seal_png(content: bytes) -> bytes:
    """Make the checksums of a PNG file's chunks right again: else damage is seen by them alone."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    sealed, place = bytearray(content), 8
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        end = place + 8 + length
        if end + 4 > len(content):
            break
        struct.pack_into(">I", sealed, end, zlib.crc32(content[place + 4 : end]))
        place = end + 4
    return bytes(sealed)
