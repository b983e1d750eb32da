"""Damage to any file of a cache: verify finds it, and reading names it or gives what was written, nothing else."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.weights_cache.damage import Finding, damage
from tests.weights_cache.samples import RECIPE, fill, make_row
from twdpo.errors import CacheCorrupt, CacheError, TwdpoError
from twdpo.weights_cache import CacheWriter, WeightsCache, read_rejects, verify
from twdpo.weights_cache.shards import list_shards

OLDER = Path(__file__).resolve().parents[1] / "fixtures" / "cache_schema_1"
SEED = 20
#: MiB: what a damaged cache of a few KB may make the program use, Python and pyarrow included.
MEMORY = 400


def make_cache(folder: Path, *, text: bool = False) -> Path:
    """Three shards and three rejects."""
    fill(folder, range(8), shard_rows=3, text=text)
    with CacheWriter.open(folder, RECIPE, include_text=text) as writer:
        for number in range(20, 23):
            writer.reject(number, "zu lang – left out", make_row(number).example_hash, "demo")
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the same pairs by another judge."""
    folder = tmp_path_factory.mktemp("foreign")
    with CacheWriter.open(folder, replace(RECIPE, judge_model="another/judge"), shard_rows=3) as writer:
        for number in range(8):
            writer.add(make_row(number))
    return folder


def check(findings: list[Finding]) -> str:
    """Nothing wrong is ever read, and what is no longer as it was is found; returns what was met, in figures."""
    met: Counter[str] = Counter()
    for finding in findings:
        assert not finding.found.startswith("odd"), finding
        assert finding.found or finding.same, finding
        for how in finding.readings.values():
            assert how == "right" or how.startswith("refused: "), finding
        met["found" if finding.found else "changes nothing"] += 1
        met["refused" if finding.readings["rows"] != "right" else "read"] += 1
    assert findings[-1].peak < MEMORY
    return str(dict(met))


@pytest.mark.parametrize("count", [180, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["plain", "with text", "older"])
def test_damage_is_found_and_never_gives_wrong_weights(tmp_path: Path, foreign: Path, kind: str, count: int) -> None:
    """540 damages by default: flips, replaced bytes, zeroed ranges, cuts, garbage, shards that change places."""
    if kind == "older":
        shutil.copytree(OLDER, tmp_path / "cache")
    else:
        make_cache(tmp_path / "cache", text=kind == "with text")
    with WeightsCache.open(tmp_path / "cache") as reader:
        reader.prepare_shuffled()
    findings = damage(tmp_path / "cache", other=foreign, count=count, seed=SEED)
    assert len(findings) == count
    print(check(findings))
    assert sum(bool(finding.found) for finding in findings) > count * 0.6


def test_card_and_configuration_hold_no_data(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    (cache / "annotate.yaml").write_text("dataset: demo\n")
    for finding in damage(
        cache, count=40, seed=SEED, kinds=("bit", "byte", "zeros", "cut", "append"), files=(".md", ".yaml")
    ):
        assert (finding.found, finding.same) == ("", True), finding
        assert set(finding.readings.values()) == {"right"}, finding


def test_rejects_that_lost_their_end_are_found(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    for finding in damage(cache, count=20, seed=SEED, kinds=("cut",), files=("rejects.jsonl",)):
        assert finding.found, finding


@pytest.mark.parametrize("gone", ["a shard", "data", "rejects.jsonl"])
def test_files_that_have_gone_are_found(tmp_path: Path, gone: str) -> None:
    cache = make_cache(tmp_path / "cache")
    if gone == "data":
        shutil.rmtree(cache / "data")
    else:
        (list_shards(cache / "data")[1] if gone == "a shard" else cache / gone).unlink()
    assert not verify(cache).ok


def test_a_shard_overwritten_by_another_of_its_cache_is_refused(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    first, second, _ = list_shards(cache / "data")
    shutil.copy(first, second)
    assert "its bytes are not those that were written" in verify(cache).problems[0]
    with WeightsCache.open(cache) as reader, pytest.raises(CacheCorrupt, match=second.name):
        list(reader.rows())


class TestNamesWithoutDigest:
    """A shard that another tool renamed or wrote: pages have checksums, what says how to read them has none."""

    @pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
    def test_flips_are_found_and_never_give_wrong_weights(self, tmp_path: Path, count: int) -> None:
        cache = make_cache(tmp_path / "cache", text=True)
        for number, path in enumerate(list_shards(cache / "data")):
            path.rename(cache / "data" / f"renamed-{number}.parquet")
        print(check(damage(cache, count=count, seed=SEED, kinds=("bit", "byte"), files=(".parquet",))))

    @pytest.mark.parametrize(
        ("column", "change"),
        [
            ("chosen_ends", lambda values: [value[:-1] for value in values]),
            ("rejected_weights_3", lambda values: [[*value, 1.0] for value in values]),
            ("chosen_starts", lambda values: [[float(each) for each in value] for value in values]),
            ("rejected_starts", lambda values: [str(value) for value in values]),
            ("chosen_weights_0", lambda values: [{"a": 1.0} for _ in values]),
            ("judge_prob_cr", lambda values: [str(value) for value in values]),
            ("truncated", lambda values: [int(value) for value in values]),
            ("chosen", lambda values: [value.encode() for value in values]),
            ("prompt", lambda values: [[{"role": "user", "text": "?"}] for _ in values]),
            ("example_hash", lambda values: [value.encode() for value in values]),
        ],
    )
    def test_columns_that_do_not_fit_are_refused(
        self, tmp_path: Path, column: str, change: Callable[[list[object]], list[object]]
    ) -> None:
        cache = tmp_path / "cache"
        fill(cache, range(1, 4), text=True)
        (path,) = list_shards(cache / "data")
        table = pq.read_table(path)
        place = table.column_names.index(column)
        table = table.set_column(place, column, pa.array(change(table.column(place).to_pylist())))
        pq.write_table(table, cache / "data" / "changed.parquet")
        path.unlink()
        assert not verify(cache).ok
        with pytest.raises(CacheCorrupt, match="changed.parquet"):
            list(WeightsCache.open(cache).rows())

    @staticmethod
    def rewrite(cache: Path, name: str, value: str) -> None:
        """Let the only shard say something else of itself."""
        (path,) = list_shards(cache / "data")
        table = pq.read_table(path)
        metadata = {**table.schema.metadata, name.encode(): value.encode()}
        pq.write_table(table.replace_schema_metadata(metadata), cache / "data" / "changed.parquet")
        path.unlink()

    @pytest.mark.parametrize("bits", ["q1", "99"])
    def test_mantissa_bits_that_cannot_be_are_a_problem(self, tmp_path: Path, bits: str) -> None:
        fill(tmp_path, range(1, 4))
        self.rewrite(tmp_path, "twdpo.mantissa_bits", bits)
        assert "changed.parquet" in verify(tmp_path).problems[0]

    @pytest.mark.parametrize(
        ("name", "value"), [("twdpo.fingerprint", "a\nb"), ("twdpo.kind", "a\nb"), ("twdpo.schema_version", "99\n")]
    )
    def test_metadata_of_several_lines_is_one_line(self, tmp_path: Path, name: str, value: str) -> None:
        fill(tmp_path, range(1, 4))
        self.rewrite(tmp_path, name, value)
        with pytest.raises(CacheError, match="changed.parquet") as caught:
            WeightsCache.open(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (OSError(24, "Too many open files"), "(?i)too many open files"),
        (OSError(5, "Input/output error"), "(?i)input/output error"),
        (MemoryError("malloc of size 64 failed"), "malloc"),
        (ModuleNotFoundError("No module named 'pydoc'"), "pydoc"),
    ],
)
def test_trouble_of_the_machine_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, message: str
) -> None:
    """Who believes it deletes a sound shard, as the message says."""
    fill(tmp_path, range(2))

    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(pq, "ParquetFile", fail)
    with pytest.raises((CacheError, ImportError, MemoryError), match=message) as caught:
        WeightsCache.open(tmp_path)
    assert "damaged" not in str(caught.value)
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("recipe",), None),
        (("recipe", "layers"), "x"),
        (("recipe", "orders"), [[]]),
        (("sources",), [1]),
        (("defaults",), [1]),
        (("counts",), [1]),
        (("counts", "pairs"), "many"),
        (("schema_version",), -1),
        (("fingerprint",), None),
        (("kind",), "reference"),
        (("recipe", "layers"), [np.inf]),
        (("counts", "pairs"), np.inf),
    ],
)
def test_a_manifest_edited_into_nonsense_is_one_line(tmp_path: Path, place: tuple[str, ...], value: object) -> None:
    """Without a checksum, which whoever edits it deletes."""
    cache = make_cache(tmp_path / "cache")
    content = json.loads((cache / "manifest.json").read_bytes())
    del content["checksum"]
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    (cache / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(CacheError) as caught:
        WeightsCache.open(cache)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        *(b"null", b"[]", b"3", b"", b"\xff", b"{}", b"[" * 100_000, b'{"row": ' + b"9" * 5000 + b"}"),
        b'{"row": 1, "dataset": null, "example_hash": [[]], "reason": ""}',
    ],
)
def test_rejects_edited_into_nonsense_are_one_line(tmp_path: Path, line: bytes) -> None:
    cache = make_cache(tmp_path / "cache")
    with (cache / "rejects.jsonl").open("ab") as file:
        file.write(line + b"\n")
    assert not verify(cache).ok
    with pytest.raises(CacheCorrupt, match="is damaged at byte"):
        read_rejects(cache)
    with pytest.raises(TwdpoError, match="is damaged at byte"), CacheWriter.open(cache, RECIPE):
        pass
