"""Stage one from end to end: pairs in, judged in windows, rows into the cache, every pair accounted for.

Not for: how attention is read (`engines`) or what a row holds (`rows.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from twdpo.config import to_yaml
from twdpo.errors import DataError, Interrupted
from twdpo.pipeline.annotate.config import AnnotateConfig
from twdpo.pipeline.annotate.engines.base import Engine
from twdpo.pipeline.annotate.judge import Judge
from twdpo.pipeline.annotate.prompt import JudgePrompt, PromptError, load_template
from twdpo.pipeline.annotate.rows import make_row
from twdpo.preferences import Pair, PairStream, Reject, draw_rows, load, resolve
from twdpo.weights_cache import CacheWriter
from twdpo.weights_cache.durable import write_file

#: Pairs that are tokenized together and handed to the engine at once: so many at least, and at the most where the
#: engine wants more.
WINDOW, _WINDOW_MOST = 32, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateProgress:
    """Where a run stands. seen = written + cached + duplicates + rejected, at any time between two windows.

    total: pairs to see, None where the source does not say. tokens: judge tokens run so far, both orders.
    """

    total: int | None
    seen: int = 0
    written: int = 0
    cached: int = 0
    duplicates: int = 0
    rejected: int = 0
    truncated: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateResult:
    """What a run did: the final counts, the folder, and how often the judge preferred the chosen answer (0 to 1)."""

    out: Path
    counts: AnnotateProgress
    layers: tuple[int, ...]
    judge_accuracy: float | None
    reasons: dict[str, int]


def annotate(
    config: AnnotateConfig,
    *,
    on_progress: Callable[[AnnotateProgress], None] | None = None,
    engine: Engine | None = None,
    tokenizer: Any = None,
) -> AnnotateResult:
    """Run stage one. `engine` and `tokenizer` replace the model that `config` names.

    Raises what loading raises, RecipeMismatch where the cache holds another recipe, and Interrupted on Ctrl-C,
    after what was judged has been written.
    """
    source = resolve(config.dataset, config.split, config.dataset_revision)
    template = load_template(config.judge_template)
    stream = load(source)
    rows = _Selection(stream, config.limit, config.seed)
    if next(iter(rows), None) is None:
        raise DataError(f"{config.dataset} holds no rows; pass a data set that has some")
    judge = Judge.load(config, template, engine, tokenizer)
    with CacheWriter.open(
        Path(config.out),
        judge.recipe,
        dataset=_describe(stream, config),
        defaults={"attn_source": str(judge.layers[-1]), "policy_model": config.model},
        include_text=config.include_text,
    ) as writer:
        write_file(Path(config.out) / "annotate.yaml", to_yaml(config).encode())
        run = _Run(config, judge, writer, rows.total, on_progress or (lambda _progress: None))
        try:
            run.annotate(rows)
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped; {run.counts.written} pairs of this run are kept in {config.out}: "
                "run the same command again to go on"
            ) from None
    return AnnotateResult(
        out=Path(config.out),
        counts=run.counts,
        layers=judge.layers,
        judge_accuracy=run.judge_accuracy,
        reasons=run.reasons,
    )


class _Run:
    """The state of one run: counts, and the window of pairs that waits for the engine."""

    def __init__(
        self,
        config: AnnotateConfig,
        judge: Judge,
        writer: CacheWriter,
        total: int | None,
        on_progress: Callable[[AnnotateProgress], None],
    ) -> None:
        self._config, self._judge, self._writer, self._on_progress = config, judge, writer, on_progress
        self._started = time.perf_counter()
        self._met: set[str] = set()
        self._verdicts: list[bool] = []
        self.counts = AnnotateProgress(total=total)
        self.reasons: dict[str, int] = {}

    @property
    def judge_accuracy(self) -> float | None:
        """How often the judge gave the chosen answer more than half, mean of the orders; None before any pair."""
        return float(np.mean(self._verdicts)) if self._verdicts else None

    def annotate(self, rows: Iterable[Pair | Reject]) -> None:
        """Judge every pair that the cache does not hold yet."""
        window: list[tuple[Pair, tuple[JudgePrompt, JudgePrompt]]] = []
        tokens, enough = 0, self._judge.engine.window_tokens
        for row in rows:
            ready = self._take(row)
            if ready is not None:
                window.append(ready)
                tokens += sum(len(prompt.ids) for prompt in ready[1])
            if len(window) >= WINDOW and (tokens >= enough or len(window) >= _WINDOW_MOST):
                self._judge_window(window)
                window, tokens = [], 0
        self._judge_window(window)

    def _take(self, row: Pair | Reject) -> tuple[Pair, tuple[JudgePrompt, JudgePrompt]] | None:
        """The pair with its prompts, or None where it needs no judging; counted either way."""
        if isinstance(row, Reject):
            self._reject(row.row, row.reason, row.example_hash)
            return None
        key = row.example_hash
        if key in self._met:
            self._count(duplicates=1)
            return None
        self._met.add(key)
        if key in self._writer.done:
            self._count(cached=1)
            return None
        builder = self._judge.builder
        try:
            return row, (builder.build(row, "cr"), builder.build(row, "rc"))
        except PromptError as error:
            self._reject(row.row, str(error), key)
            return None

    def _judge_window(self, window: list[tuple[Pair, tuple[JudgePrompt, JudgePrompt]]]) -> None:
        prompts = [prompt for _, both in window for prompt in both]
        if not prompts:
            return
        readings = self._judge.engine.read(prompts, self._judge.layers, self._judge.verdict_ids)
        for i, (pair, both) in enumerate(window):
            row = make_row(
                pair,
                both,
                (readings[2 * i], readings[2 * i + 1]),
                self._judge.layers,
                include_text=self._config.include_text,
            )
            self._writer.add(row)
            if self._judge.verdict_ids is not None:
                self._verdicts.append((row.judge_prob_cr + row.judge_prob_rc) / 2 > 0.5)
            self._count(
                written=1, truncated=int(row.truncated), tokens=sum(len(prompt.ids) for prompt in both), report=False
            )
        self._report()

    def _reject(self, row: int, reason: str, key: str | None) -> None:
        self._writer.reject(row, reason, key, self._config.dataset)
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        self._count(rejected=1)

    def _count(self, *, report: bool = True, **steps: int) -> None:
        pairs = sum(steps.get(name, 0) for name in ("written", "cached", "duplicates", "rejected"))
        changes = {name: getattr(self.counts, name) + step for name, step in steps.items()}
        self.counts = replace(self.counts, seen=self.counts.seen + pairs, **changes)
        if report and self.counts.seen % WINDOW == 0:
            self._report()

    def _report(self) -> None:
        self.counts = replace(self.counts, seconds=time.perf_counter() - self._started)
        self._on_progress(self.counts)


class _Selection:
    """The rows of a stream that a run asks for, in the stream's order."""

    def __init__(self, stream: PairStream, limit: int | None, seed: int | None) -> None:
        self._stream = stream
        self._rows = None if limit is None else draw_rows(stream, limit, seed)
        self.total = stream.total
        if self._rows is not None:
            self.total = len(self._rows) if stream.total is None else min(len(self._rows), stream.total)

    def __iter__(self) -> Iterator[Pair | Reject]:
        if self._rows is None:
            yield from self._stream
            return
        last = max(self._rows)
        for row, item in enumerate(self._stream):
            if row in self._rows:
                yield item
            if row == last:
                return


def _describe(stream: PairStream, config: AnnotateConfig) -> dict[str, Any]:
    """The data set for the manifest, with what of it was asked for: stage two then knows which pairs must be there."""
    described = asdict(stream.source) | {"limit": config.limit, "seed": config.seed}
    return {key: value for key, value in described.items() if value is not None}
