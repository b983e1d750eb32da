"""What every published layout offers, and the reading of numbers out of its rows.

Not for: a layout's own rules (`attentionpo.py`, `tis.py`) or the run (`run.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twdpo.preferences import Pair
from twdpo.preferences.messages import kind_of
from twdpo.preferences.rows import Row
from twdpo.weights_cache import Recipe, SideWeights


class UnusableWeights(ValueError):
    """This one pair's weights cannot be imported; the message is the reason that `rejects.jsonl` gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairWeights:
    """The weights of one pair; truncated: whether the judge saw the beginnings of its answers only."""

    chosen: SideWeights
    rejected: SideWeights
    truncated: bool = False


class Layout(ABC):
    """How one kind of data set writes its weights down: the columns to read, the recipe, and rows to weights."""

    name: str
    columns: tuple[str, ...]
    recipe: Recipe
    #: Whether weight collects on an answer's first token, as attention does, so that stage two's sink fix has a place.
    has_sink = True

    @abstractmethod
    def weights(self, row: Row, pair: Pair) -> PairWeights:
        """The weights of `pair`, which `row` holds. Raises UnusableWeights."""


def numbers(row: Row, name: str) -> NDArray[np.float64]:
    """The numbers in the column `name`, float64[n], at least one. Raises UnusableWeights."""
    values = _array(row, name, "iuf").astype(np.float64)
    if not np.all(np.isfinite(values)):
        raise UnusableWeights(f"`{name}` holds a number that is not finite")
    return values


def whole_numbers(row: Row, name: str) -> list[int]:
    """The whole numbers in the column `name`, at least one. Raises UnusableWeights."""
    return [int(value) for value in _array(row, name, "iu")]


def mean_one(values: NDArray[np.float64], name: str) -> NDArray[np.float32]:
    """`values` float64[n], none of them negative, scaled to mean 1; UnusableWeights where all are zero."""
    total = values.sum()
    if not 0 < total < np.inf:
        raise UnusableWeights(f"`{name}` is zero throughout" if total == 0 else f"the sum of `{name}` is not finite")
    scaled: NDArray[np.float32] = (values / total * len(values)).astype(np.float32)
    return scaled


def _array(row: Row, name: str, kinds: str) -> NDArray[np.generic]:
    value = row.get(name)
    if not isinstance(value, list):
        raise UnusableWeights(f"`{name}` is {kind_of(value)}{'' if value is None else ', not a list of numbers'}")
    if not value:
        raise UnusableWeights(f"`{name}` is an empty list")
    try:
        array: NDArray[np.generic] = np.array(value)
    except (ValueError, OverflowError):  # lists of different lengths
        array = np.empty((0, 0))
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise UnusableWeights(f"`{name}` holds something other than {'whole ' if 'f' not in kinds else ''}numbers")
    return array
