"""The operations of the graph of integers: what each reads, and the constants that it holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfmeg.networks.graph import Padding, Shape

Int8 = NDArray[np.int8]
UInt8 = NDArray[np.uint8]
Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Quantization:
    """What the bytes of a map mean: scale · (q − zero_point)."""

    scale: np.float32
    zero_point: int


PIXELS = Quantization(np.float32(1), 0)


@dataclass(frozen=True)
class Operation:
    """One pass over the image.

    Attributes:
        name: of its operator in the traced program.
        inputs: which maps it reads: 0 is the image, i the result of operation i - 1.
        shape: of its result, pooled where it pools.
        quantization: of its result; None where it gives the logits in float32.
    """

    name: str
    inputs: tuple[int, ...]
    shape: Shape
    quantization: Quantization | None


@dataclass(frozen=True)
class Sum(Operation):
    """An operation whose result is summed in int32, then requantized.

    Attributes:
        scale: float32, one for each channel or a single one: (float)sum · scale is in steps of the
            result. Of the logits, it is in their own unit.
        zero_point: of the requantized sum, which the table then takes.
        table: uint8 of 256, a function of one value; None for none.
    """

    scale: Float32
    zero_point: int
    table: UInt8 | None


@dataclass(frozen=True)
class Convolution(Sum):
    """A convolution; a linear layer is one whose kernel is as large as the map.

    Attributes:
        weight: int8 O×(C/groups)×kh×kw.
        bias: int32 R×S×O, with the input's zero point and what lies outside of it folded in: of
            each class of rows and of columns, as positions at the border see less of the image.
        row_class, column_class: uint8, of each row and column of the result.
        weight_scale: float32 O.
        outside: the byte that padding is filled with.
        weight_key: equal where the weights are.
        pool: kernel and stride of the maximum that follows; None for none.
        sides: height and width of the result before pooling.
    """

    weight: Int8
    bias: Int32
    row_class: UInt8
    column_class: UInt8
    weight_scale: Float32
    outside: int
    weight_key: str
    stride: tuple[int, int]
    padding: Padding
    dilation: tuple[int, int]
    groups: int
    pool: tuple[tuple[int, int], tuple[int, int]] | None
    sides: tuple[int, int]

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel has one filter of its own."""
        return self.weight.shape[1] == 1 and self.groups == len(self.weight)

    @property
    def has_border(self) -> bool:
        """Whether positions at the border have another bias."""
        return self.bias.shape[:2] != (1, 1)


@dataclass(frozen=True)
class Combination(Sum):
    """A weighted sum of one or two maps, each C×H×W or broadcast to it.

    Attributes:
        multipliers: for each map, int32 that broadcasts to C×H×W.
        offset: int32 that broadcasts to C×H×W, zero points folded in.
    """

    multipliers: tuple[Int32, ...]
    offset: Int32


@dataclass(frozen=True)
class Product(Sum):
    """The product of two maps, each C×H×W or broadcast to it.

    Attributes:
        zero_points: of the two maps.
    """

    zero_points: tuple[int, int]


@dataclass(frozen=True)
class Average(Sum):
    """The mean over windows; the scale holds the divisor.

    Attributes:
        outside: the byte that padding is filled with: the map's zero point.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding
    outside: int


@dataclass(frozen=True)
class Normalization(Sum):
    """LayerNorm over the N channels of each position, in integers from end to end.

    With a = N·q − Σq and v = N·Σq² − (Σq)² + floor, (x − mean) / deviation is a / √v. The root is
    that of v·4^`root_bits`, rounded down, so it is the same number however it is found. Its
    reciprocal gives the quotient in steps of 2^−`QUOTIENT_BITS`.

    Attributes:
        floor: N²·eps in steps of the map, rounded; at least 1.
        root_bits: so many that the root has as many digits as fit.
        multiplier: int32 C, by which the quotient is multiplied.
        offset: int32 C, which is then added.
    """

    floor: int
    root_bits: int
    multiplier: Int32
    offset: Int32


QUOTIENT_BITS = 12
RECIPROCAL_BITS = 20
"""Of the reciprocal of a root beyond those of the quotient."""


@dataclass(frozen=True)
class Softmax(Sum):
    """Shares of the channels of each position: the sum is in steps of 2^−`SHARE_BITS`.

    Attributes:
        exponentials: uint16 of 256, of how far a byte lies below the largest one, at most 2^15.
    """

    exponentials: NDArray[np.uint16]


SHARE_BITS = 15


@dataclass(frozen=True)
class MatrixProduct(Sum):
    """Products of each row's positions, K×R×M and K×R×N to N×R×M, summed over the channels.

    Attributes:
        zero_points: of the two maps.
    """

    zero_points: tuple[int, int]


@dataclass(frozen=True)
class Maximum(Operation):
    """The maximum over windows; padding never wins."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding


@dataclass(frozen=True)
class Lookup(Operation):
    """A function of one value: uint8 of 256."""

    table: UInt8


@dataclass(frozen=True)
class Concatenation(Operation):
    """Channels after one another; a table for each map brings it to the common scale, or None."""

    tables: tuple[UInt8 | None, ...]


@dataclass(frozen=True)
class Rearrangement(Operation):
    """Bytes from other places.

    Attributes:
        index: int64 C×H×W into the flattened map C×H×W, or `OUTSIDE`.
        outside: the byte that then stands there.
    """

    index: NDArray[np.int64]
    outside: int
