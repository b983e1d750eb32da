"""A cache, or one pair of it, as a pandas data frame. pandas is optional and imported when it is used.

Not for: single pairs to look at (`notebook.py`), or whole columns of weights (docs/cache-format.md shows how).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twdpo.errors import UsageError
from twdpo.inspect.examples import Example, default_layers, open_for
from twdpo.inspect.segments import ranks
from twdpo.weights_cache import WeightsCache
from twdpo.weights_cache.schema import FLOATS, SIDES
from twdpo.weights_cache.statistics import effective_tokens
from twdpo.weights_cache.transforms import select, sink_fix

if TYPE_CHECKING:
    import pandas as pd


def to_pandas(cache: WeightsCache | Path | str, *, limit: int | None = None, layer: str | None = None) -> pd.DataFrame:
    """One row a pair, in cache order: its hash, figures and lengths; no texts and no weights.

    Columns: example_hash, chosen_tokens, rejected_tokens, chosen_effective and rejected_effective (effective tokens of
    the weights that `layer` names, such as `29` or `mean:7,15`; by default those that training takes),
    chosen_first_weight, rejected_first_weight, the six figures of the cache format (NaN where there are none),
    truncated. `limit`: the first pairs only. Raises UsageError, and what opening a cache raises.
    """
    pandas = import_pandas()
    if limit is not None and limit < 0:
        raise UsageError(f"limit {limit}: give 0 or more")
    columns: dict[str, list[Any]] = {"example_hash": []}
    for name in ("tokens", "effective", "first_weight"):
        columns |= {f"{side}_{name}": [] for side in SIDES}
    columns |= {name: [] for name in (*FLOATS, "truncated")}
    with _opened(cache, layer) as (opened, layers):
        for row in islice(opened.rows(), limit):
            columns["example_hash"].append(row.example_hash)
            for name in SIDES:
                weights = select(row.side(name).weights, layers)
                columns[f"{name}_tokens"].append(len(weights))
                columns[f"{name}_effective"].append(effective_tokens(weights))
                columns[f"{name}_first_weight"].append(float(weights[0]))
            for name in (*FLOATS, "truncated"):
                columns[name].append(getattr(row, name))
    return pandas.DataFrame(columns)


def token_frame(example: Example, layers: Sequence[int], *, sink_fixed: bool = False) -> pd.DataFrame:
    """One row a judged token of a pair: side, token, start, end, text, weights, rank.

    weight_L: of each layer. weight, weight_sink_fixed: of `layers`, without and with the sink fix. rank: within the
    answer, of the latter where `sink_fixed`. text: None where the texts are not known.
    """
    pandas = import_pandas()
    frames = []
    for name in SIDES:
        side = example.row.side(name)
        text = None if example.pair is None else getattr(example.pair, name)
        starts, ends = side.starts.tolist(), side.ends.tolist()
        raw = select(side.weights, layers)
        fixed = sink_fix(raw)
        columns: dict[str, Any] = {
            "side": name,
            "token": np.arange(len(side)),
            "start": starts,
            "end": ends,
            "text": [None if text is None else text[s:e] for s, e in zip(starts, ends, strict=True)],
        }
        columns |= {f"weight_{layer}": weights for layer, weights in side.weights.items()}
        columns |= {"weight": raw, "weight_sink_fixed": fixed, "rank": ranks(fixed if sink_fixed else raw)}
        frames.append(pandas.DataFrame(columns))
    return pandas.concat(frames, ignore_index=True)


def import_pandas() -> Any:
    """The library; raises UsageError where it is not installed."""
    try:
        import pandas
    except ImportError:
        raise UsageError("data frames need pandas; install it with: pip install pandas") from None
    return pandas


@contextmanager
def _opened(cache: WeightsCache | Path | str, layer: str | None) -> Iterator[tuple[WeightsCache, tuple[int, ...]]]:
    """The cache and the layers to look at; one that is opened here is closed again."""
    if isinstance(cache, WeightsCache):
        yield cache, default_layers(cache.manifest, layer)
        return
    with open_for(cache, layer, text=False) as opened:
        yield opened, opened.layers
