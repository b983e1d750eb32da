"""All rows of a cache laid out one after another in one file, so that reading in any order costs one read a row.

A row group holds hundreds of rows, and reading one of them decodes all. The row file is derived from the shards: made
when first asked for, found again as long as the shards are the same, and safe to delete. Each record carries its own
checksum. Not for: publishing, or any program but this one; the layout may change.

    records, one a row in cache order:  hash, figures, sizes | starts, ends, weights of each layer, chosen then
                                        rejected | text | CRC-32
    footer:                             where each record begins (int64, one more than rows) | trailer
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twdpo.errors import CacheCorrupt
from twdpo.weights_cache.durable import PendingFile, locked, make_folder, remove_strays, storing
from twdpo.weights_cache.index import ShardIndex
from twdpo.weights_cache.rows import SideWeights, WeightRow, rows_of
from twdpo.weights_cache.schema import FLOATS
from twdpo.weights_cache.shards import content_digest

FOLDER = ".rows"

_LAYOUT = 1
_HEAD = struct.Struct("<16s6f4I")
_TRAILER = struct.Struct("<QI8s")
_MAGIC = b"twdporow"
_CRC_BYTES = 4
#: Bytes gathered before they are written.
_BUFFER = 4 << 20


class RowFile:
    """The row file of a cache, open for reading; `read` may be called by several threads at once."""

    def __init__(self, path: Path, layers: tuple[int, ...]) -> None:
        """Open a finished file; raises CacheCorrupt where its footer is not what was written."""
        self._path, self._layers = path, layers
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._begins = self._read_footer()
        except BaseException:
            self.close()
            raise
        if hasattr(os, "posix_fadvise"):
            # Reading ahead of a row that is read by chance fetches what nobody asked for.
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    @classmethod
    def of(cls, folder: Path, index: ShardIndex, layers: tuple[int, ...], *, text: bool) -> RowFile:
        """The row file of the shards in `index`, made in `folder` unless it is there; other processes wait meanwhile.

        Raises StorageError where it cannot be written, and what reading the shards raises.
        """
        make_folder(folder)
        what = _digest([_LAYOUT, layers, text])
        which = _digest([[path.name, path.stat().st_size, content_digest(path)] for path in index.shards])
        path = folder / f"rows-{what}-{which}.bin"
        with locked(folder):
            # One that is damaged is not worth an error: it can be made again.
            with suppress(FileNotFoundError, CacheCorrupt):
                return cls(path, layers)
            remove_strays(folder)
            with storing(path), PendingFile(folder) as file:
                _write(file, index, layers)
                file.publish(path.name)
            for old in folder.glob(f"rows-{what}-*.bin"):
                if old != path:
                    old.unlink(missing_ok=True)
        return cls(path, layers)

    def read(self, places: npt.NDArray[np.int64]) -> Iterator[WeightRow]:
        """The rows at `places`, counted over all shards, in that order; raises CacheCorrupt.

        A row's arrays share one piece of memory, which no other row has.
        """
        begins, ends = self._begins[places].tolist(), self._begins[places + 1].tolist()
        if hasattr(os, "posix_fadvise"):
            # The disk works on all of them at a time.
            for begin, end in zip(begins, ends, strict=True):
                os.posix_fadvise(self._descriptor, begin, end - begin, os.POSIX_FADV_WILLNEED)
        for begin, end in zip(begins, ends, strict=True):
            # A copy that its reader may write to, as into any other row.
            record = bytearray(os.pread(self._descriptor, end - begin, begin))
            if len(record) != end - begin or zlib.crc32(record[:-_CRC_BYTES]) != int.from_bytes(record[-4:], "little"):
                raise self._damaged(f"the record at byte {begin}")
            yield self._parse(record)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _parse(self, record: bytearray) -> WeightRow:
        key, *floats, chosen, rejected, truncated, text_bytes = _HEAD.unpack_from(record)
        integers = np.frombuffer(record, dtype="<i4")
        numbers = integers.view("<f4")
        place = _HEAD.size // 4
        sides = []
        for count in (chosen, rejected):
            ends, place = place + count, place + 2 * count
            weights = {}
            for layer in self._layers:
                weights[layer] = numbers[place : place + count]
                place += count
            first = ends - count
            sides.append(SideWeights(starts=integers[first:ends], ends=integers[ends : ends + count], weights=weights))
        texts = {}
        if text_bytes:
            prompt, chosen_text, rejected_text = json.loads(record[place * 4 : place * 4 + text_bytes])
            texts = {
                "prompt": tuple((role, content) for role, content in prompt),
                "chosen_text": chosen_text,
                "rejected_text": rejected_text,
            }
        figures = dict(zip(FLOATS, floats, strict=True))
        return WeightRow(
            example_hash=key.hex(),
            chosen=sides[0],
            rejected=sides[1],
            truncated=bool(truncated),
            **figures,
            **texts,
        )

    def _read_footer(self) -> npt.NDArray[np.int64]:
        size = os.fstat(self._descriptor).st_size
        trailer = os.pread(self._descriptor, _TRAILER.size, max(size - _TRAILER.size, 0))
        if len(trailer) == _TRAILER.size:
            rows, crc, magic = _TRAILER.unpack(trailer)
            footer_bytes = (rows + 1) * 8
            place = size - _TRAILER.size - footer_bytes
            if magic == _MAGIC and place >= 0:
                footer = os.pread(self._descriptor, footer_bytes, place)
                if len(footer) == footer_bytes and zlib.crc32(footer) == crc:
                    return np.frombuffer(footer, dtype="<i8")
        raise self._damaged("its footer")

    def _damaged(self, where: str) -> CacheCorrupt:
        return CacheCorrupt(f"{self._path} is damaged: {where}; delete that file, it is made again from the shards")


def remove_row_files(cache: Path) -> None:
    """Remove the row files of the cache in `cache`, as its shards have changed; whoever reads one goes on."""
    for path in (cache / FOLDER).glob("rows-*.bin"):
        path.unlink(missing_ok=True)


def _write(file: PendingFile, index: ShardIndex, layers: Sequence[int]) -> None:
    buffer = bytearray()
    sizes = [0]
    for block in index.read_ahead(range(index.groups)):
        for row in rows_of(block, np.arange(block.rows), layers, copy=False):
            record = _record(row)
            sizes.append(len(record))
            buffer += record
        if len(buffer) >= _BUFFER:
            file.write(buffer)
            buffer.clear()
    footer = np.cumsum(sizes, dtype="<i8").tobytes()
    file.write(bytes(buffer) + footer + _TRAILER.pack(len(sizes) - 1, zlib.crc32(footer), _MAGIC))


def _record(row: WeightRow) -> bytes:
    text = b""
    if row.prompt is not None:
        text = json.dumps([row.prompt, row.chosen_text, row.rejected_text], ensure_ascii=False).encode()
    figures = [getattr(row, name) for name in FLOATS]
    sizes = (len(row.chosen), len(row.rejected), row.truncated, len(text))
    head = _HEAD.pack(bytes.fromhex(row.example_hash), *figures, *sizes)
    parts = [head]
    for side in (row.chosen, row.rejected):
        parts += [array.tobytes() for array in (side.starts, side.ends, *side.weights.values())]
    # Whole words, so that the record can be looked at as an array of them.
    content = b"".join([*parts, text, bytes(-len(text) % 4)])
    return content + zlib.crc32(content).to_bytes(_CRC_BYTES, "little")


def _digest(content: Iterable[object]) -> str:
    return hashlib.sha256(json.dumps(content).encode("utf-8", "surrogatepass")).hexdigest()[:16]
