"""How a report holds its pairs: texts and offsets as JSON, weights as 16-bit codes, both packed in blocks.

A browser inflates a block when a pair of it is looked at. Not for: which pairs (`gather.py`), or the page (`page.py`).
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

#: A code is five bits of exponent over eleven of mantissa: with the leading one, the twelve that a cache holds.
MANTISSA = 11
_LARGEST_EXPONENT = 31
#: Below 2 to the minus this, nothing needs to be told apart.
_MOST_BIAS = 26

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


def exponent_bias(largest: float) -> int:
    """The bias of codes for weights up to `largest`: the one that leaves most room for small weights."""
    _, exponent = np.frexp(np.float64(max(largest, 1.0)))
    # A mantissa that rounds up to 2 takes one exponent more.
    return min(_MOST_BIAS, _LARGEST_EXPONENT - int(exponent))


def encode_weights(weights: Floats, bias: int) -> npt.NDArray[np.uint16]:
    """Codes uint16[n] of weights float32[n], none of them negative: e << 11 | m.

    With e > 0 the weight is (1 + m / 2048) · 2^(e − bias), with e = 0 it is m / 2048 · 2^(1 − bias). Weights with 12
    significant bits come back to the bit from 2^(1 − bias) on, others rounded.
    """
    values = weights.astype(np.float64)
    _, exponents = np.frexp(values)
    exponents = np.where(values > 0, np.maximum(exponents.astype(np.int64) - 1 + bias, 1), 1)
    # In units of the last place: 2048 to 4095 for normal numbers, less where the exponent is the smallest.
    units = np.rint(np.ldexp(values, (MANTISSA - exponents + bias).astype(np.int32))).astype(np.int64)
    # One of 4096 carries into the exponent, and one of 2048 makes a normal number of the largest of the others.
    codes = ((exponents - 1) << MANTISSA) + units
    return codes.astype(np.uint16)


def decode_weights(codes: npt.NDArray[np.uint16], bias: int) -> Floats:
    """The weights float32[n] that codes uint16[n] stand for."""
    exponents, mantissas = (codes >> MANTISSA).astype(np.int32), (codes & (2**MANTISSA - 1)).astype(np.float64)
    units = np.where(exponents > 0, 2.0**MANTISSA + mantissas, mantissas)
    weights: Floats = np.ldexp(units, np.maximum(exponents, 1) - bias - MANTISSA).astype(np.float32)
    return weights


def in_utf16(text: str, offsets: Ints) -> npt.NDArray[np.int64]:
    """Offsets int32[n] of characters of `text`, as JavaScript counts: in 16-bit units."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    wide_before = np.concatenate([[0], np.cumsum(points > 0xFFFF)])
    # Offsets of a truncated or foreign text may lie beyond its end.
    moved: npt.NDArray[np.int64] = offsets + wide_before[np.minimum(offsets, len(points))]
    return moved


def encode_offsets(starts: npt.NDArray[Any], ends: npt.NDArray[Any]) -> dict[str, list[int]]:
    """Where tokens stand: `gap`, how far each starts behind the end of the one before, and `len`."""
    before = np.concatenate([[0], ends[:-1]])
    return {"gap": (starts - before).tolist(), "len": (ends - starts).tolist()}


def pack_block(examples: Sequence[Mapping[str, Any]], codes: Iterable[npt.NDArray[np.uint16]]) -> str:
    """A block as base64 of raw deflate: length of the JSON (uint32), JSON, all high bytes of the codes, all low ones.

    Apart from each other, high and low bytes pack better.
    """
    try:
        text = _compact(examples, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        text = _compact(examples, ensure_ascii=True).encode()
    flat = np.concatenate([np.empty(0, np.uint16), *codes])
    planes = (flat >> 8).astype(np.uint8).tobytes() + (flat & 0xFF).astype(np.uint8).tobytes()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = deflate.compress(struct.pack("<I", len(text)) + text + planes) + deflate.flush()
    return base64.b64encode(packed).decode("ascii")


def _compact(examples: Sequence[Mapping[str, Any]], *, ensure_ascii: bool) -> str:
    return json.dumps({"examples": examples}, ensure_ascii=ensure_ascii, separators=(",", ":"))


def json_in_html(content: Any) -> str:
    """JSON that can stand in an HTML script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
