"""How far a run of stage one is, how fast it goes, and how long it will take.

Not for: showing it (`twdpo.console`, `twdpo.results`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateProgress:
    """Where a run stands. seen = written + cached + duplicates + rejected + elsewhere, at any time between two windows.

    total: rows to see, None where the source does not say. elsewhere: rows of other parts (`--shard`). tokens: judge
    tokens run so far, both orders. seconds: since the run began; judging: since it first judged, over which the rates
    are taken, so that what was in the cache before does not spoil them. before: rows that were passed over until then.
    flops: what judging needed, 0 where the engine does not say; peak_flops: what the devices can do in a second.
    """

    total: int | None
    seen: int = 0
    written: int = 0
    cached: int = 0
    duplicates: int = 0
    rejected: int = 0
    elsewhere: int = 0
    truncated: int = 0
    tokens: int = 0
    seconds: float = 0.0
    judging: float = 0.0
    before: int = 0
    flops: float = 0.0
    peak_flops: float | None = None

    @property
    def pairs_per_second(self) -> float | None:
        """Pairs judged in a second, None before any was."""
        return self.written / self.judging if self.written and self.judging > 0 else None

    @property
    def tokens_per_second(self) -> float | None:
        """Judge tokens in a second, None before any pair was judged."""
        return self.tokens / self.judging if self.written and self.judging > 0 else None

    @property
    def utilisation(self) -> float | None:
        """Model FLOP utilisation, 0 to 1; None where FLOPs or the device's peak are not known, as on a CPU."""
        if not self.flops or not self.peak_flops or self.judging <= 0:
            return None
        return self.flops / (self.judging * self.peak_flops)

    @property
    def left(self) -> float | None:
        """Seconds until every row is seen, by the pace since judging began; None where nothing tells."""
        done = self.seen - self.before
        if self.total is None or not self.written or done <= 0 or self.judging <= 0:
            return None
        return max(0, self.total - self.seen) * self.judging / done

    def plus(self, other: AnnotateProgress) -> AnnotateProgress:
        """The sum of two runs, of which this one's `total` and the known peak stay."""
        names = {field.name for field in fields(self)} - {"total", "peak_flops"}
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return replace(self, peak_flops=self.peak_flops or other.peak_flops, **sums)
