"""Stage one on Ray Data: one task reads pairs, blocks of them flow to actors that hold engines, results flow back.

Each actor writes shards of its own into the cache, which all must see under the same path. A block's rows are durable
before its task returns; the block of a lost actor is done again by the one that Ray starts in its place, which looks
first at what is there. Not for: what happens in an actor (`worker.py`), or starting Ray (`ray_session.py`).
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twdpo import errors
from twdpo.errors import Interrupted, TwdpoError
from twdpo.pipeline.annotate.config import AnnotateConfig
from twdpo.pipeline.annotate.progress import AnnotateProgress
from twdpo.pipeline.annotate.runners.ray_session import Fleet, fleet_of, import_ray, session
from twdpo.pipeline.annotate.runners.worker import Job, Worker, read_blocks
from twdpo.pipeline.annotate.selection import Selection
from twdpo.weights_cache import Manifest
from twdpo.weights_cache.counts import refresh_counts
from twdpo.weights_cache.manifest import DATA, MANIFEST
from twdpo.weights_cache.shards import list_shards

#: Blocks that each worker gets at the least, where there are enough pairs: the last ones end at about the same time.
_BLOCKS_A_WORKER = 32
#: Pairs in a block: what is lost with an actor at the most, and a shard's rows.
_LEAST_ON_CPU, _LEAST_ON_GPU, _MOST = 8, 64, 512


@dataclass(slots=True)
class Reduced:
    """The sum of what the actors said."""

    counts: AnnotateProgress
    reasons: Counter[str] = field(default_factory=Counter)
    preferred: int = 0
    verdicts: int = 0
    _began: float | None = None
    _peaks: dict[str, float | None] = field(default_factory=dict)

    def add(self, said: dict[str, Any], now: float) -> None:
        """Take one block's result; raises what the actor met."""
        if said.get("error"):
            kind = getattr(errors, str(said["error"]), TwdpoError)
            raise kind(said["message"])
        counts = AnnotateProgress(**said["counts"])
        if counts.written and self._began is None:
            self._began = now - counts.judging
        self._peaks[said["worker"]] = counts.peak_flops
        total = self.counts.plus(replace(counts, before=0, judging=0.0))
        before = total.seen - counts.written if counts.written and not self.counts.written else self.counts.before
        self.counts = replace(
            total,
            before=before,
            judging=0.0 if self._began is None else now - self._began,
            peak_flops=_sum(self._peaks.values()),
        )
        self.reasons.update(said["reasons"])
        self.preferred += said["preferred"]
        self.verdicts += said["verdicts"]


def run_on_ray(
    config: AnnotateConfig, rows: Selection, on_progress: Callable[[AnnotateProgress], None]
) -> tuple[Reduced, tuple[int, ...]]:
    """Judge `rows` on a Ray cluster: what came of it, and the layers.

    Raises UsageError where Ray is missing or has not what `config` asks of it, Interrupted on Ctrl-C, with what
    finished blocks hold kept, and what a reader or an actor met.
    """
    ray = import_ray()
    reduced, started = Reduced(AnnotateProgress(total=rows.total)), time.perf_counter()
    out = Path(config.out)
    try:
        with session(ray):
            fleet = fleet_of(ray, config)
            for said in _results(ray, config, rows, fleet):
                now = time.perf_counter()
                reduced.add(said, now)
                reduced.counts = replace(reduced.counts, seconds=now - started)
                on_progress(reduced.counts)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; {reduced.counts.written} pairs of this run are kept in {config.out}: "
            "run the same command again to go on"
        ) from None
    finally:
        if (out / MANIFEST).exists():
            layers = refresh_counts(out).recipe.layers
    return reduced, layers


def block_size(total: int | None, fleet: Fleet) -> int:
    """How many pairs make a block: as many as leave each worker enough of them."""
    least = _LEAST_ON_GPU if fleet.gpus else _LEAST_ON_CPU
    if total is None:
        return min(4 * least, _MOST)
    return max(least, min(total // (fleet.workers * _BLOCKS_A_WORKER), _MOST))


def _results(ray: Any, config: AnnotateConfig, rows: Selection, fleet: Fleet) -> Iterator[dict[str, Any]]:
    """What became of each block, as they come."""
    job = Job(
        config=config,
        source=rows.describe(config),
        folder=os.getcwd(),
        finished=_finished(Path(config.out)),
        size=block_size(rows.total, fleet),
    )
    source = ray.data.from_items([{"job": 0}], override_num_blocks=1)
    # A task of its own, which gives a block as soon as it has one. Its CPU is spared for the engines.
    pairs = source.flat_map(read_blocks, fn_args=(job,), num_cpus=fleet.reader_cpus, max_retries=-1, concurrency=1)
    judged = pairs.map_batches(
        Worker,
        fn_constructor_args=(job,),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=fleet.workers, max_tasks_in_flight_per_actor=2),
        num_cpus=fleet.cpus,
        num_gpus=fleet.gpus,
    )
    for batch in judged.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for text in batch.column("said").to_pylist():
            yield json.loads(text)


def _finished(out: Path) -> tuple[str, ...]:
    """The shards that are there when the run begins."""
    if not (out / MANIFEST).exists():
        return ()
    Manifest.load(out)
    return tuple(path.name for path in list_shards(out / DATA))


def _sum(peaks: Iterable[float | None]) -> float | None:
    known = list(peaks)
    return None if None in known or not known else sum(peak for peak in known if peak is not None)
