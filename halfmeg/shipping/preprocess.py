"""What happens to an image file before a network sees it, in words and as a program.

The resize filter is part of a network: one trained on averaged images fails on images that another
library has shrunk by picking pixels.
"""

from __future__ import annotations

from typing import Any

from halfmeg.data.decode import FitName

_FITS = {
    "crop": "scaled so that it covers the square, its centre cut out",
    "pad": "scaled so that it fits into the square, laid on black in the middle",
    "squash": "scaled to the square, whatever its proportions",
}

_CALLS = {
    "crop": "ImageOps.fit(image, ({side}, {side}), Image.Resampling.BICUBIC)",
    "pad": "ImageOps.pad(image, ({side}, {side}), Image.Resampling.BICUBIC)",
    "squash": "image.resize(({side}, {side}), Image.Resampling.BICUBIC)",
}

_SNIPPET = """import numpy as np
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open(PATH))
if image.has_transparency_data:
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image.convert("RGBA"))
image = image.convert("RGB")
if image.size != ({side}, {side}):
    image = {call}
pixels = np.asarray(image).transpose(2, 0, 1)[None]  # uint8, 1 x 3 x {side} x {side}
"""


def preprocessing(side: int, fit: FitName) -> dict[str, Any]:
    """Return every step from a file to the network's input, as model.json states it."""
    return {
        "orientation": "turned as EXIF says",
        "transparency": "laid on white",
        "gray_of_more_than_8_bits": "scaled by the 8, 12 or 16 bits that its values need",
        "channels": "red, green, blue; gray is repeated",
        "fit": fit,
        "fit_means": _FITS[fit],
        "size": [side, side],
        "filter": "bicubic, widened where it shrinks (antialiased), as Pillow's BICUBIC",
        "layout": "batch, channel, row, column",
        "range": "uint8 0 to 255; the ONNX files divide by 255 and normalize by mean and std",
    }


def snippet(side: int, fit: FitName) -> str:
    """Return the steps for an image of 8 bits with NumPy and Pillow; PATH is the file."""
    return _SNIPPET.format(side=side, call=_CALLS[fit].format(side=side))
