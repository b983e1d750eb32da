"""What a weights cache costs on disk, and what reading it costs, from ten thousand pairs to a million.

    python benchmarks/cache.py size CACHE...            bytes a weight against JSON lines of the same rows
    python benchmarks/cache.py scale [--rows N...]      index, stream and shuffled reading of synthetic caches

Scale: 200 tokens a side, one layer, every figure from a process of its own, and shuffled reading both from row groups
and from the row file. A million pairs take about 6.5 GB of --folder, which is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import describe
from synthetic import synthetic_recipe

from twdpo.weights_cache import Manifest, WeightsCache, round_mantissa
from twdpo.weights_cache.schema import FLOATS, KEY, SIDES, shard_metadata, weights_schema
from twdpo.weights_cache.shards import list_shards, write_shard

TOKENS, LAYER, SHARD_ROWS = 200, 29, 16_384
#: Lengths of tokens in characters, about as English has them.
LENGTHS = (0.16, 0.10, 0.13, 0.17, 0.14, 0.10, 0.07, 0.05, 0.04, 0.02, 0.02)
BATCH = 256
MEGABYTE = 1 << 20


def make_cache(folder: Path, rows: int) -> None:
    """A cache of random weights and offsets."""
    (folder / "data").mkdir(parents=True)
    recipe = synthetic_recipe((LAYER,))
    Manifest(recipe=recipe).save(folder)
    rng = np.random.default_rng(0)
    schema = weights_schema([LAYER], include_text=False)
    for first in range(0, rows, SHARD_ROWS):
        count = min(SHARD_ROWS, rows - first)
        digits = rng.bytes(16 * count).hex()
        columns: dict[str, Any] = {KEY: [digits[32 * row : 32 * row + 32] for row in range(count)]}
        for side in SIDES:
            lengths = rng.choice(np.arange(1, 12), size=(count, TOKENS), p=LENGTHS).astype(np.int32)
            ends = lengths.cumsum(axis=1, dtype=np.int32)
            weights = rng.lognormal(0, 1.2, (count, TOKENS))
            weights = round_mantissa(weights / weights.mean(axis=1, keepdims=True))
            offsets = pa.array(np.arange(0, (count + 1) * TOKENS, TOKENS, dtype=np.int32))
            for name, values in (("starts", ends - lengths), ("ends", ends), (f"weights_{LAYER}", weights)):
                kind = schema.field(f"{side}_{name}").type
                columns[f"{side}_{name}"] = pa.ListArray.from_arrays(offsets, pa.array(values.ravel()), type=kind)
        columns |= {name: rng.random(count, dtype=np.float32) for name in FLOATS}
        columns["truncated"] = np.zeros(count, dtype=bool)
        table = pa.Table.from_pydict({name: columns[name] for name in schema.names}, schema=schema)
        write_shard(folder / "data", table, shard_metadata(kind="weights", fingerprint=recipe.fingerprint))


def resident() -> float:
    """Megabytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / MEGABYTE


def stored_hashes(folder: Path) -> Iterator[str]:
    """The hashes of a cache in its order, a shard's at a time."""
    for path in list_shards(folder / "data"):
        yield from pq.read_table(path, columns=[KEY]).column(0).to_pylist()


def measure_index(folder: Path) -> dict[str, float]:
    """Opening a cache until a hash can be looked up."""
    before, start = resident(), time.perf_counter()
    with WeightsCache.open(folder) as cache:
        rows = len(cache)
        return {"rows": rows, "index_s": time.perf_counter() - start, "index_mb": resident(), "bare_mb": before}


def measure_join(folder: Path) -> dict[str, float]:
    """A stream in the cache's order, joined with its weights, three times; resident memory early and late in the last.

    The stream's hashes are in memory beforehand, since where they come from is not the cache's business; in an array,
    since a list of a million is gone through by every full garbage collection.
    """
    hashes = np.array([key.encode() for key in stored_hashes(folder)], dtype="S32")
    rates, early = [], 0.0
    for _ in range(3):
        stream = (
            key.decode() for first in range(0, len(hashes), BATCH) for key in hashes[first : first + BATCH].tolist()
        )
        with WeightsCache.open(folder) as cache:
            total = len(cache)
            start = time.perf_counter()
            for number, row in enumerate(cache.join(stream)):
                assert row is not None
                if number == total // 10:
                    early = resident()
            rates.append(total / (time.perf_counter() - start))
    return {
        "join_rows_s": statistics.median(rates),
        "join_first_rows_s": rates[0],
        "join_early_mb": early,
        "join_late_mb": resident(),
    }


def _shuffled(cache: WeightsCache, hashes: np.ndarray, rows: int) -> tuple[float, float, float]:
    """Rows a second, and resident megabytes early and late, of fetching `rows` of the hashes in random order."""
    order = np.random.default_rng(1).permutation(len(hashes))[:rows]
    start, early = time.perf_counter(), 0.0
    for first in range(0, rows, BATCH):
        found = cache.fetch([key.decode() for key in hashes[order[first : first + BATCH]].tolist()])
        assert len(found) == min(BATCH, rows - first)
        if first <= rows // 10:
            early = resident()
    return rows / (time.perf_counter() - start), early, resident()


def measure_shuffled(folder: Path) -> dict[str, float]:
    """Random order, from the row file (every row once) and from row groups (as many as a few seconds allow)."""
    hashes = np.array([key.encode() for key in stored_hashes(folder)], dtype="S32")
    with WeightsCache.open(folder) as cache:
        by_group, _, _ = _shuffled(cache, hashes, min(2 * BATCH, len(hashes)))
    with WeightsCache.open(folder) as cache:
        start = time.perf_counter()
        cache.prepare_shuffled()
        made = time.perf_counter() - start
        by_row, early, late = _shuffled(cache, hashes, len(hashes))
    size = sum(path.stat().st_size for path in (folder / ".rows").iterdir())
    return {
        "group_rows_s": by_group,
        "made_s": made,
        "row_rows_s": by_row,
        "row_early_mb": early,
        "row_late_mb": late,
        "row_file_gb": size / 2**30,
    }


MEASURES: dict[str, Callable[[Path], dict[str, float]]] = {
    "index": measure_index,
    "join": measure_join,
    "shuffled": measure_shuffled,
}


def scale(rows: list[int], folder: Path, picture: Path | None) -> None:
    """Measure caches of each size and print a table."""
    results = []
    for count in rows:
        cache = folder / str(count)
        start = time.perf_counter()
        make_cache(cache, count)
        result: dict[str, float] = {"write_s": time.perf_counter() - start}
        result["cache_gb"] = sum(path.stat().st_size for path in (cache / "data").iterdir()) / 2**30
        for name in MEASURES:
            command = [sys.executable, __file__, "measure", name, str(cache)]
            result |= json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        shutil.rmtree(cache)
        results.append(result)
        print(json.dumps({name: round(value, 2) for name, value in result.items()}), flush=True)
    titles = ("index", "join", "shuffled: groups", "row file", "made in")
    print(f"\n{'pairs':>9} {'cache':>8} {titles[0]:>16} {titles[1]:>11} {titles[2]:>17} {titles[3]:>11} {titles[4]:>8}")
    for each in results:
        print(
            f"{each['rows']:>9,.0f} {each['cache_gb']:>5.2f} GB {each['index_s']:>6.2f} s {each['index_mb']:>4.0f} MB "
            f"{each['join_rows_s']:>9,.0f}/s {each['group_rows_s']:>15,.0f}/s {each['row_rows_s']:>9,.0f}/s "
            f"{each['made_s']:>6.1f} s"
        )
    if picture:
        draw(results, picture)
    print(describe())


def draw(results: list[dict[str, float]], picture: Path) -> None:
    """Cost against size, as an SVG."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "twdpo"
    rows = [each["rows"] for each in results]
    figure, (seconds, speed, memory) = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for key, label in (("index_s", "index"), ("made_s", "make the row file"), ("write_s", "write (synthetic)")):
        seconds.plot(rows, [each[key] for each in results], marker="o", label=label)
    seconds.set(title="seconds", xscale="log", yscale="log")
    for key, label in (
        ("join_rows_s", "in cache order"),
        ("row_rows_s", "shuffled, row file"),
        ("group_rows_s", "shuffled, row groups"),
    ):
        speed.plot(rows, [each[key] for each in results], marker="o", label=label)
    speed.set(title="rows a second", xscale="log", yscale="log")
    for key, label in (
        ("index_mb", "index"),
        ("join_late_mb", "end of a stream"),
        ("row_late_mb", "end of an epoch, shuffled"),
    ):
        memory.plot(rows, [each[key] for each in results], marker="o", label=label)
    memory.set(title="resident megabytes", xscale="log", ylim=(0, None))
    for axes in (seconds, speed, memory):
        axes.set_xlabel("pairs")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(picture, metadata={"Date": None})


def entropy(values: np.ndarray) -> float:
    """Bits of information in each of some bytes, taken by itself."""
    share = np.bincount(values, minlength=256) / len(values)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def size(folders: list[Path]) -> None:
    """Bytes a weight, offsets and all other columns included, of shards and of JSON lines."""
    for folder in folders:
        tables = [pq.read_table(path) for path in list_shards(folder / "data")]
        rows = [row for table in tables for row in table.to_pylist()]
        stored = sum(path.stat().st_size for path in list_shards(folder / "data"))
        rng = np.random.default_rng(0)
        totals = dict.fromkeys(("weights that sum to 1", "before rounding", "as stored", "as stored, shortest"), 0)
        count, bits = 0, 0.0
        for name in tables[0].column_names:
            if "_weights_" in name:
                values = np.concatenate([table.column(name).combine_chunks().values.to_numpy() for table in tables])
                bits += sum(map(entropy, values.view(np.uint8).reshape(-1, 4).T)) * len(values)
        for row in rows:
            lines = {name: dict(row) for name in totals}
            for name, values in row.items():
                if "_weights_" not in name:
                    continue
                weights = np.array(values, dtype=np.float32)
                count += len(weights)
                lines["weights that sum to 1"][name] = (weights / np.float32(len(weights))).tolist()
                # Some number that rounds to the stored one: JSON lines would have kept its digits.
                unrounded = weights * (1 + rng.uniform(-1, 1, len(weights)) * 2.0**-13)
                lines["before rounding"][name] = unrounded.astype(np.float32).tolist()
                lines["as stored, shortest"][name] = [float(str(weight)) for weight in weights]
            for name, line in lines.items():
                totals[name] += len(json.dumps(line)) + 1
        print(
            f"{folder.name}: {len(rows):,} pairs in {len(tables)} shards, {count:,} weights, {stored:,} bytes, "
            f"{stored / count:.2f} a weight; a weight alone holds {bits / 8 / count:.2f} bytes of information"
        )
        for name, total in totals.items():
            print(f"  JSON lines, {name:<22} {total / count:6.2f} bytes a weight, {total / stored:5.1f} times as large")
    print(describe())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sizes = commands.add_parser("size")
    sizes.add_argument("caches", nargs="+", type=Path)
    scales = commands.add_parser("scale")
    scales.add_argument("--rows", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    scales.add_argument("--folder", type=Path)
    scales.add_argument("--picture", type=Path)
    measure = commands.add_parser("measure", help="one figure; what `scale` starts")
    measure.add_argument("name", choices=list(MEASURES))
    measure.add_argument("cache", type=Path)
    options = parser.parse_args()
    if options.command == "size":
        size(options.caches)
    elif options.command == "measure":
        print(json.dumps(MEASURES[options.name](options.cache)))
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            scale(options.rows, Path(folder), options.picture)


if __name__ == "__main__":
    main()
