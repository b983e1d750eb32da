"""Stage one from end to end: pairs in, judged in windows, rows into the cache, every pair accounted for.

Not for: how attention is read (`engines`), what a row holds (`rows.py`), or runs over many machines (`runners`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twdpo.errors import Interrupted
from twdpo.pipeline.annotate.blocks import WINDOW, blocks
from twdpo.pipeline.annotate.config import AnnotateConfig
from twdpo.pipeline.annotate.engines.base import Engine
from twdpo.pipeline.annotate.judging import Judging
from twdpo.pipeline.annotate.opening import open_cache
from twdpo.pipeline.annotate.progress import AnnotateProgress
from twdpo.pipeline.annotate.selection import Selection
from twdpo.pipeline.annotate.shard import Shard
from twdpo.pipeline.annotate.sources import check_source, open_source


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateResult:
    """What a run did: the final counts, the folder, and how often the judge preferred the chosen answer (0 to 1).

    shard: which part of the data set it was, None for the whole. source: what the weights come from.
    """

    out: Path
    counts: AnnotateProgress
    layers: tuple[int, ...]
    judge_accuracy: float | None
    reasons: dict[str, int]
    shard: str | None = None
    source: str = "attention"


def annotate(
    config: AnnotateConfig,
    *,
    on_progress: Callable[[AnnotateProgress], None] | None = None,
    engine: Engine | None = None,
    tokenizer: Any = None,
) -> AnnotateResult:
    """Run stage one. `engine` and `tokenizer` replace the model that `config` names.

    `on_progress` is called in the calling thread. Raises what loading raises, RecipeMismatch where the cache holds
    another recipe, and Interrupted on Ctrl-C, after what was judged has been written.
    """
    check_source(config)
    rows = Selection.of(config)
    on_progress = on_progress or (lambda _progress: None)
    if config.runner == "ray":
        return _on_ray(config, rows, on_progress)
    source = open_source(config, engine=engine, tokenizer=tokenizer)
    with open_cache(config, source, rows.describe(config)) as writer:
        judging = Judging(
            source,
            writer,
            dataset=config.dataset,
            total=rows.total,
            on_progress=on_progress,
        )
        shard = None if config.shard is None else Shard.parse(config.shard)
        try:
            judging.run(blocks(rows, size=WINDOW, done=writer.done, shard=shard), window=WINDOW)
        except KeyboardInterrupt:
            judging.settle()
            raise Interrupted(
                f"stopped; {judging.counts.written} pairs of this run are kept in {config.out}: "
                "run the same command again to go on"
            ) from None
        counts = judging.final
    return _result(config, counts, source.recipe.layers, (judging.preferred, judging.verdicts), judging.reasons)


def _on_ray(config: AnnotateConfig, rows: Selection, on_progress: Callable[[AnnotateProgress], None]) -> AnnotateResult:
    from twdpo.pipeline.annotate.runners.ray import run_on_ray

    done, layers = run_on_ray(config, rows, on_progress)
    return _result(config, done.counts, layers, (done.preferred, done.verdicts), done.reasons)


def _result(
    config: AnnotateConfig,
    counts: AnnotateProgress,
    layers: tuple[int, ...],
    verdicts: tuple[int, int],
    reasons: Mapping[str, int],
) -> AnnotateResult:
    preferred, of = verdicts
    return AnnotateResult(
        out=Path(config.out),
        counts=counts,
        layers=layers,
        judge_accuracy=preferred / of if of else None,
        reasons=dict(reasons),
        shard=config.shard,
        source=config.source,
    )
