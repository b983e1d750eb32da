"""The rates of stage one's work on a processor, which `scale.py` counts with. Not for: the judge (`annotate.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from machine import describe
from scale_model import JUDGES, Tokens
from synthetic import synthetic_recipe

from twdpo.pipeline.annotate.engines.base import Reading
from twdpo.pipeline.annotate.prompt import JudgePrompt, PromptBuilder, load_template
from twdpo.pipeline.annotate.rows import make_row
from twdpo.pipeline.annotate.shard import Shard
from twdpo.pipeline.models import load_tokenizer
from twdpo.pipeline.tokens import common_beginning
from twdpo.preferences import Pair, load, resolve
from twdpo.weights_cache import CacheWriter, SideWeights, WeightRow, compact, merge, round_mantissa
from twdpo.weights_cache.counts import refresh_counts
from twdpo.weights_cache.index import ShardIndex
from twdpo.weights_cache.schema import FLOATS, KEY, shard_metadata
from twdpo.weights_cache.shards import ShardKind, list_shards, write_shard

LAYERS = (0, 6, 14, 21, 29)
Prompts = list[tuple[JudgePrompt, JudgePrompt]]


def build(pairs: Sequence[Pair]) -> tuple[Prompts, float]:
    """Both prompts of every pair, by one core, and how many pairs a second that makes."""
    builder = PromptBuilder(load_tokenizer("smollm2-135m"), template=load_template(None))
    builder.build(pairs[0], "cr")
    started = time.process_time()
    prompts = [(builder.build(pair, "cr"), builder.build(pair, "rc")) for pair in pairs]
    return prompts, len(pairs) / (time.process_time() - started)


def count(prompts: Prompts) -> Tokens:
    """What `prompts` hold on the mean."""
    firsts = [first.ids for first, _ in prompts]
    return Tokens(
        prompt=float(np.mean([len(prompt.ids) for prompt in chain(*prompts)])),
        head=float(np.mean([common_beginning(a, b) for a, b in pairwise(firsts)])),
        shared=float(np.mean([common_beginning(first.ids, second.ids) for first, second in prompts])),
        answers=float(np.mean([len(p.answer_a.starts) + len(p.answer_b.starts) for p, _ in prompts])),
    )


def read_all(dataset: str, rounds: int) -> tuple[float, float]:
    """Rows a second that one worker of many reads and passes over, and that one only hashes."""
    shard = Shard(index=0, count=1000)
    rows = sum(1 for _ in load(resolve(dataset))) * 0
    started = time.process_time()
    for _ in range(rounds):
        for row in load(resolve(dataset)):
            shard.takes(row.example_hash, row.row)
            rows += 1
    reading = rows / (time.process_time() - started)
    pairs = [row for row in load(resolve(dataset)) if isinstance(row, Pair)]
    started = time.process_time()
    for pair in pairs:
        shard.takes(pair.example_hash, pair.row)
    return reading, len(pairs) / (time.process_time() - started)


def _weights(lengths: np.ndarray, rng: np.random.Generator) -> Iterator[SideWeights]:
    for n in lengths.tolist():
        ends = rng.integers(1, 9, n).cumsum().astype(np.int32)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int32)
        weights = rng.lognormal(0, 1.2, (len(LAYERS), n))
        weights = round_mantissa(weights / weights.mean(axis=1, keepdims=True))
        yield SideWeights(starts=starts, ends=ends, weights=dict(zip(LAYERS, weights, strict=True)))


def make_rows(prompts: Prompts, number: int) -> list[WeightRow]:
    """Rows with random weights on answers as long as real ones."""
    rng = np.random.default_rng(0)
    spans = [prompts[i % len(prompts)][0] for i in range(number)]
    chosen = _weights(np.array([len(p.answer_a.starts) for p in spans]), rng)
    rejected = _weights(np.array([len(p.answer_b.starts) for p in spans]), rng)
    figures = dict.fromkeys(FLOATS, 0.5)
    return [
        WeightRow(example_hash=rng.bytes(16).hex(), chosen=a, rejected=b, **figures)
        for a, b in zip(chosen, rejected, strict=True)
    ]


def write(rows: Sequence[WeightRow], folder: Path, shard_rows: int = 512) -> tuple[float, float]:
    """Rows a second that one writer makes shards of, and bytes a row."""
    recipe = synthetic_recipe(LAYERS)
    started = time.process_time()
    with CacheWriter.open(folder, recipe, shard_rows=shard_rows, shard_seconds=1e9) as writer:
        for row in rows:
            writer.add(row)
        writer.flush()
        seconds = time.process_time() - started
    return len(rows) / seconds, sum(path.stat().st_size for path in list_shards(folder / "data")) / len(rows)


def make(pairs: Sequence[Pair], prompts: Prompts) -> float:
    """Pairs a second of which one core makes rows, once the judge has read them."""
    rng = np.random.default_rng(0)
    readings = [
        [
            Reading(
                attention={
                    layer: tuple(rng.random(len(s.starts), dtype=np.float32) for s in spans) for layer in LAYERS
                },  # type: ignore[misc]
                verdict_logits=(0.0, 0.0),
            )
            for spans in ((prompt.answer_a, prompt.answer_b) for prompt in both)
        ]
        for both in prompts
    ]
    started = time.process_time()
    for pair, both, (first, second) in zip(pairs, prompts, readings, strict=True):
        make_row(pair, both, (first, second), LAYERS)
    return len(pairs) / (time.process_time() - started)


_KIND = ShardKind(kind="weights", fingerprint="0" * 16)


def write_keys(folder: Path, shards: int, rows: int) -> None:
    """Shards that hold keys only, which is all that an index reads."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    metadata = shard_metadata(kind="weights", fingerprint=_KIND.fingerprint)
    for _ in range(shards):
        digits = rng.bytes(16 * rows).hex()
        keys = [digits[32 * row : 32 * row + 32] for row in range(rows)]
        write_shard(
            folder, pa.table({KEY: keys}, schema=pa.schema([pa.field(KEY, pa.string(), nullable=False)])), metadata
        )


def _peak() -> float:
    """The most bytes that were in memory at once; of this program alone, unlike what getrusage says after a fork."""
    status = Path("/proc/self/status").read_text()
    return float(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * float(os.sysconf("SC_PAGE_SIZE"))


def measure_index(folder: Path) -> dict[str, float]:
    """Seconds until a folder's keys are indexed, and the most bytes that this took beyond the bare process."""
    before, started = _resident(), time.process_time()
    index = ShardIndex(folder, _KIND)
    rows = len(index)
    return {"rows": rows, "seconds": time.process_time() - started, "peak": _peak() - before}


def measure_counting(rows: Sequence[WeightRow], folder: Path) -> float:
    """Seconds a shard of counting what a cache holds, as a run does at its end."""
    write(rows, folder, shard_rows=32)
    started = time.process_time()
    for _ in range(5):
        refresh_counts(folder)
    return (time.process_time() - started) / 5 / (len(rows) / 32)


def measure_set(rows: int) -> dict[str, float]:
    """Bytes of a set of hashes, as a run knows what is done and what it has met."""
    rng = np.random.default_rng(0)
    before = _resident()
    known = {rng.bytes(16).hex() for _ in range(rows)}
    return {"rows": len(known), "peak": _resident() - before}


def _apart(name: str, argument: str) -> dict[str, float]:
    """A figure from a process of its own, so that its memory is its own."""
    command = [sys.executable, __file__, name, argument]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def measure(dataset: str) -> None:
    """Measure and print everything, half a minute."""
    print(f"{describe()}; load {os.getloadavg()[0]:.1f}", flush=True)
    pairs = [row for row in load(resolve(dataset)) if isinstance(row, Pair)]
    prompts, rate = build(pairs)
    tokens = count(prompts)
    print(
        f"{len(pairs):,} pairs: {tokens.prompt:.0f} tokens a prompt, head {tokens.head:.0f}, shared "
        f"{tokens.shared:.0f}, answers {tokens.answers:.0f}; computed a pair {tokens.computed:.0f}, "
        f"{tokens.computed / 2 / tokens.prompt:.1%}"
    )
    print(f"prompts: {rate:,.0f} pairs/s, {rate * 2 * tokens.prompt:,.0f} tokens/s by one core", flush=True)
    ids = [prompt.ids for prompt in chain(*prompts)]
    for judge in JUDGES:
        exact = judge.shape.flops(ids, heads=True) / len(pairs)
        print(
            f"FLOPs a pair, {judge.name}: {exact:.4g}; by mean lengths {judge.pair_flops(tokens) / exact - 1:+.1%}",
            flush=True,
        )
    print(f"making rows: {make(pairs, prompts):,.0f} pairs/s", flush=True)
    reading, hashing = read_all(dataset, 10)
    size = Path(dataset).stat().st_size / len(pairs)
    print(
        f"reading all rows: {reading:,.0f} rows/s; hashing alone {hashing:,.0f} rows/s; {size:,.0f} bytes a row",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = make_rows(prompts, 2048)
        rate, size = write(rows, folder / "cache")
        print(f"writing: {rate:,.0f} rows/s, {size:,.0f} bytes a row of random weights", flush=True)
        started = time.process_time()
        compact(folder / "cache")
        print(f"compacting: {2048 / (time.process_time() - started):,.0f} rows/s", flush=True)
        started = time.process_time()
        merge(folder / "merged", [folder / "cache"])
        seconds = time.process_time() - started
        print(f"merging: {2048 * size / seconds / 1e6:,.0f} MB/s", flush=True)
        counting = measure_counting(rows[:1024], folder / "counted")
        write_keys(folder / "small", 400, 512)
        small = _apart("index", str(folder / "small"))
        write_keys(folder / "large", 10, 100_000)
        large = _apart("index", str(folder / "large"))
    print(f"counting: {1000 * counting:.2f} ms a shard; listing: {1000 * small['seconds'] / 400:.2f} ms a shard")
    each = large["peak"] / large["rows"]
    print(f"index of a million rows: {large['seconds']:.2f} s, {each:.0f} bytes a row at its peak")
    known = _apart("set", "1000000")
    print(f"a set of a million hashes: {known['peak'] / known['rows']:.0f} bytes each", flush=True)


if __name__ == "__main__":
    what, value = sys.argv[1:]
    print(json.dumps(measure_index(Path(value)) if what == "index" else measure_set(int(value))))
