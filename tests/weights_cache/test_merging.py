"""Merging: the rows of all inputs, shards copied as they are, whatever stops it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.weights_cache.samples import RECIPE, SOURCE, content, fill, make_row
from twdpo.errors import CacheCorrupt, CacheError, RecipeMismatch, UsageError
from twdpo.weights_cache import CacheWriter, Manifest, WeightsCache, read_rejects, verify
from twdpo.weights_cache.compaction import compact
from twdpo.weights_cache.merging import merge

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "cache_schema_1"
OTHER = {"name": "other", "kind": "file", "location": "other.jsonl", "split": "train"}

# Merges the other inputs into TARGET/1, TARGET/2, ...; each dies inside its n-th call that changes the disk, a write
# half done, until one gets through.
KILLED_IN_CALL = """
import itertools, os, signal, sys
from pathlib import Path
from twdpo.weights_cache.merging import merge
calls = 0
def dying(real, at, halfway):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == at:
            halfway(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    return call
for at in itertools.count(1):
    child = os.fork()
    if child == 0:
        write = os.write
        os.write = dying(write, at, lambda descriptor, content: write(descriptor, content[: len(content) // 2]))
        os.fsync = dying(os.fsync, at, lambda *_: None)
        os.replace = dying(os.replace, at, lambda *_: None)
        os.mkdir = dying(os.mkdir, at, lambda *_: None)
        merge(Path(sys.argv[1]) / str(at), sys.argv[2:])
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status != signal.SIGKILL:
        sys.exit(status)
"""

LIMITED = """
import resource, sys
from twdpo.errors import StorageError
from twdpo.weights_cache.merging import merge
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
try:
    merge(sys.argv[2], sys.argv[3:])
except StorageError as error:
    sys.exit(str(error))
"""


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "data").iterdir()}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def contents(folder: Path) -> dict[str, object]:
    with WeightsCache.open(folder) as cache:
        return {row.example_hash: content(row) for row in cache.rows()}


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    """Two caches that share rows 6 to 9; each rejects one pair of its own, one of both, and one without a hash."""
    fill(tmp_path / "a", range(10), shard_rows=4)
    fill(tmp_path / "b", range(6, 20), shard_rows=4)
    with CacheWriter.open(tmp_path / "a", RECIPE) as writer:
        writer.reject(30, "left out by a", make_row(30).example_hash, "demo")
        writer.reject(15, "left out by a, not by b", make_row(15).example_hash, "demo")
        writer.reject(31, "no pair", None, "demo")
    with CacheWriter.open(tmp_path / "b", RECIPE, dataset=OTHER, defaults={"attn_source": "3"}) as writer:
        writer.reject(30, "left out by b", make_row(30).example_hash, "other")
        writer.reject(31, "no pair", None, "other")
    return [tmp_path / "a", tmp_path / "b"]


def test_a_new_cache_of_two(tmp_path: Path, inputs: list[Path]) -> None:
    steps: list[tuple[int, int]] = []
    before = [files(folder) for folder in inputs]
    result = merge(tmp_path / "out", inputs, progress=lambda done, total: steps.append((done, total)))
    assert (result.copied, result.present, result.pairs, result.duplicates) == (7, 0, 20, 4)
    assert steps == [(number, 7) for number in range(1, 8)]
    assert contents(tmp_path / "out") == contents(inputs[0]) | contents(inputs[1])
    assert shards(tmp_path / "out") == shards(inputs[0]) | shards(inputs[1])
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.recipe == RECIPE
    assert list(manifest.sources) == [SOURCE, OTHER]
    assert manifest.defaults == Manifest.load(inputs[0]).defaults
    assert manifest.counts == {"pairs": 20, "rejected": 3, "shards": 7, "truncated": 7}
    assert result.rejected == 3
    # Row 15 has weights in b, so it is not left out of the whole.
    kept = {(reject.row, reject.dataset, reject.reason) for reject in read_rejects(tmp_path / "out")}
    assert kept == {(30, "demo", "left out by a"), (31, "demo", "no pair"), (31, "other", "no pair")}
    assert "20" in (tmp_path / "out" / "README.md").read_text("utf-8")
    assert verify(tmp_path / "out").ok
    assert [files(folder) for folder in inputs] == before


def test_into_a_cache_that_is_there(tmp_path: Path, inputs: list[Path]) -> None:
    first, second = inputs
    before = Manifest.load(second)
    result = merge(second, [first])
    assert (result.copied, result.present, result.pairs, result.rejected) == (3, 0, 20, 3)
    manifest = Manifest.load(second)
    assert manifest.defaults == before.defaults == {"attn_source": "3"}
    assert list(manifest.sources) == [SOURCE, OTHER]
    assert verify(second).ok
    again = files(second)
    result = merge(second, [first, first])
    assert (result.copied, result.present, result.pairs) == (0, 3, 20)
    assert files(second) == again


def test_a_merged_cache_can_be_written_on_and_compacted(tmp_path: Path, inputs: list[Path]) -> None:
    merge(tmp_path / "out", inputs)
    fill(tmp_path / "out", range(18, 25))
    assert compact(tmp_path / "out").duplicates == 4
    assert contents(tmp_path / "out") == {make_row(n).example_hash: content(make_row(n)) for n in range(25)}
    # What was compacted is not what is there by name; merging again brings duplicates, which are harmless.
    assert merge(tmp_path / "out", inputs).duplicates == 24
    assert len(contents(tmp_path / "out")) == 25


def test_the_older_schema_is_taken_as_it_is(tmp_path: Path) -> None:
    manifest = Manifest.load(FIXTURE)
    with CacheWriter.open(tmp_path / "new", manifest.recipe, include_text=manifest.include_text) as writer:
        writer.add(make_row(500, text=manifest.include_text, layers=manifest.recipe.layers))
    merge(tmp_path / "out", [FIXTURE, tmp_path / "new"])
    assert shards(tmp_path / "out") == shards(FIXTURE) | shards(tmp_path / "new")
    assert Manifest.load(tmp_path / "out").schema_version == 2
    assert verify(tmp_path / "out").ok


def test_renamed_shards_get_a_name_and_are_copied_once(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 4)):
        fill(tmp_path / name, range(first, first + 4))
        (path,) = (tmp_path / name / "data").iterdir()
        path.rename(path.with_name("train-00000-of-00001.parquet"))
    for copied in (2, 0):
        assert merge(tmp_path / "out", [tmp_path / "a", tmp_path / "b"]).copied == copied
        assert len(shards(tmp_path / "out")) == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "a") | contents(tmp_path / "b")
    assert verify(tmp_path / "out").ok


def test_another_recipe_is_refused_with_what_differs(tmp_path: Path, inputs: list[Path]) -> None:
    with CacheWriter.open(tmp_path / "c", replace(RECIPE, dtype="bfloat16", judge_revision=None)):
        pass
    for out, caches in ((tmp_path / "out", [*inputs, tmp_path / "c"]), (tmp_path / "c", inputs)):
        before = files(tmp_path / "c")
        with pytest.raises(RecipeMismatch, match=r"judge_revision: .*0123abcd.*; dtype: .*float") as caught:
            merge(out, caches)
        assert len(str(caught.value).splitlines()) == 1
        assert not (tmp_path / "out").exists()
        assert files(tmp_path / "c") == before


def test_texts_in_one_only_are_refused(tmp_path: Path, inputs: list[Path]) -> None:
    fill(tmp_path / "c", range(3), text=True)
    with pytest.raises(CacheError, match="c holds texts and .*a does not"):
        merge(tmp_path / "out", [inputs[0], tmp_path / "c"])
    assert not (tmp_path / "out").exists()


def test_wrong_input_is_one_line(tmp_path: Path, inputs: list[Path]) -> None:
    with pytest.raises(UsageError, match="at least one"):
        merge(tmp_path / "out", [])
    (tmp_path / "link").symlink_to(inputs[0])
    with pytest.raises(UsageError, match="both an input and where the result goes"):
        merge(tmp_path / "link", inputs)
    with pytest.raises(CacheError, match="no such folder"):
        merge(tmp_path / "out", [*inputs, tmp_path / "nothing"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("dear diary")
    with pytest.raises(CacheError, match="not empty"):
        merge(tmp_path / "full", inputs)
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="a file is in the way"):
        merge(tmp_path / "file", inputs)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("renamed", [False, True])
def test_a_damaged_input_is_found_before_anything_is_written(tmp_path: Path, inputs: list[Path], renamed: bool) -> None:
    path = max((inputs[1] / "data").iterdir())
    if renamed:
        path = path.rename(path.with_name("x.parquet"))
    whole = bytearray(path.read_bytes())
    whole[100] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CacheCorrupt, match=path.name):
        merge(tmp_path / "out", inputs)
    assert not (tmp_path / "out").exists()


def test_damaged_rejects_are_found_before_anything_is_written(tmp_path: Path, inputs: list[Path]) -> None:
    lines = (inputs[0] / "rejects.jsonl").read_bytes()
    (inputs[0] / "rejects.jsonl").write_bytes(lines.replace(b"left", b"lost", 1))
    with pytest.raises(CacheCorrupt, match=r"rejects\.jsonl is damaged"):
        merge(tmp_path / "out", inputs)
    assert not (tmp_path / "out").exists()


def test_a_shard_that_changes_while_it_is_copied_is_not_taken(tmp_path: Path, inputs: list[Path]) -> None:
    last = max((inputs[1] / "data").iterdir())

    def spoil(done: int, total: int) -> None:
        whole = bytearray(last.read_bytes())
        whole[100] = 0xFF - whole[100]
        last.write_bytes(whole)

    with pytest.raises(CacheCorrupt, match=last.name):
        merge(tmp_path / "out", inputs, progress=lambda done, total: spoil(done, total) if done == 1 else None)
    assert last.name not in shards(tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".tmp-*"))


def test_killed_inside_every_call_and_run_again(tmp_path: Path, inputs: list[Path]) -> None:
    target = tmp_path / "killed"
    target.mkdir()
    killer = subprocess.run([sys.executable, "-c", KILLED_IN_CALL, target, *inputs], cwd=ROOT)
    assert killer.returncode == 0
    *killed, undisturbed = sorted(target.iterdir(), key=lambda path: int(path.name))
    assert len(killed) > 30
    assert any(list(folder.rglob(".tmp-*")) for folder in killed)
    expected = contents(undisturbed)
    for folder in killed:
        if (folder / "manifest.json").exists():
            assert verify(folder).problems == ()
        merge(folder, inputs)
        assert contents(folder) == expected
        assert shards(folder) == shards(undisturbed)
        assert read_rejects(folder) == read_rejects(undisturbed)
        assert Manifest.load(folder) == Manifest.load(undisturbed)
        report = verify(folder)
        assert report.ok
        assert report.strays == 0
        shutil.rmtree(folder)


def test_a_full_disk_is_one_line_and_the_next_run_completes_it(tmp_path: Path, inputs: list[Path]) -> None:
    largest = max(len(whole) for folder in inputs for whole in shards(folder).values())
    for limit in (0, 500, largest - 1, largest):
        command = [sys.executable, "-c", LIMITED, str(limit), tmp_path / "out", *inputs]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == (limit < largest)
        if done.returncode:
            assert done.stderr.startswith("cannot write ")
            assert len(done.stderr.splitlines()) == 1
        assert not list((tmp_path / "out").rglob(".tmp-*"))
    assert len(contents(tmp_path / "out")) == 20
    assert verify(tmp_path / "out").ok
