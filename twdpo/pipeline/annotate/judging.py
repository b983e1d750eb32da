"""Judging: windows of pairs through the engine and into the cache, reading ahead of it and writing behind it.

The engine runs in the calling thread. Not for: which pairs are judged (`selection.py`, `blocks.py`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from twdpo.pipeline.annotate.ahead import Ahead, Behind
from twdpo.pipeline.annotate.blocks import Block, windows
from twdpo.pipeline.annotate.engines.base import Reading
from twdpo.pipeline.annotate.judge import Judge
from twdpo.pipeline.annotate.progress import AnnotateProgress
from twdpo.pipeline.annotate.rows import make_row
from twdpo.preferences import Reject
from twdpo.weights_cache import CacheWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """A window with its readings, two a pair, and for how long judging had gone on when they were there."""

    window: Block
    readings: list[Reading]
    judging: float


class Judging:
    """A judge at work on a cache, and the counts of what it did. `dataset` names the rejects' data set."""

    def __init__(
        self,
        judge: Judge,
        writer: CacheWriter,
        *,
        dataset: str,
        total: int | None,
        on_progress: Callable[[AnnotateProgress], None] = lambda _progress: None,
    ) -> None:
        self._judge, self._writer, self._dataset, self._on_progress = judge, writer, dataset, on_progress
        self._started = time.perf_counter()
        self._began: float | None = None
        self._behind: Behind[_Judged] = Behind(self._keep)
        self.counts = AnnotateProgress(total=total, peak_flops=judge.engine.peak_flops)
        self.reasons: Counter[str] = Counter()
        #: Pairs of which the judge gave the chosen answer more than half, mean of the orders.
        self.preferred = 0

    def run(self, blocks: Iterable[Block], *, window: int) -> None:
        """Judge the pairs of `blocks`, at least `window` at a time; call it once."""
        engine = self._judge.engine
        prepared = windows(blocks, self._judge.builder, least=window, enough=engine.window_tokens)
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
            return _Judged(window=window, readings=[], judging=0.0)
        if self._began is None:
            self._began = time.perf_counter()
        prompts = [prompt for both in window.prompts for prompt in both]
        readings = self._judge.engine.read(prompts, self._judge.layers, self._judge.verdict_ids)
        return _Judged(window=window, readings=readings, judging=time.perf_counter() - self._began)

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
        for i, (pair, both) in enumerate(zip(window.pairs, window.prompts, strict=True)):
            readings = (judged.readings[2 * i], judged.readings[2 * i + 1])
            row = make_row(pair, both, readings, self._judge.layers, include_text=self._writer.include_text)
            self._writer.add(row)
            self.preferred += (row.judge_prob_cr + row.judge_prob_rc) / 2 > 0.5
            self._count(seen=1, written=1, truncated=int(row.truncated), tokens=sum(len(prompt.ids) for prompt in both))
        prompts = [prompt for both in window.prompts for prompt in both]
        flops = self._judge.engine.flops(prompts, self._judge.layers, verdict=self._judge.verdict_ids is not None)
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
