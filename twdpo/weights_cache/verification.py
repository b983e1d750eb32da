"""Checking a whole cache: every byte of every shard, and every invariant of every row.

Finds damage and says where; repairs nothing. Not for: the checks that every reading does anyway (`shards.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from twdpo.errors import CacheCorrupt, CacheError
from twdpo.preferences.pair import Message, example_hash
from twdpo.weights_cache.index import ShardIndex
from twdpo.weights_cache.manifest import DATA, Manifest, has_checksum, is_stray
from twdpo.weights_cache.mantissa import is_rounded
from twdpo.weights_cache.rejects import read_rejects
from twdpo.weights_cache.rows import MEAN_TOLERANCE, is_hash
from twdpo.weights_cache.schema import (
    FLOATS,
    KEY,
    SIDES,
    offset_columns,
    read_shard_metadata,
    same_type,
    stored_mantissa_bits,
    weights_column,
    weights_schema,
)
from twdpo.weights_cache.shards import Block, ShardKind, digest_matches, list_shards, read_groups, reading


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What a whole reading of a cache found.

    `rows` counts all, `pairs` the different ones, `duplicates` the rest (harmless); `strays` are unfinished files that
    a killed run left (harmless: the next run removes them). `problems`: one line each.
    """

    folder: Path
    shards: int = 0
    rows: int = 0
    pairs: int = 0
    duplicates: int = 0
    rejected: int = 0
    size: int = 0
    strays: int = 0
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(folder: Path | str, *, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Read every page of the cache in `folder` with checksums on, and check every invariant.

    `progress` is called with the shards done and all of them. Raises CacheError where there is no cache at all and
    SchemaTooNew; damage is reported, not raised.
    """
    folder = Path(folder)
    try:
        manifest = Manifest.load(folder)
    except CacheCorrupt as error:
        return VerifyReport(folder=folder, problems=(str(error),))
    problems = [] if has_checksum(folder) else ["manifest.json has no checksum, so that a change in it goes unnoticed"]
    shards = list_shards(folder / DATA)
    kind = ShardKind(kind="weights", fingerprint=manifest.fingerprint)
    rows = 0
    for done, path in enumerate(shards):
        found, count = _check_shard(path, kind, manifest)
        problems += found
        rows += count
        if progress:
            progress(done + 1, len(shards))
    rejected = 0
    try:
        rejected = len(read_rejects(folder))
    except CacheError as error:
        problems.append(str(error))
    pairs = 0 if problems else len(ShardIndex(folder / DATA, kind))
    if not problems:
        for name, count in (("pairs", pairs), ("rejected", rejected)):
            if count < (counted := manifest.counts.get(name, 0)):
                problems.append(f"{count} {name} are there, the manifest counts {counted}: a file is gone, or its end")
    return VerifyReport(
        folder=folder,
        shards=len(shards),
        rows=rows,
        pairs=pairs,
        duplicates=0 if problems else rows - pairs,
        rejected=rejected,
        size=_size(folder),
        strays=sum(is_stray(path.name) for path in (*folder.iterdir(), *(folder / DATA).glob(".*"))),
        problems=tuple(problems),
    )


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        # Another worker's unfinished files come and go.
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _check_shard(path: Path, kind: ShardKind, manifest: Manifest) -> tuple[list[str], int]:
    """The problems of one shard, each with its name, and its rows."""
    try:
        if not digest_matches(path):
            return [f"{path.name}: its bytes are not those that were written"], 0
        with kind.open(path) as file:
            problems = [f"{path.name}: {problem}" for problem in _schema_problems(file, manifest)]
            if not problems:
                problems = [f"{path.name}: {problem}" for problem in _row_problems(file, path, manifest)]
            return problems, file.metadata.num_rows
    except CacheError as error:
        return [str(error)], 0


def _schema_problems(file: pq.ParquetFile, manifest: Manifest) -> Iterator[str]:
    wanted = weights_schema(manifest.recipe.layers, include_text=manifest.include_text)
    for field in wanted:
        position = file.schema_arrow.get_field_index(field.name)
        if position < 0:
            yield f"it has no column {field.name}"
        elif not same_type(file.schema_arrow.field(position).type, field.type):
            yield f"column {field.name} is {file.schema_arrow.field(position).type}, not {field.type}"


def _row_problems(file: pq.ParquetFile, path: Path, manifest: Manifest) -> Iterator[str]:
    schema = weights_schema(manifest.recipe.layers, include_text=manifest.include_text)
    with reading(path):
        bits = stored_mantissa_bits(read_shard_metadata(file.metadata.metadata))
    for group in range(file.num_row_groups):
        with reading(path):
            block = Block(read_groups(file, path, range(group, group + 1), schema), schema.names)
        if not all(is_hash(block.value(KEY, row)) for row in range(block.rows)):
            yield f"row group {group}: a key is not 32 lower-case hex digits"
        for side in SIDES:
            for problem in _side_problems(block, side, manifest.recipe.layers, bits):
                yield f"row group {group}: {problem}"
        for name in FLOATS:
            least = -1.0 if name.startswith("order_agreement") else 0.0
            values = np.array([block.value(name, row) for row in range(block.rows)])
            if np.any((values < least - 1e-5) | (values > 1 + 1e-5)):
                yield f"row group {group}: {name} lies outside [{least:g}, 1]"
        if manifest.include_text:
            for problem in _text_problems(block):
                yield f"row group {group}: {problem}"


def _side_problems(block: Block, side: str, layers: tuple[int, ...], bits: int) -> Iterator[str]:
    (offsets, starts), (end_offsets, ends) = (block.lists(name) for name in offset_columns(side))
    lengths = np.diff(offsets)
    if np.any(lengths < 1):
        yield f"{side}: a row has no token"
        return
    if not np.array_equal(lengths, np.diff(end_offsets)):
        yield f"{side}: starts and ends differ in length"
        return
    values = slice(offsets[0], offsets[-1])
    starts, ends = starts[values], ends[end_offsets[0] : end_offsets[-1]]
    steps = np.diff(starts)
    steps[offsets[1:-1] - offsets[0] - 1] = 0
    if np.any(starts < 0) or np.any(ends < starts) or np.any(steps < 0):
        yield f"{side}: offsets are not in order"
    for layer in layers:
        problem = _weights_problem(*block.lists(weights_column(side, layer)), lengths, bits)
        if problem:
            yield f"{side}, layer {layer}: {problem}"


def _weights_problem(
    offsets: npt.NDArray[np.int32], weights: npt.NDArray[np.float32], lengths: npt.NDArray[np.int32], bits: int
) -> str | None:
    if not np.array_equal(np.diff(offsets), lengths):
        return "weights and offsets differ in length"
    weights = weights[offsets[0] : offsets[-1]]
    if not np.all(np.isfinite(weights)) or np.any(weights < 0):
        return "a weight is negative or not finite"
    if not is_rounded(weights, bits):
        return f"a weight uses more than {bits} bits of its mantissa"
    means = np.add.reduceat(weights.astype(np.float64), offsets[:-1] - offsets[0]) / lengths
    # Twice: the row was within the tolerance before its weights were rounded.
    if np.any(np.abs(means - 1) > 2 * MEAN_TOLERANCE):
        return f"a row's mean weight is {means[np.argmax(np.abs(means - 1))]}, not 1"
    return None


def _text_problems(block: Block) -> Iterator[str]:
    for row in range(block.rows):
        key, chosen, rejected = (block.value(name, row) for name in (KEY, *SIDES))
        prompt = tuple(Message(role=turn["role"], content=turn["content"]) for turn in block.value("prompt", row))
        if example_hash(prompt, chosen, rejected) != key:
            yield f"the text of {key} has another hash"
        for side, text in zip(SIDES, (chosen, rejected), strict=True):
            if int(block.entry(offset_columns(side)[1], row).max(initial=0)) > len(text):
                yield f"{side}: an offset of {key} lies beyond its text"
