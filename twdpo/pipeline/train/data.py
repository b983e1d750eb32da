"""Join pairs with their weights: every pair becomes an example, is held out, or is left out with a reason.

The data set is read twice: once for the hashes, to know what is missing before anything is rendered, and once for the
text. Not for: the order in which examples are seen (`batches.py`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twdpo.errors import DataError, MissingRows, UsageError
from twdpo.pipeline.train.config import TrainConfig, heldout_count, parse_eval_split
from twdpo.pipeline.train.progress import TrainProgress
from twdpo.pipeline.train.render import RenderedSide, Renderer, RenderError
from twdpo.pipeline.train.weights import WeightRules, training_weights, uniform_weights
from twdpo.preferences import Message, Pair, Reject, Source, draw_rows, load, resolve
from twdpo.weights_cache import SideWeights, WeightRow, WeightsCache, read_rejects

#: Pairs whose weights are fetched together.
_WINDOW = 256

_NOT_ANNOTATED = "not among the pairs that were annotated"
_LEFT_OUT = "left out of the cache (see its rejects.jsonl)"
_DROPPED = "no weights in the cache (--missing drop)"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """One response: ids int32[T], of which the first `prompt_length` are the prompt, and a weight for each other one.

    weights: float32[T − prompt_length].
    """

    ids: NDArray[np.int32]
    prompt_length: int
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """A pair ready to be trained on; `row` is its place in its data set."""

    example_hash: str
    row: int
    chosen: Side
    rejected: Side

    @property
    def longest(self) -> int:
        """Tokens of the longer response, prompt included."""
        return max(len(self.chosen.ids), len(self.rejected.ids))

    @property
    def tokens(self) -> int:
        """Tokens of both responses, prompts included."""
        return len(self.chosen.ids) + len(self.rejected.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """The examples of a run. skipped: reason → pairs. uniform: pairs without a row, trained with even weights."""

    train: list[Example]
    heldout: list[Example]
    skipped: Mapping[str, int]
    uniform: int = 0
    truncated: int = 0


def digest(examples: list[Example]) -> str:
    """16 hex digits over what is trained on: the pairs in their order, their tokens and weights."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.example_hash.encode())
        for side in (example.chosen, example.rejected):
            digest.update(side.ids.tobytes() + side.weights.tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Rows to read, in order: a source, or the texts that the cache holds itself.

    asked: the (limit, seed) of each run that annotated the source, where none took the whole; else empty.
    """

    source: Source | None
    heldout: bool = False
    asked: tuple[tuple[int, int | None], ...] = ()


@dataclass(slots=True, kw_only=True)
class _Survey:
    """What the first reading found: one entry of `fates` for each row read, in order; None for a row not used."""

    fates: list[str | None] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    prompts: list[bytes] = field(default_factory=list)
    missing: list[tuple[str, int]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    pairs: int = 0


def join(config: TrainConfig, cache: WeightsCache, renderer: Renderer, progress: TrainProgress) -> Examples:
    """All examples of a run, in the data set's order.

    Raises MissingRows naming how many pairs have no weights (with `missing: error`), UsageError where the held-out
    part cannot be had, and DataError where nothing is left to train on.
    """
    rules = WeightRules(
        layers=cache.layers, sink_fix=config.sink_fix, uniform_mix=config.uniform_mix, uncovered=config.uncovered
    )
    parts = _parts(config, cache)
    progress.start("pairs", None)
    survey = _survey(config, cache, parts)
    _settle_missing(config, cache, survey)
    _hold_out(config, survey)
    cache.prepare_for(survey.hashes, _WINDOW)
    examples = _Joiner(cache, renderer, rules, survey).run(_rows(config, cache, parts), progress)
    progress.finish("pairs")
    if not examples.train:
        reasons = (
            "; ".join(f"{count} {reason}" for reason, count in examples.skipped.items()) or "the data set is empty"
        )
        raise DataError(f"no pair is left to train on: {reasons}")
    return examples


def _parts(config: TrainConfig, cache: WeightsCache) -> list[_Part]:
    """What to read: the data set that was named, else the cache's own texts, else what its manifest names."""
    eval_split = parse_eval_split(config.eval_split)
    split_name = eval_split if isinstance(eval_split, str) and eval_split != "auto" else None
    if config.dataset is not None:
        parts = [_Part(source=resolve(config.dataset, config.split))]
    else:
        parts = _manifest_parts(cache.manifest.sources, config.split)
    if split_name is not None:
        named = {replace(p.source, split=split_name) for p in parts if p.source is not None}
        if not named:
            raise UsageError(f"--eval-split {split_name} names a split, but no data set is known; pass --dataset")
        parts = [p for p in parts if p.source is None or p.source.split != split_name]
        parts += [_Part(source=source, heldout=True) for source in sorted(named, key=lambda s: s.name)]
    if config.dataset is None and cache.manifest.include_text:
        parts = [_Part(source=None), *(p for p in parts if p.heldout)]
    if not any(not p.heldout for p in parts):
        raise UsageError(f"{config.weights} names no data set; pass --dataset")
    # What is held out is read first, so that its pairs can be kept out of training.
    return sorted(parts, key=lambda part: not part.heldout)


def _manifest_parts(sources: Iterable[Mapping[str, Any]], split: str | None) -> list[_Part]:
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
        parts.append(_Part(source=source, asked=tuple(limited) if len(limited) == len(asked) else ()))
    return parts


def _rows(config: TrainConfig, cache: WeightsCache, parts: Iterable[_Part]) -> Iterator[tuple[_Part, Pair | Reject]]:
    left = config.limit
    for part in parts:
        for row in load(part.source) if part.source is not None else _texts(cache):
            if not part.heldout and left is not None:
                if left == 0:
                    return
                left -= 1
            yield part, row


def _asked_rows(part: _Part) -> list[Collection[int]]:
    """The rows of a source that stage one was asked for, run by run."""
    if part.source is None:
        return []
    stream = load(part.source)
    return [draw_rows(stream, limit, seed) for limit, seed in part.asked]


def _texts(cache: WeightsCache) -> Iterator[Pair]:
    """The pairs whose text the cache holds."""
    for number, row in enumerate(cache.rows()):
        if row.prompt is not None and row.chosen_text is not None and row.rejected_text is not None:
            prompt = tuple(Message(role=role, content=content) for role, content in row.prompt)
            yield Pair(prompt=prompt, chosen=row.chosen_text, rejected=row.rejected_text, row=number)


def _survey(config: TrainConfig, cache: WeightsCache, parts: list[_Part]) -> _Survey:
    """Read all hashes and decide what becomes of every row."""
    survey = _Survey()
    left_out = {reject.example_hash for reject in read_rejects(cache.folder)}
    asked = {part: _asked_rows(part) for part in parts if part.asked}
    for part, row in _rows(config, cache, parts):
        key = row.example_hash or ""
        fate: str | None = None
        if isinstance(row, Reject):
            survey.skipped[row.reason] += 1
        elif key in cache:
            fate = "heldout" if part.heldout else "train"
        elif key in left_out:
            survey.skipped[_LEFT_OUT] += 1
        elif part in asked and not any(row.row in rows for rows in asked[part]):
            survey.skipped[_NOT_ANNOTATED] += 1
        else:
            fate = "missing heldout" if part.heldout else "missing"
            survey.missing.append((key, row.row))
        survey.pairs += isinstance(row, Pair)
        survey.fates.append(fate)
        survey.hashes.append(key)
        survey.prompts.append(_prompt_key(config.seed, row.prompt) if isinstance(row, Pair) else b"")
    return survey


def _settle_missing(config: TrainConfig, cache: WeightsCache, survey: _Survey) -> None:
    """What `--missing` makes of pairs without weights."""
    if not survey.missing:
        return
    if config.missing == "error":
        key, row = survey.missing[0]
        raise MissingRows(
            f"{len(survey.missing)} of {survey.pairs} pairs have no weights in {cache.folder} (for example row {row}, "
            f"{key}); run twdpo annotate on the same data set, or pass --missing drop or --missing uniform"
        )
    if config.missing == "drop":
        survey.skipped[_DROPPED] += len(survey.missing)
    for i, fate in enumerate(survey.fates):
        if fate is not None and fate.startswith("missing"):
            survey.fates[i] = None if config.missing == "drop" else fate.replace("missing", "uniform")


def _hold_out(config: TrainConfig, survey: _Survey) -> None:
    """Move the held-out part out of training: what the named split holds, or whole prompts by their hash."""
    named = {key for key, fate in zip(survey.hashes, survey.fates, strict=True) if fate and "heldout" in fate}
    training = [i for i, fate in enumerate(survey.fates) if fate in ("train", "uniform")]
    for i in training:
        if survey.hashes[i] in named:
            survey.fates[i] = None
    wanted = heldout_count(parse_eval_split(config.eval_split), len(training))
    # All pairs of a prompt go the same way, and the choice depends on their text and the seed only.
    counts = Counter(survey.prompts[i] for i in training)
    chosen: set[bytes] = set()
    for prompt in sorted(counts):
        if wanted <= 0 or len(chosen) + 1 >= len(counts):
            break
        if counts[prompt] <= wanted:
            chosen.add(prompt)
            wanted -= counts[prompt]
    for i in training:
        fate = survey.fates[i]
        if survey.prompts[i] in chosen and fate is not None:
            survey.fates[i] = "heldout" if fate == "train" else "uniform heldout"


def _prompt_key(seed: int, prompt: tuple[Message, ...]) -> bytes:
    text = "\x00".join(part for m in prompt for part in (m.role, m.content))
    return hashlib.sha256(f"{seed}\x00{text}".encode("utf-8", "surrogatepass")).digest()[:12]


class _Joiner:
    """The second reading: render what is used and give it its weights."""

    def __init__(self, cache: WeightsCache, renderer: Renderer, rules: WeightRules, survey: _Survey) -> None:
        self._cache, self._renderer, self._rules, self._survey = cache, renderer, rules, survey
        self._skipped = Counter(survey.skipped)
        self._train: list[Example] = []
        self._heldout: list[Example] = []
        self._uniform = self._truncated = 0

    def run(self, rows: Iterator[tuple[_Part, Pair | Reject]], progress: TrainProgress) -> Examples:
        window: list[tuple[Pair, str, str]] = []
        for number, (_, pair) in enumerate(rows):
            fate = self._survey.fates[number]
            if fate is not None and isinstance(pair, Pair):
                window.append((pair, self._survey.hashes[number], fate))
            if len(window) == _WINDOW:
                self._join(window)
                progress.advance("pairs", len(window))
                window = []
        self._join(window)
        progress.advance("pairs", len(window))
        return Examples(
            train=self._train,
            heldout=self._heldout,
            skipped=dict(self._skipped),
            uniform=self._uniform,
            truncated=self._truncated,
        )

    def _join(self, window: list[tuple[Pair, str, str]]) -> None:
        with_rows = [key for _, key, fate in window if not fate.startswith("uniform")]
        found: dict[str, WeightRow] = dict(zip(with_rows, self._cache.fetch(with_rows), strict=True))
        for pair, key, fate in window:
            try:
                rendered = self._renderer.render(pair)
            except RenderError as error:
                self._skipped[str(error)] += 1
                continue
            row = found.get(key)
            example = Example(
                example_hash=key,
                row=pair.row,
                chosen=self._side(rendered.chosen, row.chosen if row else None),
                rejected=self._side(rendered.rejected, row.rejected if row else None),
            )
            (self._heldout if "heldout" in fate else self._train).append(example)
            self._uniform += row is None
            self._truncated += example.longest >= self._renderer.max_length

    def _side(self, side: RenderedSide, stored: SideWeights | None) -> Side:
        weights = uniform_weights(side, self._rules) if stored is None else training_weights(stored, side, self._rules)
        return Side(ids=side.ids, prompt_length=side.prompt_length, weights=weights)
