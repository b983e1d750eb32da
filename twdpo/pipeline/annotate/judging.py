"""Judging: windows of pairs through the engine and into the cache, reading ahead of it and writing behind it.

The engine runs in the calling thread. Not for: which pairs are judged (`selection.py`, `blocks.py`).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from twdpo.pipeline.annotate.ahead import Ahead, Behind
from twdpo.pipeline.annotate.blocks import Block, windows
from twdpo.pipeline.annotate.progress import AnnotateProgress
from twdpo.pipeline.annotate.sources.base import WeightSource
from twdpo.preferences import Pair, Reject
from twdpo.weights_cache import CacheWriter, WeightRow


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """A window, what was found for each pair, and for how long judging had gone on when that was there."""

    window: Block
    found: Sequence[Any]
    judging: float


class Judging:
    """A weight source at work on a cache, and the counts of what it did. `dataset` names the rejects' data set."""

    def __init__(
        self,
        source: WeightSource[Any, Any],
        writer: CacheWriter,
        *,
        dataset: str,
        total: int | None,
        on_progress: Callable[[AnnotateProgress], None] = lambda _progress: None,
    ) -> None:
        self._source, self._writer, self._dataset, self._on_progress = source, writer, dataset, on_progress
        self._started = time.perf_counter()
        self._began: float | None = None
        self._behind: Behind[_Judged] = Behind(self._keep)
        self.counts = AnnotateProgress(total=total, peak_flops=source.peak_flops)
        self.reasons: Counter[str] = Counter()
        #: Pairs with a verdict, and those of them whose chosen answer got more than half, mean of the orders.
        self.verdicts, self.preferred = 0, 0

    def run(self, blocks: Iterable[Block], *, window: int) -> None:
        """Judge the pairs of `blocks`, at least `window` at a time; call it once."""
        prepared = windows(blocks, self._source, least=window, enough=self._source.window_tokens)
        with self._behind as behind, Ahead(prepared) as ahead:
            for ready in ahead:
                behind.put(self._judge_window(ready))
                self._report()
        self._report()

    def settle(self) -> None:
        """After an interrupt: wait until all that was judged is with the writer and counted."""
        self._behind.finish()

    def _judge_window(self, window: Block) -> _Judged:
        if not window.pairs:
            return _Judged(window=window, found=[], judging=0.0)
        if self._began is None:
            self._began = time.perf_counter()
        found = self._source.read(window.items)
        return _Judged(window=window, found=found, judging=time.perf_counter() - self._began)

    def _keep(self, judged: _Judged) -> None:
        """Write a window's rows and rejects, and count it; in the thread behind."""
        window = judged.window
        for reject in window.rejects:
            self._reject(reject)
        passed = window.rows - len(window.pairs)
        before = self.counts.seen + passed if not self.counts.written else self.counts.before
        self._count(
            seen=passed,
            cached=window.cached,
            duplicates=window.duplicates,
            rejected=len(window.rejects),
            elsewhere=window.elsewhere,
        )
        if not window.pairs:
            return
        for pair, item, found in zip(window.pairs, window.items, judged.found, strict=True):
            row = self._source.row(pair, item, found)
            self._writer.add(_with_texts(row, pair) if self._writer.include_text else row)
            preference = (row.judge_prob_cr + row.judge_prob_rc) / 2
            self.verdicts += not math.isnan(preference)
            self.preferred += preference > 0.5
            self._count(seen=1, written=1, truncated=int(row.truncated), tokens=self._source.size(item))
        flops = self._source.flops(window.items)
        self.counts = replace(
            self.counts, judging=judged.judging, before=before, flops=self.counts.flops + (flops or 0.0)
        )

    def _reject(self, reject: Reject) -> None:
        self._writer.reject(reject.row, reject.reason, reject.example_hash, self._dataset)
        self.reasons[reject.reason] += 1

    def _count(self, **steps: int) -> None:
        self.counts = replace(self.counts, **{name: getattr(self.counts, name) + n for name, n in steps.items()})

    def _report(self) -> None:
        self._on_progress(replace(self.counts, seconds=time.perf_counter() - self._started))

    @property
    def final(self) -> AnnotateProgress:
        """The counts with the time up to now."""
        return replace(self.counts, seconds=time.perf_counter() - self._started)


def _with_texts(row: WeightRow, pair: Pair) -> WeightRow:
    prompt = tuple((message.role, message.content) for message in pair.prompt)
    return replace(row, prompt=prompt, chosen_text=pair.chosen, rejected_text=pair.rejected)
