"""Exporting a cache for those who don't use twdpo: JSON lines, or a folder for `datasets`, texts joined.

Memory does not grow with the cache or the data set. Not for: what a line or a file looks like (`export_files.py`), or
publishing, for which the cache itself is made (`sharing.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path, PurePath
from typing import TypeVar

import numpy as np
import pyarrow as pa

from twdpo.errors import CacheError, UsageError
from twdpo.preferences import Pair, Source, load, resolve
from twdpo.weights_cache.durable import write_file
from twdpo.weights_cache.export_files import JSON_LINES, appearing, refuse_existing, write_json_lines, write_parquet
from twdpo.weights_cache.index import ShardIndex
from twdpo.weights_cache.manifest import DATA, Manifest
from twdpo.weights_cache.reader import WeightsCache
from twdpo.weights_cache.rows import WeightRow, rows_to_table
from twdpo.weights_cache.schema import weights_schema
from twdpo.weights_cache.shards import ROW_GROUP_ROWS, ShardKind

_T = TypeVar("_T")

_FILE_BYTES = 256 << 20
#: Endings that ask for a file of a kind that is not written.
_OTHER_FILES = (".json", ".ndjson", ".parquet", ".arrow", ".csv", ".gz", ".zst")
#: What a README says of a source.
_SHOWN = ("name", "config", "split", "revision", "licence")

_README = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
tags:
- preference
- dpo
- token-weights
- twdpo
---

# Token weights for preference pairs

{rows} pairs, exported by twdpo{texts}. Load them with `datasets.load_dataset` on this folder.

`example_hash` is the first 32 hex digits of SHA-256 over the canonical JSON of prompt, chosen and rejected.
`chosen_starts` and `chosen_ends` are the characters that each token covers, `chosen_weights_L` its weight from layer L
(mean 1), and so for `rejected`. Layers: {layers}.

Fingerprint of the recipe: `{fingerprint}`. Source data, whose licences hold for its texts:

{sources}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What was written: pairs, of those the ones without their texts (all or none), and bytes."""

    out: Path
    rows: int
    without_text: int
    size: int


def export(
    folder: Path | str,
    out: Path | str,
    *,
    layers: Sequence[int] | None = None,
    dataset: str | None = None,
    split: str | None = None,
    text: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExportResult:
    """Write the pairs of the cache in `folder` to `out`: .jsonl, .jsonl.gz or .jsonl.zst, else a folder for `datasets`.

    `layers`: default all. `text`: True for prompts and answers, False for none, None for them where the cache holds
    them or `dataset` is given. They come from the cache; where it has none from `dataset`, or with text=True from the
    data sets in the manifest, in whose order the rows then are. Columns that the format does not know are left out.
    `progress` is called with the pairs done and all of them. `out` appears whole or not at all. Raises CacheError where
    texts of pairs are not found, DataError, CacheCorrupt, SchemaTooNew, StorageError or UsageError.
    """
    folder, out = Path(folder), Path(out)
    suffix = _suffix(out)
    refuse_existing(out)
    manifest = Manifest.load(folder)
    wanted = _layers(manifest, layers)
    sources = _sources(manifest, dataset, split, text)
    with_text = bool(sources) or (manifest.include_text and text is not False)
    # Before the cache is opened: then every row that this index knows can be read.
    index = _index(folder, manifest) if sources else None
    with WeightsCache.open(folder, layers=wanted, text=with_text) as cache:
        total = len(cache) if index is None else len(index)
        if not total:
            raise CacheError(f"{folder} holds no pairs yet; run twdpo annotate first")
        rows = cache.rows() if index is None else _joined(cache, index, sources)
        tables = _counted(_tables(rows, wanted, with_text=with_text), total, progress)
        with appearing(out) as path:
            if suffix:
                write_json_lines(path, tables, suffix)
            else:
                write_parquet(path, tables, _FILE_BYTES)
                write_file(path / "README.md", _readme(manifest, total, wanted, with_text=with_text).encode())
    size = sum(path.stat().st_size for path in (out, *out.rglob("*")) if path.is_file())
    return ExportResult(out=out, rows=total, without_text=0 if with_text else total, size=size)


def _suffix(out: Path) -> str | None:
    """How a file of JSON lines is to be packed, by its name; None for a folder. Raises UsageError."""
    name = out.name.lower()
    suffix = next((suffix for suffix in JSON_LINES if name.endswith(suffix)), None)
    if suffix is None and name.endswith(_OTHER_FILES):
        raise UsageError(f"{out} is no name for an export; give one that ends in {', '.join(JSON_LINES)}, or a folder")
    return suffix


def _layers(manifest: Manifest, layers: Sequence[int] | None) -> tuple[int, ...]:
    wanted = manifest.recipe.layers if layers is None else tuple(sorted(set(layers)))
    if not wanted:
        raise UsageError("no layer is to be exported; name at least one, or leave the choice out for all")
    return wanted


def _index(folder: Path, manifest: Manifest) -> ShardIndex:
    return ShardIndex(folder / DATA, ShardKind(kind="weights", fingerprint=manifest.fingerprint))


def _sources(manifest: Manifest, dataset: str | None, split: str | None, text: bool | None) -> list[Source]:
    """The data sets to read texts from; none where the cache holds them, or none are wanted. Raises UsageError."""
    if text is False and dataset is not None:
        raise UsageError(f"an export without texts does not read {dataset}; leave one of the two out")
    if split is not None and dataset is None:
        raise UsageError(f"the split {split} is of no data set; name the data set too")
    if manifest.include_text or text is False:
        return []
    if dataset is not None:
        return [resolve(dataset, split)]
    if text is None:
        return []
    known = {field.name for field in fields(Source)}
    found = [Source(**{name: entry[name] for name in known & set(entry)}) for entry in manifest.sources]
    if not found:
        raise UsageError("the cache holds no texts and names no data set; name the one that it was made from")
    return list(dict.fromkeys(found))


def _joined(cache: WeightsCache, index: ShardIndex, sources: Sequence[Source]) -> Iterator[WeightRow]:
    """The rows with the texts of `sources`, in their order, each once; raises CacheError where some are not there."""
    done = np.zeros(index.total_rows, dtype=bool)
    left = len(index)
    for source in sources:
        for pairs in _windows(item for item in load(source) if isinstance(item, Pair)):
            hashes = [pair.example_hash for pair in pairs]
            found: dict[str, Pair] = {}
            for key, pair, place in zip(hashes, pairs, index.find(hashes).tolist(), strict=True):
                if place >= 0 and not done[place]:
                    done[place] = True
                    found[key] = pair
            for row, pair in zip(cache.fetch(list(found)), found.values(), strict=True):
                prompt = tuple((message.role, message.content) for message in pair.prompt)
                yield replace(row, prompt=prompt, chosen_text=pair.chosen, rejected_text=pair.rejected)
            left -= len(found)
            if not left:
                return
    names = ", ".join(source.name for source in sources)
    raise CacheError(
        f"the texts of {left} of {len(index)} pairs of {cache.folder} are not in {names}; "
        "name the data set that holds them all, or export without texts"
    )


def _windows(stream: Iterable[_T]) -> Iterator[list[_T]]:
    items = iter(stream)
    while window := list(islice(items, ROW_GROUP_ROWS)):
        yield window


def _counted(tables: Iterable[pa.Table], total: int, progress: Callable[[int, int], None] | None) -> Iterator[pa.Table]:
    done = 0
    for table in tables:
        yield table
        done += table.num_rows
        if progress:
            progress(done, total)


def _tables(rows: Iterable[WeightRow], layers: Sequence[int], *, with_text: bool) -> Iterator[pa.Table]:
    """The rows as tables of a row group each, every value as it is stored."""
    schema = weights_schema(layers, include_text=with_text)
    for window in _windows(rows):
        yield rows_to_table(window, schema, stored=True)


def _readme(manifest: Manifest, rows: int, layers: Sequence[int], *, with_text: bool) -> str:
    sources = []
    for entry in manifest.sources:
        shown = {key: entry[key] for key in _SHOWN if entry.get(key) is not None}
        if entry.get("kind") == "file":
            # Where it lay on some machine is nobody's business.
            shown["name"] = PurePath(str(entry.get("name"))).name
        sources.append(shown)
    return _README.format(
        rows=rows,
        texts=" with their texts" if with_text else "",
        layers=", ".join(map(str, layers)),
        fingerprint=manifest.fingerprint,
        # As code, so that nothing in a name is taken for Markdown.
        sources="\n".join(f"    {json.dumps(source)}" for source in sources) or "not stated.",
    )
