"""What a run reads: which data sets, which part of them, and in which order.

Not for: what becomes of each row (`survey.py`, `streamed.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from twdpo.errors import UsageError
from twdpo.pipeline.train.config import TrainConfig, parse_eval_split
from twdpo.preferences import Message, Pair, Reject, Source, draw_rows, load, resolve
from twdpo.weights_cache import WeightRow, WeightsCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows to read, in order: a source, or the texts that the cache holds itself.

    asked: the (limit, seed) of each run that annotated the source, where none took the whole; else empty.
    """

    source: Source | None
    heldout: bool = False
    asked: tuple[tuple[int, int | None], ...] = ()


def parts_of(config: TrainConfig, cache: WeightsCache) -> list[Part]:
    """What to read: the data set that was named, else the cache's own texts, else what its manifest names."""
    eval_split = parse_eval_split(config.eval_split)
    split_name = eval_split if isinstance(eval_split, str) and eval_split != "auto" else None
    if config.dataset is not None:
        parts = [Part(source=resolve(config.dataset, config.split))]
    else:
        parts = _manifest_parts(cache.manifest.sources, config.split)
    if split_name is not None:
        named = {replace(p.source, split=split_name) for p in parts if p.source is not None}
        if not named:
            raise UsageError(f"--eval-split {split_name} names a split, but no data set is known; pass --dataset")
        parts = [p for p in parts if p.source is None or p.source.split != split_name]
        parts += [Part(source=source, heldout=True) for source in sorted(named, key=lambda s: s.name)]
    if config.dataset is None and cache.manifest.include_text:
        parts = [Part(source=None), *(p for p in parts if p.heldout)]
    if not any(not p.heldout for p in parts):
        raise UsageError(f"{config.weights} names no data set; pass --dataset")
    # What is held out is read first, so that its pairs can be kept out of training.
    return sorted(parts, key=lambda part: not part.heldout)


def _manifest_parts(sources: Iterable[Mapping[str, Any]], split: str | None) -> list[Part]:
    """Each data set of the manifest once, with what of it was asked for."""
    known = {f.name for f in fields(Source)}
    runs: dict[Source, list[tuple[int | None, int | None]]] = {}
    for entry in sources:
        source = Source(**{name: value for name, value in entry.items() if name in known})
        source = source if split is None else replace(source, split=split)
        runs.setdefault(source, []).append((entry.get("limit"), entry.get("seed")))
    parts = []
    for source, asked in runs.items():
        limited = [(limit, seed) for limit, seed in asked if limit is not None]
        parts.append(Part(source=source, asked=tuple(limited) if len(limited) == len(asked) else ()))
    return parts


def rows_of(config: TrainConfig, cache: WeightsCache, parts: Iterable[Part]) -> Iterator[tuple[Part, Pair | Reject]]:
    """All rows of `parts`, those to train on up to --limit."""
    left = config.limit
    for part in parts:
        for row in load(part.source) if part.source is not None else texts(cache):
            if not part.heldout and left is not None:
                if left == 0:
                    return
                left -= 1
            yield part, row


def asked_rows(part: Part) -> list[Collection[int]]:
    """The rows of a source that stage one was asked for, run by run."""
    if part.source is None:
        return []
    stream = load(part.source)
    return [draw_rows(stream, limit, seed) for limit, seed in part.asked]


def texts(cache: WeightsCache) -> Iterator[Pair]:
    """The pairs whose text the cache holds."""
    for number, row in enumerate(cache.rows()):
        if (pair := text_of(row, number)) is not None:
            yield pair


def text_of(row: WeightRow, number: int) -> Pair | None:
    """The pair of a row that came with its text."""
    if row.prompt is None or row.chosen_text is None or row.rejected_text is None:
        return None
    prompt = tuple(Message(role=role, content=content) for role, content in row.prompt)
    return Pair(prompt=prompt, chosen=row.chosen_text, rejected=row.rejected_text, row=number)
