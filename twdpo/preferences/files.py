"""Local files and folders as rows: which files a folder holds, which split they make, which reader each needs.

Not for: the readers themselves (`tables.py`, `json_files.py`), or the hub (`hub.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from importlib import resources
from itertools import chain
from pathlib import Path

from twdpo.errors import DataError
from twdpo.preferences.formats import check_columns
from twdpo.preferences.json_files import JsonRows
from twdpo.preferences.rows import MemoryRows, Row, Rows, readable
from twdpo.preferences.sources import SUFFIXES, pick_split
from twdpo.preferences.tables import ArrowRows, DatasetRows, ParquetRows

_READERS: dict[str, Callable[[Path], Rows]] = {
    ".parquet": ParquetRows,
    ".arrow": ArrowRows,
    ".feather": ArrowRows,
} | dict.fromkeys((".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz"), JsonRows)

#: How file names say their split, after the hub's own conventions.
_SHARD = re.compile(r"(\w+)-\d{5}-of-\d{5}")
_WORD = re.compile(r"(?:^|[^a-z])(train|test|validation|valid|val|dev|eval)(?:[^a-z]|$)", re.IGNORECASE)
_SYNONYMS = {"valid": "validation", "val": "validation", "dev": "validation"}
_NOT_SPLITS = {"data", "part", "shard", "chunk"}


class FileRows(Rows):
    """Rows of several files, one after the other."""

    def __init__(self, files: list[Rows]) -> None:
        self.columns = files[0].columns
        self.files = files

    def count(self) -> int | None:
        """The number of rows in all files; None where one of them cannot tell."""
        counts = [file.count() for file in self.files]
        return None if None in counts else sum(count for count in counts if count is not None)

    def read(self, extra: Collection[str] = (), start: int = 0) -> Iterator[Row]:
        """The rows of each file in turn."""
        for position, file in enumerate(self.files):
            if start and (count := file.count()) is not None and count <= start:
                start -= count
                continue
            # Within this file; where it cannot tell its count, it is read to the end with those after it.
            rest = chain.from_iterable(after.read(extra) for after in self.files[position + 1 :])
            yield from chain(file.read(extra, start), rest)
            return


def open_path(path: Path, split: str | None) -> tuple[Rows, str]:
    """The rows at `path`, a file or a folder, and the split that they are.

    Raises DataError where nothing there can be read, nothing is in it, columns are wrong, or there is no such split.
    """
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved_to_disk(path, split)
    by_split: dict[str, list[Path]] = {}
    for file in _data_files(path) if path.is_dir() else [path]:
        by_split.setdefault(_split_of(file.relative_to(path) if path.is_dir() else Path(file.name)), []).append(file)
    chosen = pick_split(by_split, split, str(path))
    files = [file for file in map(_open_file, by_split[chosen]) if file.columns is not None]
    if not files:
        raise DataError(f"{path} is empty: it holds no rows")
    return FileRows(files), chosen


def open_demo(split: str | None) -> tuple[Rows, str]:
    """The pairs that come with this package, and the split that they are; DataError where there is no such split."""
    with resources.as_file(resources.files("twdpo.preferences") / "demo" / "pairs.jsonl") as path:
        rows = list(JsonRows(path))
    chosen = pick_split(dict.fromkeys(row["split"] for row in rows), split, "demo")
    return MemoryRows([row for row in rows if row["split"] == chosen]), chosen


def _open_file(path: Path) -> Rows:
    suffix = _suffix(path)
    if suffix is None:
        raise DataError(f"cannot tell what kind of file {path} is: expected one that ends in {', '.join(SUFFIXES)}")
    with readable(path):
        size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path} is empty (0 bytes)")
    rows = _READERS[suffix](path)
    if rows.columns is not None:
        check_columns(rows.columns, str(path))
    return rows


def _suffix(path: Path) -> str | None:
    name = path.name.lower()
    return max((suffix for suffix in _READERS if name.endswith(suffix)), key=len, default=None)


def _data_files(folder: Path) -> list[Path]:
    """The files of a folder that hold rows, in order of their names; those in `data/` alone if it has some."""
    with readable(folder):
        visible = _visible(folder / "data") or _visible(folder)
    # Beside data of another kind, .json files are descriptions (dataset_infos.json and the like).
    files = [path for path in visible if _suffix(path) != ".json"] or visible
    if not files:
        raise DataError(f"no data files in folder {folder}: expected some that end in {', '.join(SUFFIXES)}")
    kinds = {_READERS[_suffix(path) or ""] for path in files}
    if len(kinds) > 1:
        raise DataError(f"folder {folder} holds data files of several kinds, maybe the same rows twice: name one file")
    return files


def _visible(folder: Path) -> list[Path]:
    found = [path for path in sorted(folder.rglob("*")) if _suffix(path) and path.is_file()]
    return [path for path in found if not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)]


def _split_of(path: Path) -> str:
    """The split that a file's name (or, failing that, its folder's) speaks of; "train" where none does."""
    shard = _SHARD.match(path.name)
    if shard and shard[1] not in _NOT_SPLITS:
        return shard[1]
    for part in (path.name.split(".")[0], *reversed(path.parts[:-1])):
        word = _WORD.search(part)
        if word:
            return _SYNONYMS.get(word[1].lower(), word[1].lower())
    return "train"


def _saved_to_disk(path: Path, split: str | None) -> tuple[Rows, str]:
    import datasets

    from twdpo.preferences.hub import quiet

    with quiet(), readable(path):
        loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.DatasetDict):
        chosen = pick_split(loaded, split, str(path))
        dataset = loaded[chosen]
    else:
        chosen = pick_split([str(loaded.split or "train")], split, str(path))
        dataset = loaded
    if len(dataset) == 0:
        raise DataError(f"{path} is empty: its split {chosen} holds no rows")
    check_columns(dataset.column_names, str(path))
    return DatasetRows(dataset, str(path)), chosen
