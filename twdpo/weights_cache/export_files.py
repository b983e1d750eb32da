"""What an export writes: JSON lines, or a folder for `datasets`, out of tables of rows.

A file gets its values to the bit: in JSON, floats are the shortest decimals that read back to the same float32. Not
for: which rows, and with what texts (`exporting.py`).
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from twdpo.errors import CacheCorrupt, UsageError
from twdpo.weights_cache.durable import TEMPORARY_PREFIX, fsync_folder, make_folder, storing
from twdpo.weights_cache.manifest import DATA

#: Endings of files of JSON lines; all else is a folder.
JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")

_GZIP_LEVEL = 6


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """Where to write a file or folder that becomes `out`, as a whole, when the block ends without an error.

    It lies in a hidden folder beside `out`, which one process holds at a time; what a killed one left there goes.
    Raises UsageError where `out` is there already, or StorageError. The block makes durable what it writes.
    """
    refuse_existing(out)
    folder = out.with_name(f"{TEMPORARY_PREFIX}{out.name}")
    with storing(out):
        descriptor = _hold(folder)
        try:
            _clear(folder)
            yield folder / "made"
            refuse_existing(out)
            (folder / "made").rename(out)
            fsync_folder(out.parent)
        finally:
            _clear(folder)
            with suppress(OSError):
                folder.rmdir()
            os.close(descriptor)


def refuse_existing(out: Path) -> None:
    """Raise UsageError where `out` is there."""
    if os.path.lexists(out):
        raise UsageError(f"{out} is there already; choose another name, or remove it")


def _hold(folder: Path) -> int:
    """Make `folder` and wait until no other process holds it."""
    while True:
        make_folder(folder)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Whoever held it before has removed it.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        os.close(descriptor)


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def write_json_lines(path: Path, tables: Iterable[pa.Table], suffix: str) -> None:
    """Write every row as an object on a line of its own, NaN as null, compressed as `suffix` says."""
    with _compressed(path, suffix) as file:
        for table in tables:
            file.write(_lines(table))
    _fsync(path)


def write_parquet(folder: Path, tables: Iterable[pa.Table], file_bytes: int) -> None:
    """Write files of about `file_bytes` into `folder`/data, named as a split's are; each table is a row group."""
    folder = folder / DATA
    folder.mkdir(parents=True)
    paths: list[Path] = []
    stream = iter(tables)
    for first in stream:
        paths.append(folder / f"{len(paths)}.parquet")
        with pq.ParquetWriter(paths[-1], first.schema, compression="zstd") as file:
            for table in chain([first], stream):
                file.write_table(table)
                if paths[-1].stat().st_size >= file_bytes:
                    break
        _fsync(paths[-1])
    for number, path in enumerate(paths):
        path.rename(folder / f"train-{number:05}-of-{len(paths):05}.parquet")
    fsync_folder(folder)


@contextmanager
def _compressed(path: Path, suffix: str) -> Iterator[BinaryIO]:
    if suffix.endswith(".zst"):
        with pa.CompressedOutputStream(path, "zstd") as stream:
            yield stream
        return
    with path.open("wb") as file:
        if suffix.endswith(".gz"):
            # Neither name nor time: equal exports are equal files.
            with gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed:
                yield cast(BinaryIO, packed)
        else:
            yield file


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lines(table: pa.Table) -> bytes:
    names = [json.dumps(name, ensure_ascii=False) for name in table.column_names]
    columns = [_json_values(column.combine_chunks()) for column in table.columns]
    fields = [[f"{name}: {value}" for value in column] for name, column in zip(names, columns, strict=True)]
    return "".join(f"{{{', '.join(row)}}}\n" for row in zip(*fields, strict=True)).encode()


def _json_values(column: pa.Array) -> list[str]:
    """Each entry of a column as JSON."""
    if pa.types.is_list(column.type) and pa.types.is_primitive(column.type.value_type):
        numbers = _json_numbers(column.values)
        joined = pc.binary_join(pa.ListArray.from_arrays(column.offsets, numbers), ", ")
        return [f"[{text}]" for text in joined.to_pylist()]
    if pa.types.is_primitive(column.type):
        texts: list[str] = _json_numbers(column).to_pylist()
        return texts
    return [json.dumps(value, ensure_ascii=False) for value in column.to_pylist()]


def _json_numbers(values: pa.Array) -> pa.StringArray:
    if not pa.types.is_floating(values.type):
        return values.cast(pa.string())
    bits = pa.array(values.to_numpy().view(np.uint32)).dictionary_encode()
    return pa.array(map(_decimal, bits.dictionary.to_pylist()), type=pa.string()).take(bits.indices)


# Rounded weights have few different values, which come again and again.
@lru_cache(maxsize=1 << 17)
def _decimal(bits: int) -> str:
    value = np.uint32(bits).view(np.float32)
    if np.isinf(value):
        raise CacheCorrupt("a value is infinite, which no cache may hold; run twdpo cache verify on it")
    return "null" if np.isnan(value) else str(value)
