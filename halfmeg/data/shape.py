"""The shape of a network's images, and how a user writes it: `64`, or `96x64`, height × width.

Height stands before width, as in torch, timm, NumPy and OpenCV's arrays.
"""

from __future__ import annotations

import re
from typing import NamedTuple

RGB = 3
CHANNELS = (1, RGB)
SMALLEST, LARGEST = 8, 512
"""Sides in pixels that images may be brought to."""

ImageSize = int | tuple[int, ...]
"""A side in pixels, (height, width), or (channels, height, width); without channels they are 3."""


class ImageShape(NamedTuple):
    """Channels, height and width of an image, in pixels."""

    channels: int
    height: int
    width: int

    @property
    def size(self) -> int | tuple[int, int]:
        """The side where it is square, else (height, width): as it is stored and written."""
        return self.height if self.height == self.width else (self.height, self.width)

    @property
    def shortest(self) -> int:
        """The shorter side."""
        return min(self.height, self.width)

    @property
    def text(self) -> str:
        """Height × width, as in `96×64`."""
        return f"{self.height}×{self.width}"

    @property
    def written(self) -> str:
        """As a user writes it: `64`, or `96x64`."""
        square = self.height == self.width
        return f"{self.height}" if square else f"{self.height}x{self.width}"

    def scaled_to(self, shortest: int) -> ImageShape:
        """Return the shape of the same proportions with a shorter side of that length."""
        scale = shortest / self.shortest
        return ImageShape(self.channels, round(self.height * scale), round(self.width * scale))


def image_shape(size: ImageSize) -> ImageShape:
    """Return the shape that a size stands for.

    Raises:
        ValueError: neither one, two nor three numbers.

    Example:
        >>> from halfmeg.data.shape import image_shape
        >>> image_shape(32), image_shape((96, 64)).text
        (ImageShape(channels=3, height=32, width=32), '96×64')
    """
    numbers = (size, size) if isinstance(size, int) else tuple(size)
    if not 2 <= len(numbers) <= 3:
        raise ValueError(f"image_size={size} is no side and no (height, width)")
    return ImageShape(*numbers) if len(numbers) == 3 else ImageShape(RGB, *numbers)


def data_shape(size: ImageSize, channels: int) -> ImageShape:
    """Return the shape that images of a source are brought to.

    Raises:
        ValueError: sides or channels out of range.
    """
    shape = image_shape(size)._replace(channels=channels)
    if channels not in CHANNELS:
        raise ValueError(f"channels={channels} is not known; allowed: 1, 3")
    if not all(SMALLEST <= side <= LARGEST for side in shape[1:]):
        allowed = f"[{SMALLEST}, {LARGEST}]"
        raise ValueError(f"image_size={shape.written} is out of range; allowed: {allowed}")
    return shape


def parse_size(text: str) -> int | tuple[int, int]:
    """Return the size that a user wrote: a side, or height x width.

    Raises:
        ValueError: it is neither.
    """
    found = re.fullmatch(r"(\d{1,6})(?:[x×X](\d{1,6}))?", text.strip())
    if found is None:
        raise ValueError(
            f"image_size={text!r} is no size; write a side, as 64, or HEIGHTxWIDTH, as 96x64"
        )
    height, width = int(found[1]), int(found[2] or found[1])
    return ImageShape(RGB, height, width).size
