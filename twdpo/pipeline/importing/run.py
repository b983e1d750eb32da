"""An import from end to end: rows in, weights checked and laid along the texts, rows into the cache.

Not for: what a layout's columns mean (`attentionpo.py`, `tis.py`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from twdpo.config import to_yaml
from twdpo.errors import DataError, HubUnavailable, Interrupted, UsageError
from twdpo.pipeline.importing.attentionpo import JUDGES, AttentionPO, is_attentionpo
from twdpo.pipeline.importing.config import ImportConfig
from twdpo.pipeline.importing.layout import Layout, PairWeights, UnusableWeights
from twdpo.pipeline.importing.tis import TisDpo, is_tis
from twdpo.preferences import Pair, PairStream, Reject, load, resolve
from twdpo.preferences.rows import Row
from twdpo.weights_cache import CacheWriter, WeightRow
from twdpo.weights_cache.durable import write_file

#: Pairs that are tried before anything is written.
_TRIED = 64
#: Rows between two reports of progress.
_REPORT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportProgress:
    """Where an import stands. seen = written + cached + duplicates + rejected, at any time between two rows.

    total: rows to see, None where the source does not say. truncated: of those written, cut to the judge's length.
    """

    total: int | None
    seen: int = 0
    written: int = 0
    cached: int = 0
    duplicates: int = 0
    rejected: int = 0
    truncated: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportResult:
    """What an import did: the final counts, the folder, the layout it read, and reason → pairs left out."""

    out: Path
    counts: ImportProgress
    format: str
    layers: tuple[int, ...]
    reasons: dict[str, int]


def import_weights(
    config: ImportConfig,
    *,
    on_progress: Callable[[ImportProgress], None] | None = None,
    tokenizer: Any = None,
) -> ImportResult:
    """Write the weights that a data set brings along into a cache. `tokenizer` replaces the one that `config` names.

    Raises what loading raises; DataError where columns are missing, or where most of the first pairs do not fit, which
    leaves everything as it was; RecipeMismatch where the cache holds another recipe; and Interrupted on Ctrl-C, after
    what was read has been written.
    """
    stream = load(resolve(config.dataset, config.split), limit=config.limit)
    layout = _layout(config, stream, tokenizer)
    _try(config, stream, layout)
    judge = layout.recipe.judge_model
    source = asdict(stream.source) | {"limit": config.limit}
    with CacheWriter.open(
        Path(config.out),
        layout.recipe,
        dataset={key: value for key, value in source.items() if value is not None},
        defaults={
            "attn_source": str(layout.recipe.layers[-1]),
            **({"policy_model": judge} if judge else {}),
            **({} if layout.has_sink else {"sink_fix": False}),
        },
        include_text=config.include_text,
    ) as writer:
        write_file(Path(config.out) / "import.yaml", to_yaml(config).encode())
        run = _Run(config, layout, writer, stream.total, on_progress or (lambda _progress: None))
        try:
            run.take_all(stream)
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped; {run.counts.written} pairs of this run are kept in {config.out}: "
                "run the same command again to go on"
            ) from None
    return ImportResult(
        out=Path(config.out),
        counts=run.counts,
        format=layout.name,
        layers=layout.recipe.layers,
        reasons=dict(run.reasons),
    )


class _Run:
    """The state of one import."""

    def __init__(
        self,
        config: ImportConfig,
        layout: Layout,
        writer: CacheWriter,
        total: int | None,
        on_progress: Callable[[ImportProgress], None],
    ) -> None:
        self._config, self._layout, self._writer, self._on_progress = config, layout, writer, on_progress
        self._started = time.perf_counter()
        self._met: set[str] = set()
        self.counts = ImportProgress(total=total)
        self.reasons: Counter[str] = Counter()

    def take_all(self, stream: PairStream) -> None:
        """Take every row of the stream."""
        for row, item in stream.with_rows(self._layout.columns):
            self._take(row, item)
            if self.counts.seen % _REPORT == 0:
                self._report()
        self._report()

    def _take(self, row: Row, item: Pair | Reject) -> None:
        if isinstance(item, Reject):
            self._reject(item.row, item.reason, item.example_hash)
            return
        key = item.example_hash
        if key in self._met:
            self._count("duplicates")
            return
        self._met.add(key)
        if key in self._writer.done:
            self._count("cached")
            return
        try:
            weights = self._layout.weights(row, item)
        except UnusableWeights as problem:
            self._reject(item.row, str(problem), key)
            return
        self._writer.add(_make_row(item, key, weights, include_text=self._config.include_text))
        self._count("written", truncated=int(weights.truncated))

    def _reject(self, row: int, reason: str, key: str | None) -> None:
        self._writer.reject(row, reason, key, self._config.dataset)
        self.reasons[reason] += 1
        self._count("rejected")

    def _count(self, name: str, *, truncated: int = 0) -> None:
        counts = self.counts
        step: dict[str, Any] = {name: getattr(counts, name) + 1}
        self.counts = replace(counts, seen=counts.seen + 1, truncated=counts.truncated + truncated, **step)

    def _report(self) -> None:
        self.counts = replace(self.counts, seconds=time.perf_counter() - self._started)
        self._on_progress(self.counts)


def _make_row(pair: Pair, key: str, weights: PairWeights, *, include_text: bool) -> WeightRow:
    return WeightRow(
        example_hash=key,
        chosen=weights.chosen,
        rejected=weights.rejected,
        truncated=weights.truncated,
        prompt=tuple((message.role, message.content) for message in pair.prompt) if include_text else None,
        chosen_text=pair.chosen if include_text else None,
        rejected_text=pair.rejected if include_text else None,
    )


def _layout(config: ImportConfig, stream: PairStream, tokenizer: Any) -> Layout:
    """The layout that `config` names or that the columns show, ready to read rows."""
    chosen = config.format
    if chosen == "auto":
        chosen = _recognize(config, stream.columns)
    judge = config.judge_model
    if chosen == "attentionpo":
        if config.log_ratios:
            raise UsageError("--log-ratios is for TIS-DPO's files; AttentionPO's weights are attention")
        judge = judge or JUDGES.get(stream.source.location)
        return AttentionPO(
            stream.columns,
            tokenizer=lambda: tokenizer or _load_tokenizer(config, config.tokenizer or judge),
            judge_model=judge,
            layers=config.layers,
        )
    if config.layers is not None:
        raise UsageError("--layers is for AttentionPO's data sets; TIS-DPO's files have one weight for each token")
    return TisDpo(
        stream.columns,
        tokenizer=lambda: tokenizer or _load_tokenizer(config, config.tokenizer or judge),
        judge_model=judge,
        log_ratios=config.log_ratios,
    )


def _recognize(config: ImportConfig, columns: tuple[str, ...]) -> str:
    found = [name for name, fits in (("attentionpo", is_attentionpo), ("tis", is_tis)) if fits(columns)]
    if len(found) > 1:
        raise UsageError(f"{config.dataset} has the columns of both layouts; choose one with --format")
    if not found:
        listed = ", ".join(columns[:12]) + (", ..." if len(columns) > 12 else "")
        raise DataError(
            f"{config.dataset} has the columns {listed or '(none)'}; expected `chosen_tokens` and `chosen_weights_31` "
            "(AttentionPO) or `chosen_weight` (TIS-DPO), and the same for rejected"
        )
    return found[0]


def _load_tokenizer(config: ImportConfig, name: str | None) -> Any:
    from twdpo.pipeline.models import load_tokenizer

    if name is None:
        raise UsageError(
            f"{config.dataset} does not say whose tokens its weights belong to; "
            "pass --tokenizer, the name or folder of the model that made them"
        )
    try:
        return load_tokenizer(name)
    except HubUnavailable:
        raise HubUnavailable(
            f"cannot get the tokenizer {name!r} from the hub (no connection, no such repository, or it needs a login); "
            "pass a local folder with --tokenizer, or set HF_TOKEN"
        ) from None


def _try(config: ImportConfig, stream: PairStream, layout: Layout) -> None:
    """Refuse a data set most of whose first pairs do not fit.

    Of another tokenizer's tokens a few happen to fit, which must not go in, and raw log-ratios of short answers happen
    to be weights. Raises DataError, also where there is no row at all.
    """
    rows, tried, reasons = 0, 0, Counter[str]()
    for row, item in stream.with_rows(layout.columns):
        rows += 1
        if isinstance(item, Reject):
            continue
        tried += 1
        try:
            layout.weights(row, item)
        except UnusableWeights as problem:
            reasons[str(problem)] += 1
        if tried == _TRIED:
            break
    if rows == 0:
        raise DataError(f"{config.dataset} holds no rows; pass a data set that has some")
    failed = reasons.total()
    if 2 * failed > tried:
        (reason, count), *_ = reasons.most_common(1)
        raise DataError(
            f"{failed} of the first {tried} pairs of {config.dataset} cannot be imported, {count} of them because "
            f"{reason}; nothing was written"
        )
