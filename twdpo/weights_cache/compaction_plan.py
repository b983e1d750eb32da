"""What a compaction finds, and what it will do: which shards go together into new ones, and under which time stamps.

Not for: reading rows or writing anything (`compaction.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twdpo.weights_cache.index import ShardIndex
from twdpo.weights_cache.manifest import DATA, Manifest
from twdpo.weights_cache.schema import read_shard_metadata, stored_mantissa_bits, weights_schema
from twdpo.weights_cache.shards import ROW_GROUP_ROWS, ShardKind, damaged, digest_matches, reading

_NAME = re.compile(r"part-(\d{8}T\d{12}Z)-[0-9a-f]{16}\.parquet")
_STAMP = "%Y%m%dT%H%M%S%fZ"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard as it is before anything is rewritten.

    `first`: bool [rows], whether a row is the first of its hash; `kept`: how many are. `schema`: its columns as a new
    shard has them. `stamp`: microseconds since 1970 by its name; None where another tool renamed it.
    """

    path: Path
    size: int
    first: npt.NDArray[np.bool_]
    kept: int
    schema: pa.Schema
    mantissa_bits: int
    stamp: int | None

    @property
    def settled(self) -> bool:
        """Whether nothing about this shard alone asks for writing it again."""
        return self.stamp is not None and self.kept == len(self.first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbours whose rows go into new shards together, or one shard that `stays`.

    `schema`: the columns of the new shards. `stamp`: microseconds since 1970, for the first of them.
    """

    shards: tuple[Shard, ...]
    schema: pa.Schema
    stays: bool
    stamp: int = -1

    @property
    def rows(self) -> int:
        """How many rows are kept."""
        return sum(shard.kept for shard in self.shards)

    @property
    def groups(self) -> int:
        """How many row groups they make."""
        return -(-self.rows // ROW_GROUP_ROWS)


def stamp_text(stamp: int) -> str:
    """A stamp as names of shards have it."""
    return (_EPOCH + timedelta(microseconds=stamp)).strftime(_STAMP)


def stamp_of(name: str) -> int | None:
    """The stamp in the name of a shard, in microseconds since 1970; None where another tool gave it another name."""
    match = _NAME.fullmatch(name)
    try:
        moment = datetime.strptime(match[1], _STAMP).replace(tzinfo=UTC) if match else _EPOCH
    except ValueError:
        return None
    return (moment - _EPOCH) // timedelta(microseconds=1) if moment > _EPOCH else None


def survey(folder: Path, manifest: Manifest) -> list[Shard]:
    """All shards of a cache in its order, each checked to the last byte; raises CacheCorrupt or SchemaTooNew."""
    kind = ShardKind(kind="weights", fingerprint=manifest.fingerprint)
    wanted = weights_schema(manifest.recipe.layers, include_text=manifest.include_text)
    index = ShardIndex(folder / DATA, kind)
    first = np.zeros(index.total_rows, dtype=bool)
    first[index.first_rows()] = True
    shards: list[Shard] = []
    for path in index.shards:
        check_bytes(path, kind)
        with reading(path), kind.open(path) as file:
            mine, first = np.split(first, [file.metadata.num_rows])
            shards.append(
                Shard(
                    path=path,
                    size=path.stat().st_size,
                    first=mine,
                    kept=int(mine.sum()),
                    schema=_columns(path, file.schema_arrow, wanted),
                    mantissa_bits=stored_mantissa_bits(read_shard_metadata(file.metadata.metadata)),
                    stamp=stamp_of(path.name),
                )
            )
    return shards


def check_bytes(path: Path, kind: ShardKind) -> None:
    """Raise CacheCorrupt (or SchemaTooNew) where a shard does not hold what was written.

    Where its name has lost the digest, every page is read against its own checksum instead.
    """
    if not digest_matches(path):
        raise damaged(path, "its bytes are not those that were written")
    with reading(path), kind.open(path) as file:
        if stamp_of(path.name) is None:
            for _ in file.iter_batches(batch_size=ROW_GROUP_ROWS):
                pass


def plan(shards: Sequence[Shard], shard_bytes: int) -> list[Run]:
    """What becomes of the shards that hold any first row of a hash, in the cache's order."""
    moved: set[Path] = set()
    while True:
        runs, obstacle = _stamped(_runs(shards, shard_bytes, moved))
        if obstacle is None:
            return runs
        moved.add(obstacle)


def _runs(shards: Iterable[Shard], shard_bytes: int, moved: set[Path]) -> list[Run]:
    """The runs, without stamps; shards of `moved` must not stay."""
    groups: list[list[Shard]] = []
    schemas: list[pa.Schema] = []
    is_open = False
    for shard in shards:
        if not shard.kept:
            continue
        large = shard.size >= shard_bytes // 2 and shard.settled and shard.path not in moved
        joint = _united(schemas[-1], shard.schema) if is_open and not large else None
        if joint is None:
            groups.append([shard])
            schemas.append(shard.schema)
        else:
            groups[-1].append(shard)
            schemas[-1] = joint
        is_open = not large
    return [
        Run(
            shards=tuple(group),
            schema=schema,
            stays=len(group) == 1 and group[0].settled and group[0].path not in moved,
        )
        for group, schema in zip(groups, schemas, strict=True)
    ]


def _stamped(runs: Sequence[Run]) -> tuple[list[Run], Path | None]:
    """The runs with stamps that keep their order, or the shard that stands in the way of that.

    A run takes a microsecond for each of its row groups, so that each new shard has room for all that may once come
    of it. Where there is room, they lie before the oldest shard of the run: after a kill the new shards come first.
    """
    done: list[Run] = []
    last = -1
    for position, run in enumerate(runs):
        later = chain.from_iterable(each.shards for each in runs[position:])
        oldest = next((shard.stamp for shard in later if shard.stamp is not None), now_stamp())
        if run.stays:
            # Between runs that stay nothing has to fit.
            if oldest <= last and not done[-1].stays:
                return [], run.shards[0].path
            stamp = last = oldest
        else:
            stamp = max(last + 1, oldest - run.groups)
            last = stamp + run.groups - 1
        done.append(replace(run, stamp=stamp))
    return done, None


def now_stamp() -> int:
    """The stamp of this moment."""
    return (datetime.now(UTC) - _EPOCH) // timedelta(microseconds=1)


def _columns(path: Path, found: pa.Schema, wanted: pa.Schema) -> pa.Schema:
    """The columns of a shard as a new one has them: those of the format as it defines them, then all others."""
    for field in wanted:
        position = found.get_field_index(field.name)
        if position < 0:
            raise damaged(path, f"it has no column {field.name}")
        if not _alike(found.field(position).type, field.type):
            raise damaged(path, f"column {field.name} is {found.field(position).type}, not {field.type}")
    return pa.schema([*wanted, *(field for field in found if field.name not in wanted.names)])


def _alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    # Other tools that rewrite a shard lose `not null` and the name of the list's items; neither matters.
    if pa.types.is_list(found) and pa.types.is_list(wanted):
        return _alike(found.value_type, wanted.value_type)
    if pa.types.is_struct(found) and pa.types.is_struct(wanted):
        return [field.name for field in found] == [field.name for field in wanted] and all(
            _alike(mine.type, theirs.type) for mine, theirs in zip(found, wanted, strict=True)
        )
    return bool(found == wanted)


def _united(mine: pa.Schema, theirs: pa.Schema) -> pa.Schema | None:
    """The columns of both; None where one has two types. A row has null in a column that its shard did not have."""
    if mine == theirs:
        return mine
    fields = []
    for name in dict.fromkeys((*mine.names, *theirs.names)):
        found = [schema.field(name) for schema in (mine, theirs) if name in schema.names]
        if found[0].type != found[-1].type:
            return None
        fields.append(found[0].with_nullable(len(found) == 1 or any(field.nullable for field in found)))
    return pa.schema(fields)
