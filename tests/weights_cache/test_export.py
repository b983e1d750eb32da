"""Exporting: every value to the bit, with its texts or not at all, and nothing half done under its name."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.weights_cache.samples import LAYERS, RECIPE, fill, make_row, make_side
from twdpo.errors import CacheCorrupt, CacheError, DataError, UsageError
from twdpo.preferences import Message, example_hash
from twdpo.weights_cache import CacheWriter, WeightRow, WeightsCache, round_mantissa
from twdpo.weights_cache import export_files as files
from twdpo.weights_cache.exporting import export
from twdpo.weights_cache.schema import weights_schema

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "cache_schema_1"
FLOATS = ("judge_prob_cr", "judge_prob_rc", "attention_share_chosen", "attention_share_rejected")
AGREEMENT = ("order_agreement_chosen", "order_agreement_rejected")

LOAD = """
import json, sys
from datasets import load_dataset
for row in load_dataset(sys.argv[1], split="train"):
    print(json.dumps(row))
"""

PEAK = """
import sys
from twdpo.weights_cache.exporting import export
export(sys.argv[1], sys.argv[2], dataset=sys.argv[3] or None)
# Not getrusage, which also counts what the process held that started this one.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""

LIMITED = """
import resource, sys
from twdpo.errors import StorageError
from twdpo.weights_cache.exporting import export
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    export(sys.argv[1], sys.argv[2])
except StorageError as error:
    sys.exit(str(error))
"""


def write_pairs(path: Path, rows: Iterable[WeightRow]) -> Path:
    """A data set of the pairs of `rows`."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            prompt = [{"role": role, "content": text} for role, text in row.prompt or ()]
            pair = {"prompt": prompt, "chosen": row.chosen_text, "rejected": row.rejected_text}
            file.write(json.dumps(pair) + "\n")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    if path.name.endswith(".gz"):
        whole = gzip.decompress(path.read_bytes())
    elif path.name.endswith(".zst"):
        with pa.CompressedInputStream(str(path), "zstd") as stream:
            whole = stream.read()
    else:
        whole = path.read_bytes()
    assert whole.endswith(b"\n")
    return [json.loads(line) for line in whole.decode().split("\n")[:-1]]


def assert_same(found: list[dict[str, Any]], rows: Sequence[WeightRow], layers: Sequence[int] = LAYERS) -> None:
    """`found`, plain values, are `rows` as they are stored, to the bit."""
    assert [row["example_hash"] for row in found] == [row.example_hash for row in rows]
    text = bool(rows) and rows[0].prompt is not None
    for got, made in zip(found, rows, strict=True):
        assert list(got) == weights_schema(layers, include_text=text).names
        for name in ("chosen", "rejected"):
            side = made.side(name)
            assert got[f"{name}_starts"] == side.starts.tolist()
            assert got[f"{name}_ends"] == side.ends.tolist()
            for layer in layers:
                values = got[f"{name}_weights_{layer}"]
                assert all(isinstance(value, float) for value in values)
                assert np.array(values, dtype=np.float32).tobytes() == round_mantissa(side.weights[layer]).tobytes()
        for name in (*FLOATS, *AGREEMENT):
            value = got[name]
            expected = np.float32(getattr(made, name))
            assert (value is None or np.isnan(value)) if np.isnan(expected) else np.float32(value) == expected
        assert got["truncated"] is made.truncated
        if text:
            assert [(turn["role"], turn["content"]) for turn in got["prompt"]] == list(made.prompt or ())
            assert (got["chosen"], got["rejected"]) == (made.chosen_text, made.rejected_text)


def without_text(rows: Iterable[WeightRow]) -> list[WeightRow]:
    return [replace(row, prompt=None, chosen_text=None, rejected_text=None) for row in rows]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[WeightRow]]:
    """A cache of 11 pairs without texts, some of them twice, and their rows with texts."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    fill(folder, range(11))
    shard = min((folder / "data").iterdir())
    (folder / "data" / "zzz.parquet").write_bytes(shard.read_bytes())
    return folder, [make_row(number, text=True) for number in range(11)]


@pytest.fixture(scope="module")
def cache_with_text(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[WeightRow]]:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    return folder, fill(folder, range(7), text=True)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_json_lines_read_back_to_the_bit(
    tmp_path: Path, suffix: str, cache_with_text: tuple[Path, list[WeightRow]]
) -> None:
    folder, rows = cache_with_text
    steps: list[tuple[int, int]] = []
    out = tmp_path / f"rows{suffix}"
    result = export(folder, out, progress=lambda done, total: steps.append((done, total)))
    assert (result.out, result.rows, result.without_text, result.size) == (out, 7, 0, out.stat().st_size)
    assert steps == [(7, 7)]
    assert_same(read_lines(out), rows)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_number_is_the_shortest_that_is_the_same_float32(tmp_path: Path) -> None:
    row = replace(make_row(1), judge_prob_cr=float(np.float32(0.1)), judge_prob_rc=1.0, attention_share_chosen=1e-9)
    with CacheWriter.open(tmp_path / "cache", RECIPE) as writer:
        writer.add(row)
    export(tmp_path / "cache", tmp_path / "x.jsonl")
    line = (tmp_path / "x.jsonl").read_text("utf-8")
    assert '"judge_prob_cr": 0.1, "judge_prob_rc": 1.0, "attention_share_chosen": 1e-09' in line
    assert '"order_agreement_rejected": null, "truncated": false' in line


@given(st.lists(st.floats(width=32, allow_infinity=False), max_size=50))
def test_any_float32_survives_json(values: list[float]) -> None:
    kind = pa.list_(pa.float32())
    (line,) = files._lines(pa.table({"x": pa.array([values], type=kind)})).splitlines()
    back = [np.nan if value is None else value for value in json.loads(line)["x"]]
    expected = np.array(values, dtype=np.float32)
    assert np.array_equal(np.array(back, dtype=np.float32), expected, equal_nan=True)
    assert np.array_equal(np.signbit(back), np.signbit(expected) & ~np.isnan(expected))


def test_infinity_is_refused() -> None:
    with pytest.raises(CacheCorrupt, match="infinite"):
        files._lines(pa.table({"x": pa.array([np.inf], type=pa.float32())}))


def test_values_of_the_older_schema_are_not_rounded_again(tmp_path: Path) -> None:
    export(FIXTURE, tmp_path / "x.jsonl")
    export(FIXTURE, tmp_path / "folder")
    with WeightsCache.open(FIXTURE) as opened:
        rows = list(opened.rows())
    for found in (read_lines(tmp_path / "x.jsonl"), pq.read_table(tmp_path / "folder" / "data").to_pylist()):
        for got, row in zip(found, rows, strict=True):
            for layer, weights in row.chosen.weights.items():
                assert np.array(got[f"chosen_weights_{layer}"], dtype=np.float32).tobytes() == weights.tobytes()
    assert any(not np.array_equal(round_mantissa(w), w) for row in rows for w in row.chosen.weights.values())


def test_a_folder_that_datasets_loads(tmp_path: Path, cache_with_text: tuple[Path, list[WeightRow]]) -> None:
    pytest.importorskip("datasets")
    folder, rows = cache_with_text
    result = export(folder, tmp_path / "folder")
    names = sorted(str(path.relative_to(tmp_path / "folder")) for path in (tmp_path / "folder").rglob("*.*"))
    assert names == ["README.md", "data/train-00000-of-00001.parquet"]
    assert result.size == sum((tmp_path / "folder" / name).stat().st_size for name in names)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "folder"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=tmp_path,
    )
    assert_same([json.loads(line) for line in loaded.stdout.splitlines()], rows)
    readme = (tmp_path / "folder" / "README.md").read_text("utf-8")
    assert RECIPE.fingerprint in readme
    assert '{"name": "demo", "split": "train", "licence": "Apache-2.0"}' in readme


def test_many_files_and_no_path_of_this_machine(
    tmp_path: Path, cache_with_text: tuple[Path, list[WeightRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twdpo.weights_cache.exporting._FILE_BYTES", 1)
    monkeypatch.setattr("twdpo.weights_cache.exporting.ROW_GROUP_ROWS", 3)
    folder, rows = cache_with_text
    source = {"name": "/home/me/pairs.jsonl", "kind": "file", "location": "/home/me/pairs.jsonl"}
    with CacheWriter.open(folder, RECIPE, dataset=source, include_text=True):
        pass
    export(folder, tmp_path / "folder")
    paths = sorted((tmp_path / "folder" / "data").iterdir())
    assert [path.name for path in paths] == [f"train-0000{number}-of-00003.parquet" for number in range(3)]
    assert_same([row for path in paths for row in pq.read_table(path).to_pylist()], rows)
    readme = (tmp_path / "folder" / "README.md").read_text("utf-8")
    assert "pairs.jsonl" in readme
    assert "/home/me" not in readme


def test_without_texts_or_with_some_layers_only(
    tmp_path: Path, cache: tuple[Path, list[WeightRow]], cache_with_text: tuple[Path, list[WeightRow]]
) -> None:
    for (folder, rows), text in ((cache, None), (cache, False), (cache_with_text, False)):
        out = tmp_path / f"{folder.parent.name}{text}.jsonl"
        result = export(folder, out, text=text, layers=(29, 0))
        assert (result.rows, result.without_text) == (len(rows), len(rows))
        assert_same(read_lines(out), without_text(rows), (0, 29))


def test_texts_are_joined_in_the_order_of_the_data_set(
    tmp_path: Path, cache: tuple[Path, list[WeightRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twdpo.weights_cache.exporting.ROW_GROUP_ROWS", 4)
    folder, rows = cache
    order = [rows[number] for number in np.random.default_rng(0).permutation(11)]
    # Pairs that the cache does not have, pairs that come twice, and rows that are no pairs.
    pairs = [make_row(50, text=True), *order[:6], *order[2:9], make_row(51, text=True), *order[9:], make_row(52)]
    dataset = write_pairs(tmp_path / "pairs.jsonl", pairs)
    for text in (None, True):
        result = export(folder, tmp_path / f"{text}.jsonl", dataset=str(dataset), text=text)
        assert (result.rows, result.without_text) == (11, 0)
        assert_same(read_lines(tmp_path / f"{text}.jsonl"), order)


def test_texts_from_the_data_sets_that_the_manifest_names(tmp_path: Path) -> None:
    rows = [make_row(number, text=True) for number in range(8)]
    for name, some in (("a", rows[5:]), ("b", rows[:6])):
        source = str(write_pairs(tmp_path / f"{name}.jsonl", some))
        entry = {"name": source, "kind": "file", "location": source, "split": "train"}
        # A run over a part, and one over all: one data set.
        for limit in (2, 8):
            with CacheWriter.open(tmp_path / "cache", RECIPE, dataset={**entry, "limit": limit}) as writer:
                for row in without_text(some[:limit]):
                    writer.add(row)
    export(tmp_path / "cache", tmp_path / "x.jsonl", text=True)
    assert_same(read_lines(tmp_path / "x.jsonl"), [*rows[5:], *rows[:5]])
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(DataError, match=r"no such file .*b\.jsonl"):
        export(tmp_path / "cache", tmp_path / "y.jsonl", text=True)
    assert not list(tmp_path.glob("*y.jsonl*"))


def test_the_caches_own_texts_need_no_data_set(tmp_path: Path, cache_with_text: tuple[Path, list[WeightRow]]) -> None:
    folder, rows = cache_with_text
    dataset = write_pairs(tmp_path / "pairs.jsonl", rows[:1])
    export(folder, tmp_path / "x.jsonl", dataset=str(dataset), text=True)
    assert_same(read_lines(tmp_path / "x.jsonl"), rows)


@pytest.mark.parametrize("out", ["x.jsonl", "folder"])
def test_pairs_without_their_text_are_an_error_with_their_number(
    tmp_path: Path, cache: tuple[Path, list[WeightRow]], out: str
) -> None:
    folder, rows = cache
    dataset = write_pairs(tmp_path / "pairs.jsonl", rows[:8])
    with pytest.raises(CacheError, match=r"texts of 3 of 11 pairs .*pairs\.jsonl") as caught:
        export(folder, tmp_path / out, dataset=str(dataset))
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_wrong_input_is_one_line(tmp_path: Path, cache: tuple[Path, list[WeightRow]]) -> None:
    folder, _ = cache
    out = tmp_path / "out"
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (CacheError, "layer 7", {"layers": (0, 7)}),
        (UsageError, "at least one", {"layers": ()}),
        (UsageError, "leave one of the two out", {"dataset": "demo", "text": False}),
        (UsageError, "name the data set too", {"split": "train"}),
        (DataError, "no data set 'nothing'", {"dataset": "nothing"}),
        (DataError, "no split 'other'", {"dataset": "demo", "split": "other"}),
        (CacheError, "texts of 11 of 11 pairs", {"dataset": "demo", "text": True}),
    ]
    for kind, message, options in wrong:
        with pytest.raises(kind, match=message) as caught:
            export(folder, out, **options)
        assert len(str(caught.value).splitlines()) == 1
    for name in ("x.json", "x.parquet", "x.csv.gz"):
        with pytest.raises(UsageError, match=r"ends in \.jsonl"):
            export(folder, tmp_path / name)
    with pytest.raises(CacheError, match="no such folder"):
        export(tmp_path / "nothing", out)
    with CacheWriter.open(tmp_path / "empty", RECIPE):
        pass
    with pytest.raises(CacheError, match="holds no pairs yet"):
        export(tmp_path / "empty", out)
    with CacheWriter.open(tmp_path / "nameless", RECIPE) as writer:
        writer.add(make_row(1))
    with pytest.raises(UsageError, match="names no data set"):
        export(tmp_path / "nameless", out, text=True)
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "nameless"]


@pytest.mark.parametrize("name", ["x.jsonl", "folder"])
def test_what_is_there_is_never_written_over(tmp_path: Path, cache: tuple[Path, list[WeightRow]], name: str) -> None:
    folder, _ = cache
    out = tmp_path / name
    out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=f"{name} is there already"):
        export(folder, out)
    out.unlink()

    def appear(done: int, total: int) -> None:
        out.write_text("mine")

    with pytest.raises(UsageError, match=f"{name} is there already"):
        export(folder, out, progress=appear)
    assert out.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_a_killed_export_left_goes(tmp_path: Path, cache: tuple[Path, list[WeightRow]]) -> None:
    folder, rows = cache
    code = (
        "import os, signal, sys\nfrom twdpo.weights_cache.exporting import export\n"
        "export(sys.argv[1], sys.argv[2], progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))"
    )
    killed = subprocess.run([sys.executable, "-c", code, folder, tmp_path / "out"], cwd=ROOT)
    assert killed.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".tmp-")
    export(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert pq.read_table(tmp_path / "out" / "data").num_rows == len(rows)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "folder"])
def test_a_full_disk_is_one_line(tmp_path: Path, cache: tuple[Path, list[WeightRow]], name: str) -> None:
    folder, _ = cache
    command = [sys.executable, "-c", LIMITED, folder, tmp_path / name, "1500"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"cannot write {tmp_path / name}: the file would exceed the size limit")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_damaged_shard_is_one_line(tmp_path: Path) -> None:
    fill(tmp_path / "cache", range(5))
    shard = max((tmp_path / "cache" / "data").iterdir())
    whole = bytearray(shard.read_bytes())
    whole[90] ^= 2
    shard.write_bytes(whole)
    with pytest.raises(CacheCorrupt, match=shard.name):
        export(tmp_path / "cache", tmp_path / "x.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.jsonl.zst", "folder"])
@pytest.mark.parametrize("join", [False, True])
def test_memory_does_not_grow_with_the_cache(tmp_path: Path, name: str, join: bool) -> None:
    side = make_side(np.random.default_rng(0), 1000)

    def make(number: int) -> WeightRow:
        prompt, answer = (("user", f"{number}"),), "word " * 2_000
        key = example_hash((Message(role="user", content=f"{number}"),), answer, answer + "!")
        row = WeightRow(example_hash=key, chosen=side, rejected=side, prompt=prompt)
        return replace(row, chosen_text=answer, rejected_text=answer + "!")

    def peak(count: int) -> int:
        folder = tmp_path / f"cache{count}"
        dataset = write_pairs(tmp_path / f"{count}.jsonl", map(make, range(count))) if join else ""
        with CacheWriter.open(folder, RECIPE, include_text=not join) as writer:
            for number in range(count):
                writer.add(make(number))
        command = [sys.executable, "-c", PEAK, folder, tmp_path / f"{count}{name}", dataset]
        return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)

    # Enough rows to fill the cache of row groups, which is bounded, and three times as many.
    small, large = peak(4_000), peak(12_000)
    assert large < small + 50 * 1024, (small, large)
