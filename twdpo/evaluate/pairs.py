"""Which pairs a policy is evaluated on, and whether it was trained on any of them.

By default exactly those that its run held out, as the run itself decides them. Not for: measuring (`heldout.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from twdpo.errors import DataError, MissingRows, TwdpoError, UsageError
from twdpo.evaluate.config import RULES, EvalConfig
from twdpo.evaluate.trained import Run
from twdpo.pipeline.train.config import TrainConfig, names_split
from twdpo.pipeline.train.data import WINDOW, Example, Joiner, Side
from twdpo.pipeline.train.parts import parts_of, rows_of
from twdpo.pipeline.train.processes import Alone
from twdpo.pipeline.train.progress import TrainProgress
from twdpo.pipeline.train.render import RenderedSide, Renderer, RenderError
from twdpo.pipeline.train.streamed import StreamedFeed
from twdpo.pipeline.train.survey import prompt_key, survey
from twdpo.preferences import Pair, Reject, load, resolve
from twdpo.weights_cache import Manifest, WeightsCache
from twdpo.weights_cache.transforms import parse_attn_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How many pairs were also trained on, and how many others share a prompt with one that was; None: not known."""

    pairs: int | None = None
    prompts: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldoutPairs:
    """Pairs as tokens, beside their texts.

    rules: whose attention their weights are and how they were read, None where these are no cache's. skipped: reason →
    pairs.
    """

    examples: list[Example]
    pairs: list[Pair]
    rules: Mapping[str, Any] | None
    what: str
    overlap: Overlap
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def weighted(self) -> bool:
        """Whether the weights are a cache's."""
        return self.rules is not None


def heldout_pairs(config: EvalConfig, run: Run | None, renderer: Renderer) -> HeldoutPairs:
    """The pairs that `config` asks for.

    Raises UsageError where nothing says which, DataError where none can be used, MissingRows where weights are wanted
    that the cache lacks, and CacheError.
    """
    if config.dataset is not None:
        found = _named(config, run, renderer)
    elif run is None:
        raise UsageError(
            f"{config.model} was not written by twdpo train (no train.yaml), so which pairs it was not trained on is "
            "not known; pass --dataset"
        )
    else:
        found = _held_out(config, run, renderer)
    if not found.examples:
        reasons = "; ".join(f"{count} {reason}" for reason, count in found.skipped.items())
        raise DataError(f"no pair is left to evaluate on: {reasons or 'the data set is empty'}")
    return found


def _held_out(config: EvalConfig, run: Run, renderer: Renderer) -> HeldoutPairs:
    """What the run held out, with its weights."""
    trained = _as_trained(config, run)
    with _open(trained) as cache:
        rules = _read_by(trained, cache)
        if trained.streaming:
            examples, pairs, skipped = _of_stream(trained, cache, renderer)
        else:
            examples, pairs, skipped = _of_survey(trained, cache, renderer)
    if not examples and not skipped:
        raise UsageError(f"the run of {run.file} held out no pairs; pass --dataset with pairs it was not trained on")
    return HeldoutPairs(
        examples=examples[: config.limit],
        pairs=pairs[: config.limit],
        rules=rules,
        what=f"held out by the run ({run.file})",
        overlap=_overlap(trained, pairs[: config.limit]) if names_split(trained) else Overlap(pairs=0, prompts=0),
        skipped=skipped,
    )


def _of_survey(
    trained: TrainConfig, cache: WeightsCache, renderer: Renderer
) -> tuple[list[Example], list[Pair], Counter[str]]:
    parts = parts_of(trained, cache)
    fates = survey(trained, cache, parts).fates
    rows = (
        (row, "uniform" in str(fate))
        for fate, (_, row) in zip(fates, rows_of(trained, cache, parts), strict=True)
        if fate is not None and "heldout" in fate and isinstance(row, Pair)
    )
    return _join(rows, Joiner(trained, cache, renderer))


def _of_stream(
    trained: TrainConfig, cache: WeightsCache, renderer: Renderer
) -> tuple[list[Example], list[Pair], Counter[str]]:
    feed = StreamedFeed(trained, cache, renderer, Alone(), TrainProgress())
    try:
        examples = feed.heldout.mine
    finally:
        feed.close()
    wanted = {example.example_hash for example in examples}
    texts: dict[str, Pair] = {}
    for _, row in rows_of(trained, cache, parts_of(trained, cache)):
        if isinstance(row, Pair) and row.example_hash in wanted:
            texts.setdefault(row.example_hash, row)
        if len(texts) == len(wanted):
            break
    return examples, [texts[example.example_hash] for example in examples], Counter()


def _named(config: EvalConfig, run: Run | None, renderer: Renderer) -> HeldoutPairs:
    """The pairs of a data set, with weights where a cache is named."""
    source = resolve(str(config.dataset), config.split)
    skipped: Counter[str] = Counter()
    pairs: list[Pair] = []
    for row in islice(load(source), config.limit):
        if isinstance(row, Reject):
            skipped[row.reason] += 1
        else:
            pairs.append(row)
    rules = None
    if config.weights is None:
        examples, pairs, reasons = _plain(pairs, renderer)
    else:
        trained = _rules(config, run)
        with _open(trained) as cache:
            rules = _read_by(trained, cache)
            missing = cache.missing([pair.example_hash for pair in pairs])
            if missing:
                raise MissingRows(
                    f"{len(missing)} of {len(pairs)} pairs have no weights in {config.weights} (for example "
                    f"{missing[0]}); run twdpo annotate on {config.dataset}, or leave --weights out for plain figures"
                )
            examples, pairs, reasons = _join(((pair, False) for pair in pairs), Joiner(trained, cache, renderer))
    skipped.update(reasons)
    split = f", split {config.split}" if config.split else ""
    return HeldoutPairs(
        examples=examples,
        pairs=pairs,
        rules=rules,
        what=f"{config.dataset}{split}",
        overlap=_overlap(run.config, pairs) if run is not None else Overlap(),
        skipped=skipped,
    )


def _as_trained(config: EvalConfig, run: Run) -> TrainConfig:
    """The run's configuration, with what was given now over it."""
    trained = replace(_rules(config, run), weights=config.weights or run.config.weights)
    if not Path(trained.weights).is_dir():
        raise UsageError(
            f"{trained.weights}, the weights of the run, are not there (seen from this folder); pass --weights, or "
            "--dataset with pairs of your own"
        )
    return trained


def _rules(config: EvalConfig, run: Run | None) -> TrainConfig:
    """How weights are read, as a configuration of training."""
    base = run.config if run is not None else TrainConfig()
    changes: dict[str, object] = {**config.rules}
    if config.weights is not None:
        changes["weights"] = config.weights
    return replace(base, **changes)  # type: ignore[arg-type]


def _open(trained: TrainConfig) -> WeightsCache:
    layers = parse_attn_source(trained.attn_source, Manifest.load(Path(trained.weights)).recipe.layers)
    return WeightsCache.open(trained.weights, layers=layers)


def _read_by(trained: TrainConfig, cache: WeightsCache) -> dict[str, Any]:
    """What decides the weights of a pair's tokens: the cache's recipe, and how it is read."""
    return {"recipe": cache.manifest.fingerprint, **{name: getattr(trained, name) for name in RULES}}


def _join(rows: Iterable[tuple[Pair, bool]], joiner: Joiner) -> tuple[list[Example], list[Pair], Counter[str]]:
    """Pairs, each with whether its weights are even, as examples; those that cannot be are counted by the reason."""
    examples, pairs, skipped = [], [], Counter[str]()
    for window in _windows(rows):
        for (pair, _), example in zip(window, joiner.join(window), strict=True):
            if isinstance(example, Example):
                examples.append(example)
                pairs.append(pair)
            else:
                skipped[example] += 1
    return examples, pairs, skipped


def _plain(rows: Sequence[Pair], renderer: Renderer) -> tuple[list[Example], list[Pair], Counter[str]]:
    """Pairs as examples whose weights say nothing."""
    examples, pairs, skipped = [], [], Counter[str]()
    for pair in rows:
        try:
            examples.append(plain_example(pair, renderer))
            pairs.append(pair)
        except RenderError as error:
            skipped[str(error)] += 1
    return examples, pairs, skipped


def plain_example(pair: Pair, renderer: Renderer) -> Example:
    """A pair as tokens that all weigh 1. Raises RenderError."""
    rendered = renderer.render(pair)

    def side(answer: RenderedSide) -> Side:
        weights = np.ones(answer.completion_length, np.float32)
        return Side(ids=answer.ids, prompt_length=answer.prompt_length, weights=weights, cut=answer.cut)

    chosen, rejected = side(rendered.chosen), side(rendered.rejected)
    return Example(example_hash=pair.example_hash, row=pair.row, chosen=chosen, rejected=rejected)


def _overlap(trained: TrainConfig, pairs: Sequence[Pair]) -> Overlap:
    """What of `pairs` a run was trained on, as far as its data can still be read."""
    seed = trained.holding_seed
    try:
        hashes, prompts = _trained_on(trained, {prompt_key(seed, pair.prompt) for pair in pairs})
    except TwdpoError:
        return Overlap()
    again = [pair.example_hash in hashes for pair in pairs]
    alike = sum(
        not known and prompt_key(seed, pair.prompt) in prompts for known, pair in zip(again, pairs, strict=True)
    )
    return Overlap(pairs=sum(again), prompts=alike)


def _trained_on(trained: TrainConfig, wanted: Collection[bytes]) -> tuple[set[str], set[bytes]]:
    """Hashes and prompts of the pairs with a `wanted` prompt that a run draws its steps from.

    Of a stream, of all that are no split apart.
    """
    with _open(trained) as cache:
        parts = parts_of(trained, cache)
        if trained.streaming:
            # A split of its own is read first, and what is in both is not trained on.
            apart, keys, prompts = set[str](), set[str](), set[bytes]()
            for part, row in rows_of(trained, cache, parts):
                if isinstance(row, Pair) and part.heldout:
                    apart.add(row.example_hash)
                elif isinstance(row, Pair) and row.example_hash not in apart:
                    prompt = prompt_key(trained.holding_seed, row.prompt)
                    if prompt in wanted:
                        keys.add(row.example_hash)
                        prompts.add(prompt)
            return keys, prompts
        found = survey(trained, cache, parts)
    used = [i for i, fate in enumerate(found.fates) if fate in ("train", "uniform") and found.prompts[i] in wanted]
    return {found.hashes[i] for i in used}, {found.prompts[i] for i in used}


def _windows(rows: Iterable[tuple[Pair, bool]]) -> Iterator[list[tuple[Pair, bool]]]:
    iterator = iter(rows)
    while window := list(islice(iterator, WINDOW)):
        yield window
