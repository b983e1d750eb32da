"""Stage one from end to end: pairs in, judged in windows, rows into the cache, every pair accounted for.

Not for: how attention is read (`engines`), what a row holds (`rows.py`), or runs over many machines (`runners`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twdpo.config import to_yaml
from twdpo.errors import Interrupted
from twdpo.pipeline.annotate.blocks import blocks
from twdpo.pipeline.annotate.config import AnnotateConfig
from twdpo.pipeline.annotate.engines.base import Engine
from twdpo.pipeline.annotate.judge import Judge
from twdpo.pipeline.annotate.judging import Judging
from twdpo.pipeline.annotate.progress import AnnotateProgress
from twdpo.pipeline.annotate.prompt import load_template
from twdpo.pipeline.annotate.selection import Selection
from twdpo.pipeline.annotate.shard import Shard
from twdpo.weights_cache import CacheWriter
from twdpo.weights_cache.durable import write_file

#: Pairs that are tokenized together and handed to the engine at once: so many at least, and more where it wants more.
WINDOW = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateResult:
    """What a run did: the final counts, the folder, and how often the judge preferred the chosen answer (0 to 1).

    shard: which part of the data set it was, None for the whole.
    """

    out: Path
    counts: AnnotateProgress
    layers: tuple[int, ...]
    judge_accuracy: float | None
    reasons: dict[str, int]
    shard: str | None = None


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
    template = load_template(config.judge_template)
    rows = Selection.of(config)
    judge = Judge.load(config, template, engine, tokenizer)
    with open_cache(config, judge, rows) as writer:
        write_file(Path(config.out) / "annotate.yaml", to_yaml(replace(config, shard=None)).encode())
        judging = Judging(
            judge,
            writer,
            dataset=config.dataset,
            total=rows.total,
            on_progress=on_progress or (lambda _progress: None),
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
    return AnnotateResult(
        out=Path(config.out),
        counts=counts,
        layers=judge.layers,
        judge_accuracy=judging.preferred / counts.written if config.verdict and counts.written else None,
        reasons=dict(judging.reasons),
        shard=config.shard,
    )


def open_cache(config: AnnotateConfig, judge: Judge, rows: Selection) -> CacheWriter:
    """The cache that `config` names, begun or gone on with."""
    return CacheWriter.open(
        Path(config.out),
        judge.recipe,
        dataset=rows.describe(config),
        defaults={"attn_source": str(judge.layers[-1]), "policy_model": config.model},
        include_text=config.include_text,
    )
