"""What runs on a cluster's machines: a reader of blocks, and a worker that holds an engine and writes into the cache.

Errors that a user can meet travel as data and are raised by the driver. Not for: where these run (`ray.py`).
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twdpo.errors import TwdpoError
from twdpo.pipeline.annotate.blocks import WINDOW, Block, blocks
from twdpo.pipeline.annotate.config import AnnotateConfig
from twdpo.pipeline.annotate.judging import Judging
from twdpo.pipeline.annotate.opening import open_cache
from twdpo.pipeline.annotate.selection import Selection
from twdpo.pipeline.annotate.shard import Shard
from twdpo.pipeline.annotate.sources import open_source
from twdpo.weights_cache import Manifest
from twdpo.weights_cache.manifest import DATA
from twdpo.weights_cache.schema import KEY
from twdpo.weights_cache.shards import ShardKind, read_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run as its workers know it.

    source: its data set, for the manifest. folder: where the driver is, to which relative paths refer. finished: the
    shards that were there when the run began; named, so that a reading that is done again reads the same. size: pairs
    in a block.
    """

    config: AnnotateConfig
    source: Mapping[str, Any]
    folder: str
    finished: tuple[str, ...]
    size: int

    def enter(self) -> AnnotateConfig:
        """Go to the driver's folder, where it is seen from here."""
        with suppress(OSError):
            os.chdir(self.folder)
        return self.config


def read_blocks(_row: dict[str, Any], job: Job) -> Iterator[dict[str, bytes]]:
    """All that `job` asks for, a block a row, less what finished shards hold.

    Done again, as Ray does where a machine is lost, it gives the same blocks.
    """
    try:
        config = job.enter()
        done: set[str] = set()
        if job.finished:
            out = Path(config.out)
            kind = ShardKind(kind="weights", fingerprint=Manifest.load(out).fingerprint)
            for name in job.finished:
                done.update(read_columns(out / DATA / name, kind, [KEY]).column(KEY).to_pylist())
        shard = None if config.shard is None else Shard.parse(config.shard)
        for block in blocks(Selection.of(config), size=job.size, done=done, shard=shard):
            yield {"block": pickle.dumps(block)}
    except TwdpoError as error:
        yield {"block": pickle.dumps(_failure(error))}


class Worker:
    """A weight source that is loaded once, and its own way into the cache."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._failed: dict[str, Any] | None = None
        try:
            self._load()
        except TwdpoError as error:
            self._failed = _failure(error)

    def __call__(self, batch: Any) -> dict[str, list[str]]:
        """Judge the blocks of a batch, each durable before the next."""
        said = [self._answer(pickle.loads(content)) for content in batch.column("block").to_pylist()]
        return {"said": [json.dumps(each) for each in said]}

    def _load(self) -> None:
        config = self._job.enter()
        self._source = open_source(config)
        self._writer = open_cache(config, self._source, self._job.source)

    def _answer(self, block: Block | dict[str, Any]) -> dict[str, Any]:
        if isinstance(block, dict):
            return block
        if self._failed is not None:
            return self._failed
        try:
            return self._judge_block(block)
        except TwdpoError as error:
            return _failure(error)

    def _judge_block(self, block: Block) -> dict[str, Any]:
        # Where another worker was lost in the middle of it, this one began after that and knows what is there.
        new = [pair for pair in block.pairs if pair.example_hash not in self._writer.done]
        block.cached += len(block.pairs) - len(new)
        block.pairs = new
        judging = Judging(self._source, self._writer, dataset=self._job.config.dataset, total=None)
        judging.run([block], window=WINDOW)
        self._writer.flush()
        return {
            "worker": f"{os.uname().nodename}:{os.getpid()}",
            "counts": asdict(judging.final),
            "reasons": dict(judging.reasons),
            "preferred": judging.preferred,
            "verdicts": judging.verdicts,
        }


def _failure(error: TwdpoError) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": str(error)}
