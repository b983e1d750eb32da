"""Writing a report: pairs drawn, another cache's rows beside them, one file that appears whole or not at all.

Not for: what stands in it (`payload.py`, `page.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twdpo.errors import UsageError
from twdpo.inspect.charts import charts
from twdpo.inspect.examples import default_layers
from twdpo.inspect.figures import Figures
from twdpo.inspect.gather import Drawn
from twdpo.inspect.report.page import page
from twdpo.inspect.report.payload import Shown, bias_of, blocks, default_layer, report_json
from twdpo.weights_cache import WeightRow, WeightsCache
from twdpo.weights_cache.durable import write_file
from twdpo.weights_cache.manifest import Manifest

#: Layers that a report holds by itself; each takes its share of the file.
MOST_LAYERS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportResult:
    """What was written: pairs of the cache, those shown, and of them those without text or not in the other cache."""

    out: Path
    pairs: int
    shown: int
    without_text: int
    not_in_other: int
    layers: tuple[int, ...]
    size: int


def report_layers(manifest: Manifest) -> tuple[int, ...]:
    """The layers for a report of a cache: all, or where they are many, some spread over them and those that train."""
    stored = manifest.recipe.layers
    if len(stored) <= MOST_LAYERS:
        return stored
    spread = {stored[i * (len(stored) - 1) // (MOST_LAYERS - 1)] for i in range(MOST_LAYERS)}
    training = default_layers(manifest)
    return tuple(sorted(spread | set(training if len(training) == 1 else training[-1:])))


def write_page(
    cache: WeightsCache,
    drawn: Drawn,
    out: Path,
    *,
    summary: Mapping[str, Any],
    figures: Figures,
    compare: WeightsCache | None = None,
) -> ReportResult:
    """Write the report of the pairs `drawn` from `cache` to the file `out`.

    `summary`: names and values that stand at the top. `figures`: of the pairs drawn. `compare`: a cache whose weights
    are shown for the same pairs.
    Raises UsageError where the other cache has none of them, CacheCorrupt, StorageError.
    """
    others = _rows_of(compare, drawn) if compare is not None else ()
    if compare is not None and all(row is None for row in others):
        raise UsageError(f"{compare.folder} has none of these pairs; compare with a cache of the same data set")
    shown = Shown(
        cache=cache,
        default_layer=default_layer(cache),
        numbers=drawn.numbers.tolist(),
        examples=drawn.examples,
        other=compare,
        other_default=default_layer(compare) if compare is not None else 0,
        others=others,
    )
    caption = f"{len(drawn.examples):,} of {len(cache):,} pairs"
    drawings = charts(figures, caption)
    bias = bias_of(shown)

    title = f"{cache.folder.absolute().name}: where the judge looked"
    content = report_json(shown, bias)
    text = "".join(page(title=title, summary=summary, charts=drawings, report=content, blocks=blocks(shown, bias)))
    data = text.encode()
    write_file(out, data)
    return ReportResult(
        out=out,
        pairs=len(cache),
        shown=len(drawn.examples),
        without_text=drawn.without_text,
        not_in_other=sum(row is None for row in others),
        layers=cache.layers,
        size=len(data),
    )


def _rows_of(cache: WeightsCache, drawn: Drawn) -> tuple[WeightRow | None, ...]:
    hashes = [example.row.example_hash for example in drawn.examples]
    missing = set(cache.missing(hashes))
    found = {row.example_hash: row for row in cache.fetch([each for each in hashes if each not in missing])}
    return tuple(found.get(each) for each in hashes)
