"""README.md of a cache: a data-set card whose header lets `datasets.load_dataset(folder)` find the shards.

Every run writes it with counts alone, which is cheap; publishing writes it with figures over all rows and a picture.
Either way only as long as its marker line is there. Not for: the words and tables of the card (`card_text.py`), or
drawing (`picture.py`).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

from twdpo.preferences.pair import Message, Pair
from twdpo.weights_cache.card_text import MARKER, CardFacts, render_card
from twdpo.weights_cache.durable import write_file
from twdpo.weights_cache.manifest import CARD, Manifest
from twdpo.weights_cache.picture import draw_pair
from twdpo.weights_cache.reader import WeightsCache
from twdpo.weights_cache.rejects import read_rejects
from twdpo.weights_cache.rows import WeightRow
from twdpo.weights_cache.statistics import summarize

PICTURE = "example.svg"

#: Answers of so many characters fill the picture without being cut.
_FITTING = range(80, 700)
#: Rows looked at for such a pair.
_LOOKED_AT = 512


def write_card(folder: Path, manifest: Manifest) -> bool:
    """Write the card of the cache in `folder` with its counts; False where a person took it over.

    Raises StorageError.
    """
    facts = CardFacts(
        name=folder.absolute().name,
        manifest=manifest,
        pairs=manifest.counts.get("pairs"),
        truncated=manifest.counts.get("truncated", 0),
        rejected=manifest.counts.get("rejected", 0),
    )
    return _write(folder, facts)


def write_full_card(
    folder: Path | str, *, repository: str | None = None, licence: str | None = None, example: Pair | None = None
) -> bool:
    """Write the card of the cache in `folder` with figures over all its rows, and the picture of one pair beside it.

    `repository`: the hub data set that the card says how to load; None for the folder. `licence`: that of the weights,
    in place of the source data's. `example`: the pair to draw; None for the first that fits, out of a cache that holds
    texts. Where there is none to draw, a picture drawn before stays. False where a person took the card over: then
    nothing is written but the picture of an `example`.

    Raises CacheError (no cache, no pairs, or no weights for `example`), CacheCorrupt or StorageError.
    """
    folder = Path(folder)
    is_ours = _is_ours(folder)
    if is_ours or example is not None:
        drawn = _draw_example(folder, example)
        if drawn is not None:
            write_file(folder / PICTURE, drawn.encode())
    if not is_ours:
        return False
    # One layer is summed, but the manifest has to be read to know which is the deepest.
    with WeightsCache.open(folder, layers=Manifest.load(folder).recipe.layers[-1:], text=False) as cache:
        manifest, summary = cache.manifest, summarize(cache)
    facts = CardFacts(
        name=repository or folder.absolute().name,
        manifest=manifest,
        pairs=summary.pairs,
        truncated=summary.truncated,
        rejected=len(read_rejects(folder)),
        summary=summary,
        is_repository=repository is not None,
        licence=licence,
    )
    return _write(folder, facts)


def _write(folder: Path, facts: CardFacts) -> bool:
    if not _is_ours(folder):
        return False
    facts = replace(facts, picture=PICTURE if (folder / PICTURE).is_file() else None)
    write_file(folder / CARD, render_card(facts).encode("utf-8", "replace"))
    return True


def is_generated(text: str) -> bool:
    """Whether a card is still the program's: it has its marker line, or says nothing beside a header."""
    header, _, body = text.partition("\n---")
    if not header.startswith("---") or len(header) == len(text):
        body = text
    return not body.strip() or any(line.rstrip() == MARKER for line in text.split("\n"))


def _is_ours(folder: Path) -> bool:
    path = folder / CARD
    return not path.exists() or is_generated(path.read_text("utf-8", "replace"))


def _draw_example(folder: Path, example: Pair | None) -> str | None:
    with WeightsCache.open(folder, text=example is None) as cache:
        if example is not None:
            return draw_pair(example, cache.get(example.example_hash), cache.layers[-1])
        if not cache.manifest.include_text:
            return None
        fitting = _first_fitting(cache)
        return draw_pair(*fitting, cache.layers[-1]) if fitting else None


def fits(pair: Pair) -> bool:
    """Whether the picture of a pair shows its answers whole, and something of each."""
    return len(pair.chosen) in _FITTING and len(pair.rejected) in _FITTING


def _first_fitting(cache: WeightsCache) -> tuple[Pair, WeightRow] | None:
    """The first pair of the cache that the picture shows whole; the first of all where none near the beginning is."""
    first: tuple[Pair, WeightRow] | None = None
    for row in islice(cache.rows(), _LOOKED_AT):
        pair = _pair(row)
        if fits(pair) and not row.truncated:
            return pair, row
        first = first or (pair, row)
    return first


def _pair(row: WeightRow) -> Pair:
    prompt = tuple(Message(role=role, content=content) for role, content in row.prompt or ())
    return Pair(prompt=prompt, chosen=row.chosen_text or "", rejected=row.rejected_text or "")
