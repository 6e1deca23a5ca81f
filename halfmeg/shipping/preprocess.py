"""What happens to an image file before a network sees it, in words and as a program.

The resize filter is part of a network: one trained on averaged images fails on images that another
library has shrunk by picking pixels.
"""

from __future__ import annotations

from typing import Any

from halfmeg.data.decode import FitName
from halfmeg.data.shape import RGB, ImageSize, image_shape

_FITS = {
    "crop": "scaled so that it covers {text} pixels, its centre cut out",
    "pad": "scaled so that it fits into {text} pixels, laid on black in the middle",
    "squash": "scaled to {text} pixels, whatever its proportions",
}

_CALLS = {
    "crop": "ImageOps.fit(image, ({width}, {height}), Image.Resampling.BICUBIC)",
    "pad": "ImageOps.pad(image, ({width}, {height}), Image.Resampling.BICUBIC)",
    "squash": "image.resize(({width}, {height}), Image.Resampling.BICUBIC)",
}

_SNIPPET = """import numpy as np
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open(PATH))
if image.has_transparency_data:
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image.convert("RGBA"))
image = image.convert("RGB"){gray}
if image.size != ({width}, {height}):  # Pillow's order: width, height
    image = {call}
pixels = np.asarray(image){axes}  # uint8, 1 x {channels} x {height} x {width}
"""


def preprocessing(size: ImageSize, fit: FitName) -> dict[str, Any]:
    """Return every step from a file to the network's input, as model.json states it."""
    shape = image_shape(size)
    if shape.channels == RGB:
        channels, meaning = (
            "red, green, blue; gray is repeated",
            "gray is repeated to three channels",
        )
    else:
        channels = "one: gray, 0.299 red + 0.587 green + 0.114 blue, as Pillow's mode L, made first"
        meaning = "colours become gray, as in Pillow's mode L"
    return {
        "orientation": "turned as EXIF says",
        "transparency": "laid on white",
        "gray_of_more_than_8_bits": "scaled by the 8, 12 or 16 bits that its values need",
        "channels": channels,
        "channels_mean": meaning,
        "fit": fit,
        "fit_means": _FITS[fit].format(text=shape.text),
        "size": [shape.height, shape.width],
        "size_means": "height, width",
        "filter": "bicubic, widened where it shrinks (antialiased), as Pillow's BICUBIC",
        "layout": "batch, channel, row, column",
        "range": "uint8 0 to 255; the ONNX files divide by 255 and normalize by mean and std",
    }


def snippet(size: ImageSize, fit: FitName) -> str:
    """Return the steps for an image of 8 bits with NumPy and Pillow; PATH is the file."""
    shape = image_shape(size)
    in_color = shape.channels == RGB
    return _SNIPPET.format(
        **shape._asdict(),
        call=_CALLS[fit].format(**shape._asdict()),
        gray="" if in_color else '.convert("L")',
        axes=".transpose(2, 0, 1)[None]" if in_color else "[None, None]",
    )
