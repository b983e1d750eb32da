"""Codes, offsets and blocks of a report, against a reader that was written on its own."""

from __future__ import annotations

import base64
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twdpo.inspect.report.encoding import (
    decode_weights,
    encode_offsets,
    encode_weights,
    exponent_bias,
    in_utf16,
    json_in_html,
    pack_block,
)
from twdpo.weights_cache import round_mantissa

WEIGHTS = st.lists(st.floats(0, 2.0**13, width=32), min_size=1, max_size=40)


def value_of(code: int, bias: int) -> float:
    """As the page's format says it, one code at a time."""
    exponent, mantissa = code >> 11, code & 2047
    return (1 + mantissa / 2048) * 2.0 ** (exponent - bias) if exponent else mantissa / 2048 * 2.0 ** (1 - bias)


@given(WEIGHTS)
def test_weights_of_a_cache_come_back_to_the_bit(values: list[float]) -> None:
    weights = round_mantissa(np.array(values, dtype=np.float32))
    bias = exponent_bias(float(weights.max()))
    codes = encode_weights(weights, bias)
    found = np.array([value_of(int(code), bias) for code in codes])
    normal = weights >= 2.0 ** (1 - bias)
    assert np.array_equal(found[normal], weights[normal].astype(np.float64))
    assert np.all(np.abs(found - weights) <= 2.0 ** (1 - bias) / 4096)
    assert np.array_equal(decode_weights(codes, bias), found.astype(np.float32))


@given(WEIGHTS)
def test_other_weights_are_rounded_to_the_nearest_code(values: list[float]) -> None:
    weights = np.array(values, dtype=np.float32)
    bias = exponent_bias(float(weights.max()))
    found = np.array([value_of(int(code), bias) for code in encode_weights(weights, bias)])
    assert np.all(np.abs(found - weights) <= np.maximum(weights, 2.0 ** (1 - bias)) / 4096)


def test_every_code_is_that_of_its_weight() -> None:
    codes = np.arange(2**16, dtype=np.uint16)
    assert np.array_equal(encode_weights(decode_weights(codes, 20), 20), codes)


@pytest.mark.parametrize("largest", [0.0, 1.0, 1.9999, 8.0, 4095.99, 2.0**20])
def test_the_largest_weight_has_a_code(largest: float) -> None:
    bias = exponent_bias(largest)
    code = int(encode_weights(np.array([largest], dtype=np.float32), bias)[0])
    assert value_of(code, bias) == pytest.approx(largest, rel=2**-12)


@given(st.text())
def test_offsets_are_those_of_sixteen_bit_units(text: str) -> None:
    offsets = np.arange(len(text) + 3, dtype=np.int32)
    found = in_utf16(text, offsets)
    for offset in range(len(text) + 1):
        assert found[offset] == len(text[:offset].encode("utf-16-le", "surrogatepass")) // 2
    assert np.all(np.diff(found) >= 1)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=20))
def test_offsets_come_back(spans: list[tuple[int, int]]) -> None:
    starts = np.array(sorted(start for start, _ in spans), dtype=np.int32)
    ends = starts + np.array([length for _, length in spans], dtype=np.int32)
    packed = encode_offsets(starts, ends)
    at, found = 0, []
    for gap, length in zip(packed["gap"], packed["len"], strict=True):
        found.append((at + gap, at + gap + length))
        at = found[-1][1]
    assert found == list(zip(starts.tolist(), ends.tolist(), strict=True))


def unpack(block: str) -> tuple[object, list[int]]:
    data = zlib.decompress(base64.b64decode(block), -15)
    (length,) = struct.unpack_from("<I", data)
    planes = data[4 + length :]
    half = len(planes) // 2
    codes = [high << 8 | low for high, low in zip(planes[:half], planes[half:], strict=True)]
    return json.loads(data[4 : 4 + length]), codes


@pytest.mark.parametrize("text", ["", "plain", "Grüße 🙂 \x00", "half \ud800 pair"])
def test_a_block_holds_what_was_put_in(text: str) -> None:
    example = {"prompt": [["user", text]], "chosen": {"text": text, "gap": [0], "len": [1]}}
    codes = [np.array([1, 2, 65535], np.uint16), np.array([256], np.uint16)]
    content, found = unpack(pack_block([example], codes))
    assert content == {"examples": [example]}
    assert found == [1, 2, 65535, 256]


def test_json_cannot_leave_its_element() -> None:
    hostile = {"</script><!-- \u2028": ["<script>alert(1)</script>", "&lt;", "]]>"]}
    text = json_in_html(hostile)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == hostile
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_in_html({"a": float("nan")})
