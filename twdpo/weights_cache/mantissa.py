"""Rounding float32 weights so that they pack like half precision while every reader still sees float32.

Not for: reference log-probs, which are stored exactly.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Explicit mantissa bits kept of float32's 23; with the implicit one, 12 significant bits. Schema 1 kept one more.
MANTISSA_BITS = 11

_DROPPED = 23 - MANTISSA_BITS
_KEEP = np.uint32((0xFFFFFFFF << _DROPPED) & 0xFFFFFFFF)
_HALF_BELOW = np.uint32((1 << (_DROPPED - 1)) - 1)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_LARGEST = np.uint32(0x7F7FFFFF) & _KEEP


def round_mantissa(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """`values` as float32 with the mantissa rounded to 11 explicit bits, to nearest, ties to even.

    Any shape; a new array. The relative error is under 2^-12 (subnormals: an absolute one of 2^-138). Zeros,
    infinities and NaN stay what they are, and a finite value never becomes infinite. Rounding twice changes nothing.
    """
    bits = np.array(values, dtype=np.float32, order="C").view(np.uint32)
    sign = bits & ~_MAGNITUDE
    magnitude = bits & _MAGNITUDE
    finite = magnitude < _INFINITY
    odd = (magnitude >> np.uint32(_DROPPED)) & np.uint32(1)
    rounded = np.minimum((magnitude + _HALF_BELOW + odd) & _KEEP, _LARGEST)
    return (sign | np.where(finite, rounded, magnitude)).astype(np.uint32).view(np.float32)


def is_rounded(values: npt.NDArray[np.float32], bits: int = MANTISSA_BITS) -> bool:
    """Whether no value uses more than the `bits` highest explicit bits of the mantissa."""
    cleared = np.uint32((1 << (23 - bits)) - 1)
    return not bool(np.any(np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) & cleared))
