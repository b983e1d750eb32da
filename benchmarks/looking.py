"""What it costs to look at a large cache: seconds and peak memory of `twdpo inspect`, as a user starts it.

    python benchmarks/looking.py summary [--pairs 6000 60000] [--folder DIR]
    python benchmarks/looking.py report  [--pairs 6000 60000] [--folder DIR]

Caches are synthetic: about 550 judged tokens a pair, five layers, random weights, and texts cut from this project's
pages, which lie in a data set beside the cache. Making them takes a minute or two for 60,000 pairs; with --folder they
are kept and found again. Every figure is of a process of its own, the program's start included, after one that reads
the files into the system's cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import describe
from synthetic import synthetic_recipe

from twdpo.preferences.pair import Message, example_hash
from twdpo.weights_cache import Manifest, round_mantissa
from twdpo.weights_cache.schema import (
    FLOATS,
    KEY,
    SIDES,
    offset_columns,
    shard_metadata,
    weights_column,
    weights_schema,
)
from twdpo.weights_cache.shards import write_shard

LAYERS = (0, 6, 14, 21, 29)
SHARD_ROWS = 4_096
PROSE = Path(__file__).parents[1] / "docs"
TEXTS = pa.schema([("prompt", pa.string()), ("chosen", pa.string()), ("rejected", pa.string())])
#: Tokens of an answer: log-normal with this mean and spread, at most the judge's budget.
MEAN_TOKENS, SPREAD, MOST_TOKENS = 285, 0.7, 768
#: Lengths of tokens in characters, about as English has them.
LENGTHS = (0.16, 0.10, 0.13, 0.17, 0.14, 0.10, 0.07, 0.05, 0.04, 0.02, 0.02)


def synthetic_cache(folder: Path, pairs: int) -> Path:
    """A cache of `pairs` random rows in `folder`, unless it is there already."""
    if (folder / "manifest.json").is_file() and _texts(folder).is_file():
        return folder
    recipe = synthetic_recipe(LAYERS)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(_texts(folder), TEXTS, compression="zstd") as texts:
        for first in range(0, pairs, SHARD_ROWS):
            table, text = _tables(rng, min(SHARD_ROWS, pairs - first))
            write_shard(folder / "data", table, shard_metadata(kind="weights", fingerprint=recipe.fingerprint))
            texts.write_table(text)
    source = {"name": str(_texts(folder)), "kind": "path", "location": str(_texts(folder))}
    Manifest(recipe=recipe, sources=(source,), counts={"pairs": pairs}).save(folder)
    return folder


def _texts(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-pairs.parquet")


def _tables(rng: np.random.Generator, rows: int) -> tuple[pa.Table, pa.Table]:
    """Weights of `rows` random pairs, and the pairs."""
    schema = weights_schema(LAYERS, include_text=False)
    prose = "\n\n".join(path.read_text("utf-8") for path in sorted(PROSE.glob("*.md")))

    def cut(length: int) -> str:
        start = int(rng.integers(len(prose) - length))
        return prose[start : start + length]

    columns: dict[str, Any] = {}
    texts: dict[str, list[str]] = {"prompt": [f"{row} {cut(300)}" for row in range(rows)]}
    for side in SIDES:
        drawn = rng.lognormal(np.log(MEAN_TOKENS) - SPREAD**2 / 2, SPREAD, rows)
        counts = drawn.clip(2, MOST_TOKENS).astype(np.int64)
        offsets = np.concatenate([[0], counts.cumsum()])
        last = offsets[1:] - 1
        lengths = rng.choice(np.arange(1, 12), size=offsets[-1], p=LENGTHS)
        ends = lengths.cumsum()
        ends -= np.repeat(ends[offsets[:-1]] - lengths[offsets[:-1]], counts)
        values = dict(zip(offset_columns(side), (ends - lengths, ends), strict=True))
        texts[side] = [cut(int(length)) for length in ends[last]]
        for layer in LAYERS:
            weights = rng.lognormal(0, 1.2, offsets[-1])
            means = np.add.reduceat(weights, offsets[:-1]) / counts
            values[weights_column(side, layer)] = round_mantissa(weights / np.repeat(means, counts))
        for name, flat in values.items():
            kind = schema.field(name).type
            typed = pa.array(flat, type=kind.value_type)
            columns[name] = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), typed, type=kind)
    columns |= {name: rng.random(rows, dtype=np.float32) for name in FLOATS}
    columns["truncated"] = rng.random(rows) < 0.02
    columns[KEY] = [
        example_hash((Message(role="user", content=prompt),), chosen, rejected)
        for prompt, chosen, rejected in zip(*texts.values(), strict=True)
    ]
    weights_table = pa.Table.from_pydict({name: columns[name] for name in schema.names}, schema=schema)
    return weights_table, pa.Table.from_pydict(texts, schema=TEXTS)


def measure(arguments: list[str]) -> tuple[float, float]:
    """Seconds and peak megabytes of one run of twdpo."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "twdpo", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"twdpo {' '.join(arguments)} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def report_line(name: str, pairs: int, arguments: list[str], runs: int) -> None:
    """Run a command and print the medians."""
    measure(arguments)
    seconds, memory = zip(*(measure(arguments) for _ in range(runs)), strict=True)
    print(
        f"{name:<28} {pairs:>8,} pairs {statistics.median(seconds):>7.2f} s {statistics.median(memory):>6.0f} MB peak",
        flush=True,
    )


def summary(options: argparse.Namespace, folder: Path) -> None:
    """The summary, and one pair out of the middle, at each size."""
    for pairs in options.pairs:
        cache = str(synthetic_cache(folder / f"{pairs}", pairs))
        report_line("inspect", pairs, ["inspect", cache], options.runs)
        report_line("inspect --json", pairs, ["inspect", cache, "--json"], options.runs)
        report_line("inspect --example N", pairs, ["inspect", cache, "--example", str(pairs // 2)], options.runs)


def report(options: argparse.Namespace, folder: Path) -> None:
    """A report of 1,000 pairs, their texts found in the data set, at each size of the cache; and the plots."""
    for pairs in options.pairs:
        cache = str(synthetic_cache(folder / f"{pairs}", pairs))
        with tempfile.TemporaryDirectory() as out:
            file = Path(out) / "report.html"
            report_line("inspect --html", pairs, ["inspect", cache, "--html", str(file)], options.runs)
            print(f"{'':<28} {file.stat().st_size / 1e6:.1f} MB")
            report_line("inspect --plots", pairs, ["inspect", cache, "--plots", out], options.runs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"summary": summary, "report": report}
    parser.add_argument("part", choices=list(parts))
    parser.add_argument("--pairs", nargs="+", type=int, default=[6_000, 60_000])
    parser.add_argument("--runs", type=int, default=5, help="runs of which the median is taken")
    parser.add_argument("--folder", type=Path, help="keep the synthetic caches here, and use those that are there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        parts[options.part](options, options.folder or Path(temporary))
    print(describe())


if __name__ == "__main__":
    main()
