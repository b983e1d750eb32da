"""Merging caches of one recipe into one: shards are copied as they are, each checked on the way.

A merge that was killed is completed by running it again. Not for: dropping duplicates, which are harmless
(`compaction.py`), or caches of several recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from twdpo.errors import CacheError, RecipeMismatch, UsageError
from twdpo.weights_cache.card import write_card
from twdpo.weights_cache.compaction_plan import check_bytes, now_stamp, stamp_of, stamp_text
from twdpo.weights_cache.counts import refresh_counts
from twdpo.weights_cache.durable import PendingFile, locked, make_folder, remove_strays, storing
from twdpo.weights_cache.index import ShardIndex
from twdpo.weights_cache.manifest import DATA, MANIFEST, Manifest, may_begin
from twdpo.weights_cache.rejects import Reject, RejectLog, read_rejects
from twdpo.weights_cache.schema import SCHEMA_VERSION
from twdpo.weights_cache.shards import ShardKind, damaged, list_shards, reading

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """What a merge did: shards `copied`, and those `present` already.

    `pairs`, `duplicates`, `rejected`: of the merged cache as it is now.
    """

    copied: int
    present: int
    pairs: int
    duplicates: int
    rejected: int


def merge(
    out: Path | str, caches: Sequence[Path | str], *, progress: Callable[[int, int], None] | None = None
) -> MergeResult:
    """Add rows, sources and rejects of `caches` to the cache in `out`, which is begun where there is none.

    All must have one recipe, and hold texts or not alike; defaults are those of `out`, or else of the first input.
    Nothing is written before every byte of the inputs was checked. `progress` is called with the shards done and all
    of them. Raises UsageError, RecipeMismatch, CacheError, CacheCorrupt, SchemaTooNew or StorageError.
    """
    out = Path(out)
    inputs = {folder: Manifest.load(folder) for folder in _folders(out, caches)}
    _refuse_different(inputs if not (out / MANIFEST).exists() else {out: Manifest.load(out), **inputs})
    kind = ShardKind(kind="weights", fingerprint=next(iter(inputs.values())).fingerprint)
    shards = [path for folder in inputs for path in list_shards(folder / DATA)]
    for path in shards:
        check_bytes(path, kind)
    rejects = [reject for folder in inputs for reject in read_rejects(folder)]
    _begin(out, inputs)
    data = out / DATA
    # No compaction may remove meanwhile what is counted here as present.
    with storing(data), locked(data):
        present = {_digest(path.name) for path in list_shards(data)}
        copied = 0
        for done, path in enumerate(shards, start=1):
            copied += _copy(path, data, present)
            if progress:
                progress(done, len(shards))
        index = ShardIndex(data, kind)
        _add_rejects(out, rejects, index)
        counts = refresh_counts(out).counts
    return MergeResult(
        copied=copied,
        present=len(shards) - copied,
        pairs=counts["pairs"],
        duplicates=index.total_rows - len(index),
        rejected=counts["rejected"],
    )


def _folders(out: Path, caches: Sequence[Path | str]) -> list[Path]:
    """The inputs, each once; raises UsageError where there is none, or where `out` is one."""
    folders = {Path(folder).resolve(): Path(folder) for folder in reversed(caches)}
    if not folders:
        raise UsageError("there is nothing to merge; name at least one cache")
    if out.resolve() in folders:
        raise UsageError(f"{out} is both an input and where the result goes; name another folder for the result")
    return list(reversed(folders.values()))


def _refuse_different(manifests: Mapping[Path, Manifest]) -> None:
    """Raise RecipeMismatch or CacheError where a cache does not fit the first."""
    (first, expected), *others = manifests.items()
    for folder, manifest in others:
        differences = expected.recipe.differences(manifest.recipe)
        if differences:
            fields = "; ".join(line.removesuffix(" asked for").replace(" in the cache,", ",") for line in differences)
            raise RecipeMismatch(
                f"{first} and {folder} were made with different recipes ({fields}); merge caches of one recipe only"
            )
        if manifest.include_text != expected.include_text:
            has, lacks = (first, folder) if expected.include_text else (folder, first)
            raise CacheError(f"{has} holds texts and {lacks} does not; merge caches that are alike in that")


def _begin(out: Path, inputs: Mapping[Path, Manifest]) -> None:
    """Make the result a cache with the inputs' sources, so that it is one whatever happens later."""
    make_folder(out)
    with storing(out), locked(out):
        remove_strays(out)
        first = next(iter(inputs.values()))
        old = Manifest.load(out) if (out / MANIFEST).exists() else None
        if old:
            # Another program may have begun it since it was looked at.
            _refuse_different({out: old, **inputs})
        elif not may_begin(out):
            raise CacheError(f"{out} is not empty and holds no weights cache; choose another folder")
        manifest = old or Manifest(
            recipe=first.recipe, include_text=first.include_text, defaults=first.defaults, extra=first.extra
        )
        for source in (source for each in inputs.values() for source in each.sources):
            manifest = manifest.with_source(source, None)
        manifest = replace(manifest, schema_version=SCHEMA_VERSION)
        if manifest != old:
            manifest.save(out)
        write_card(out, manifest)
        make_folder(out / DATA)
        remove_strays(out / DATA)


def _copy(path: Path, data: Path, present: set[str]) -> bool:
    """Copy a shard into `data` unless it is among those `present`, by digest; returns whether it was copied."""
    is_named = stamp_of(path.name) is not None
    if is_named and _digest(path.name) in present:
        return False
    with PendingFile(data) as copy:
        for piece in _pieces(path):
            copy.write(piece)
        if not is_named and copy.digest in present:
            return False
        if is_named and copy.digest != _digest(path.name):
            raise damaged(path, "its bytes are not those that were written")
        copy.publish(path.name if is_named else f"part-{stamp_text(now_stamp())}-{copy.digest}.parquet")
        present.add(copy.digest)
        return True


def _pieces(path: Path) -> Iterator[bytes]:
    # By itself, so that a failure to write is not taken for one to read.
    with reading(path), path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def _digest(name: str) -> str:
    return name.removesuffix(".parquet").rpartition("-")[2]


def _add_rejects(out: Path, rejects: Sequence[Reject], index: ShardIndex) -> None:
    """List the inputs' rejects, but for pairs that have a row: one input left out what another did not.

    Lines that are there stay, since other workers may be adding to them.
    """
    log = RejectLog(out)
    for reject in rejects:
        if reject.example_hash is None or index.find([reject.example_hash])[0] < 0:
            log.add(reject)
    log.sync()
