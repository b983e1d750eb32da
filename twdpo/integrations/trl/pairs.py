"""Which rows of a data set are trained on: every row gets its example hash, and a reason where it is left out.

Works on map-style data sets (all rows are looked up first, so that what is missing is counted) and on streams.
Not for: their weights (`rows.py`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from twdpo.errors import DataError, MissingRows
from twdpo.integrations.trl.settings import WeightSettings
from twdpo.pipeline.train.survey import LEFT_OUT
from twdpo.preferences import Pair, parse_row
from twdpo.weights_cache import WeightsCache, read_rejects

#: Columns that a row has while it is prepared: its hash (empty where it has none), its answers, why it is no pair.
KEY, _REASON, _ROW = "twdpo_hash", "twdpo_reason", "twdpo_row"
ANSWERS = {"chosen": "twdpo_chosen", "rejected": "twdpo_rejected"}

_MISSING = "no weights in the cache (missing='drop')"


def pair_columns(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    """What must be known of a row before TRL changes its text."""
    pair = parse_row(row, index)
    if isinstance(pair, Pair):
        texts, reason = {ANSWERS["chosen"]: pair.chosen, ANSWERS["rejected"]: pair.rejected}, ""
    else:
        texts, reason = dict.fromkeys(ANSWERS.values(), ""), pair.reason
    return {KEY: pair.example_hash or "", _REASON: reason, _ROW: index} | texts


class ProcessCache:
    """The weights cache, opened by each process for itself: data loading forks or pickles what it uses."""

    def __init__(self, settings: WeightSettings) -> None:
        self._settings = settings
        self._opened: tuple[int, WeightsCache] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    @property
    def here(self) -> WeightsCache:
        """The cache as this process has it open."""
        if self._opened is None or self._opened[0] != os.getpid():
            cache = WeightsCache.open(self._settings.folder, layers=self._settings.rules.layers, text=False)
            self._opened = (os.getpid(), cache)
        return self._opened[1]


class Selection:
    """Decides for each row whether it is trained on; `left_out` counts the others by reason."""

    def __init__(self, cache: ProcessCache, missing: str) -> None:
        self.left_out: Counter[str] = Counter()
        self._cache, self._missing = cache, missing
        self._rejected = {reject.example_hash for reject in read_rejects(cache.here.folder)}

    def of(self, dataset: Any) -> Any:
        """The rows of a map-style data set that are used. Raises MissingRows, or DataError where none is left."""
        keys, reasons = dataset[KEY][:], dataset[_REASON][:]
        kept, missing = [], []
        for number, (key, reason) in enumerate(zip(keys, reasons, strict=True)):
            why = self._why_not(key, reason)
            if why is None or (why == _MISSING and self._missing == "uniform"):
                kept.append(number)
            else:
                self.left_out[why] += 1
            if why == _MISSING:
                missing.append(number)
        if missing and self._missing == "error":
            raise self._error(f"{len(missing)} of {len(keys)} pairs", missing[0], keys[missing[0]])
        if not kept:
            reasons = "; ".join(f"{count} {reason}" for reason, count in self.left_out.items())
            raise DataError(f"no pair is left to train on: {reasons or 'the data set is empty'}")
        return dataset if len(kept) == len(keys) else dataset.select(kept)

    def wants(self, row: Mapping[str, Any]) -> bool:
        """The same for one row of a stream."""
        why = self._why_not(row[KEY], row[_REASON])
        if why == _MISSING and self._missing == "error":
            raise self._error("a pair", row[_ROW], row[KEY])
        return why is None or (why == _MISSING and self._missing == "uniform")

    def _why_not(self, key: str, reason: str) -> str | None:
        if reason:
            return reason
        if key in self._cache.here:
            return None
        return LEFT_OUT if key in self._rejected else _MISSING

    def _error(self, what: str, row: int, key: str) -> MissingRows:
        verb = "has" if what == "a pair" else "have"
        return MissingRows(
            f"{what} {verb} no weights in {self._cache.here.folder} (for example row {row}, {key}); "
            "run twdpo annotate on the same data set, or pass missing='drop' or missing='uniform'"
        )
