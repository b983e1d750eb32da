"""Rounding of mantissas, against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from twdpo.weights_cache.mantissa import is_rounded, round_mantissa

LARGEST = float(np.finfo(np.float32).max)


def nearest(value: float) -> float:
    """The oracle: the nearest number of 12 significant bits, ties to the even one, in exact fractions."""
    if value == 0:
        return value
    exponent = math.floor(math.log2(abs(value)))
    # log2 rounds near powers of two.
    while Fraction(2) ** exponent > abs(Fraction(value)):
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= abs(Fraction(value)):
        exponent += 1
    unit = Fraction(2) ** (max(exponent, -126) - 11)
    return float(round(Fraction(value) / unit) * unit)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**127), max_value=2.0**127))
@example(1 + 2**-12)
@example(1 + 3 * 2**-12)
@example(2 - 2**-20)
@example(2.0**-149)
@example(2.0**-126 - 2.0**-149)
def test_rounds_to_the_nearest_even(value: float) -> None:
    assert float(round_mantissa(value)) == nearest(value)


@given(st.floats(width=32, allow_nan=False, min_value=2.0**-126))
def test_the_relative_error_is_below_one_in_4096(value: float) -> None:
    rounded = float(round_mantissa(value))
    assert abs(rounded - value) < value / 4096 if math.isfinite(value) else rounded == value


@given(st.floats(width=32))
def test_rounding_keeps_sign_and_kind_and_changes_nothing_twice(value: float) -> None:
    once = round_mantissa(value)
    assert np.isnan(once) == math.isnan(value)
    assert np.isinf(once) == math.isinf(value)
    assert np.isnan(value) or np.signbit(once) == (math.copysign(1, value) < 0)
    assert is_rounded(np.atleast_1d(once)) or math.isnan(value)
    assert round_mantissa(once).tobytes() == once.tobytes()


@given(st.floats(width=32, min_value=0, max_value=LARGEST), st.floats(width=32, min_value=0, max_value=LARGEST))
def test_order_is_kept(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert round_mantissa(low) <= round_mantissa(high)


def test_the_largest_number_stays_finite() -> None:
    assert np.all(np.isfinite(round_mantissa([LARGEST, -LARGEST])))


def test_shapes_and_inputs_are_left_alone() -> None:
    values = np.linspace(0, 3, 12, dtype=np.float32).reshape(3, 4)
    before = values.copy()
    assert round_mantissa(values[:, ::2]).shape == (3, 2)
    assert np.array_equal(values, before)
    assert not is_rounded(values)


def test_how_many_bits_are_used_can_be_asked() -> None:
    values = np.array([1 + 2**-12], dtype=np.float32)
    assert is_rounded(values, 12)
    assert not is_rounded(values, 11)
