"""The first reading of a data set that fits: what becomes of every row, known before anything is rendered.

Every row is trained on, held out, or left out with a reason. Not for: data sets that do not fit (`streamed.py`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from twdpo.errors import MissingRows
from twdpo.pipeline.train.config import TrainConfig, heldout_count, parse_eval_split
from twdpo.pipeline.train.parts import Part, asked_rows, rows_of
from twdpo.preferences import Message, Pair, Reject, resolve
from twdpo.weights_cache import WeightsCache, read_rejects

NOT_ANNOTATED = "not among the pairs that were annotated"
LEFT_OUT = "left out of the cache (see its rejects.jsonl)"
DROPPED = "no weights in the cache (--missing drop)"
HELD_OUT = "also held out, or of a prompt that is"
IN_SPLIT = "also in the held-out split"

#: Where so large a share of the pairs has no weights, these are not weights for them.
_MOST = 0.9


@dataclass(slots=True, kw_only=True)
class Survey:
    """What the first reading found: one entry of `fates` for each row read, in order; None for a row not used."""

    fates: list[str | None] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    prompts: list[bytes] = field(default_factory=list)
    missing: list[tuple[str, int]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    pairs: int = 0

    @property
    def used(self) -> list[int]:
        """The numbers of the rows that are used."""
        return [number for number, fate in enumerate(self.fates) if fate is not None]


def survey(config: TrainConfig, cache: WeightsCache, parts: list[Part]) -> Survey:
    """Read all hashes and decide what becomes of every row.

    Raises MissingRows saying how many pairs have no weights (with `missing: error`), UsageError where the held-out
    part cannot be had, and DataError.
    """
    found = _read(config, cache, parts)
    _settle_missing(config, cache, found)
    _hold_out(config, found)
    return found


def _read(config: TrainConfig, cache: WeightsCache, parts: list[Part]) -> Survey:
    survey = Survey()
    left_out = {reject.example_hash for reject in read_rejects(cache.folder)}
    asked = {part: asked_rows(part) for part in parts if part.asked}
    for part, row in rows_of(config, cache, parts):
        key = row.example_hash or ""
        fate: str | None = None
        if isinstance(row, Reject):
            survey.skipped[row.reason] += 1
        elif key in cache:
            fate = "heldout" if part.heldout else "train"
        elif key in left_out:
            survey.skipped[LEFT_OUT] += 1
        elif part in asked and not any(row.row in rows for rows in asked[part]):
            survey.skipped[NOT_ANNOTATED] += 1
        else:
            fate = "missing heldout" if part.heldout else "missing"
            survey.missing.append((key, row.row))
        survey.pairs += isinstance(row, Pair)
        survey.fates.append(fate)
        survey.hashes.append(key)
        survey.prompts.append(prompt_key(config.holding_seed, row.prompt) if isinstance(row, Pair) else b"")
    return survey


def _settle_missing(config: TrainConfig, cache: WeightsCache, survey: Survey) -> None:
    """What `--missing` makes of pairs without weights."""
    if not survey.missing:
        return
    if config.missing == "error":
        raise missing_rows(config, cache, survey.missing, survey.pairs)
    if config.missing == "drop":
        survey.skipped[DROPPED] += len(survey.missing)
    for i, fate in enumerate(survey.fates):
        if fate is not None and fate.startswith("missing"):
            survey.fates[i] = None if config.missing == "drop" else fate.replace("missing", "uniform")


def missing_rows(
    config: TrainConfig, cache: WeightsCache, missing: Sequence[tuple[str, int]], pairs: int
) -> MissingRows:
    """The error where `missing`, each a hash and a row, of so many pairs have no weights."""
    key, row = missing[0]
    what = f"{len(missing)} of {pairs} pairs have no weights in {cache.folder} (for example row {row}, {key})"
    sources = cache.manifest.sources
    locations = {(source.get("kind"), source.get("location")) for source in sources}
    if config.dataset is not None and len(missing) >= _MOST * pairs:
        asked = resolve(config.dataset, config.split)
        if (asked.kind, asked.location) not in locations:
            names = ", ".join(sorted({str(source.get("name")) for source in sources})) or "none"
            return MissingRows(
                f"{what}; the cache seems to be of another data set (its manifest names: {names}); pass the --weights "
                f"of {config.dataset}, or run twdpo annotate on it"
            )
    return MissingRows(f"{what}; run twdpo annotate on the same data set, or pass --missing drop or --missing uniform")


def _hold_out(config: TrainConfig, survey: Survey) -> None:
    """Move the held-out part out of training: what the named split holds, or whole prompts by their hash."""
    named = {key for key, fate in zip(survey.hashes, survey.fates, strict=True) if fate and "heldout" in fate}
    training = [i for i, fate in enumerate(survey.fates) if fate in ("train", "uniform")]
    for i in training:
        if survey.hashes[i] in named:
            survey.fates[i] = None
            survey.skipped[IN_SPLIT] += 1
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


def prompt_key(seed: int, prompt: tuple[Message, ...]) -> bytes:
    """What tells prompts apart, in an order that the seed decides."""
    text = "\x00".join(part for m in prompt for part in (m.role, m.content))
    return hashlib.sha256(f"{seed}\x00{text}".encode("utf-8", "surrogatepass")).digest()[:12]
