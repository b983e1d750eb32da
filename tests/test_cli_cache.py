"""The commands `twdpo cache …` as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.fixtures.hub import Hub
from tests.preferences.processes import environment
from tests.weights_cache.samples import RECIPE, SOURCE, content, fill, make_row
from twdpo.cli import main
from twdpo.weights_cache import CacheWriter, WeightsCache, verify
from twdpo.weights_cache.shards import list_shards

NUMBERS = range(12)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches: `one` in three shards, `two` with the rest, `other` of another recipe, `bare` without texts."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "one", NUMBERS[:8], text=True, shard_rows=3)
    fill(tmp_path / "two", NUMBERS[6:], text=True)
    with CacheWriter.open(tmp_path / "other", replace(RECIPE, dtype="float16"), include_text=True) as writer:
        writer.add(make_row(1, text=True))
    fill(tmp_path / "bare", NUMBERS[:2])
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.jsonl").touch()
    return tmp_path


def contents(folder: Path) -> dict[str, object]:
    with WeightsCache.open(folder) as cache:
        return {row.example_hash: content(row) for row in cache.rows()}


def expected(numbers: Sequence[int]) -> dict[str, object]:
    return {make_row(number).example_hash: content(make_row(number, text=True)) for number in numbers}


def test_merge_then_compact(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "merge", "all", "one", "two"]) == 0
    printed = capsys.readouterr().out
    assert "5 copied" in printed
    assert "12 (2 rows are duplicates; compact drops them)" in printed
    assert main(["cache", "merge", "all", "one"]) == 0
    assert "0 copied, 3 were there already" in capsys.readouterr().out
    assert main(["cache", "compact", "all"]) == 0
    printed = capsys.readouterr().out
    assert "5 → 1" in printed
    assert "12 (2 duplicates dropped)" in printed
    assert contents(workplace / "all") == expected(NUMBERS)
    assert main(["cache", "verify", "all"]) == 0
    assert "12 rows in 1 shards, all sound" in capsys.readouterr().out
    assert main(["cache", "compact", "all", "--shard-mb", "1"]) == 0
    assert "1 → 1" in capsys.readouterr().out


def test_export_to_lines_and_to_a_folder(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "export", "one", "lines.jsonl", "--layers", "3,29", "--no-text"]) == 0
    lines = [json.loads(line) for line in (workplace / "lines.jsonl").read_text().splitlines()]
    assert [line["example_hash"] for line in lines] == list(expected(NUMBERS[:8]))
    assert "chosen_weights_29" in lines[0]
    assert not {"chosen_weights_0", "prompt"} & set(lines[0])
    assert main(["cache", "export", "one", "folder"]) == 0
    table = pq.read_table(workplace / "folder" / "data")
    assert table.num_rows == 8
    assert table.column("chosen")[0].as_py() == make_row(0, text=True).chosen_text
    printed = capsys.readouterr().out
    assert "written to" in printed
    assert main(["cache", "export", "bare", "bare.jsonl"]) == 0
    assert "2, without their texts" in capsys.readouterr().out


def test_import_makes_a_cache(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.fixtures.tiny_models import save_tiny
    from twdpo.pipeline.models import load_tokenizer

    save_tiny(workplace / "judge")
    tokenizer = load_tokenizer(str(workplace / "judge"))
    pairs = [{"prompt": f"question {i}", "chosen": "yes, really", "rejected": f"no {i}"} for i in range(4)]
    for pair in pairs:
        for side in ("chosen", "rejected"):
            count = len(tokenizer(pair[side], add_special_tokens=False)["input_ids"])
            pair[f"{side}_weight"] = [1.0 + i for i in range(count)]
    (workplace / "tis.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    assert main(["cache", "import", "tis.jsonl", "imported", "--tokenizer", "judge"]) == 0
    printed = capsys.readouterr().out
    assert "imported now" in printed
    assert verify(workplace / "imported").pairs == 4
    assert main(["cache", "import", "tis.jsonl", "imported", "--tokenizer", "judge"]) == 0
    assert "in the cache before" in capsys.readouterr().out


MISTAKES = [
    (["verify", "none"], 1, "none is no weights cache: there is no such folder"),
    (["compact", "none"], 1, "none is no weights cache: there is no such folder"),
    (["compact", "one", "--shard-mb", "0"], 2, "give at least 1"),
    (["merge", "all"], 2, "Missing argument 'CACHE...'"),
    (["merge", "all", "none"], 1, "none is no weights cache"),
    (["merge", "all", "one", "other"], 1, "dtype"),
    (["merge", "all", "one", "bare"], 1, "one holds texts and bare does not"),
    (["merge", "one", "one"], 2, "one"),
    (["export", "one", "there.jsonl"], 2, "there.jsonl"),
    (["export", "one", "x.csv"], 2, ".jsonl"),
    (["export", "one", "x", "--layers", "a"], 2, "--layers 'a' is not understood"),
    (["export", "one", "x", "--layers", "5"], 1, "no weights of layer 5"),
    (["export", "bare", "x", "--dataset", "gone.jsonl"], 1, "gone.jsonl"),
    (["export", "bare", "x", "--dataset", "demo"], 1, "2 "),
    (["import"], 2, "DATASET is missing"),
    (["import", "gone.jsonl", "x"], 1, "gone.jsonl"),
    (["import", "there.jsonl", "x"], 1, "there.jsonl"),
    (["import", "demo", "x"], 1, "demo"),
    (["push", "none", "me/cache"], 1, "none is no weights cache"),
    (["push", "one", "no name"], 1, "is no name of a data set on the hub"),
    (["pull", "me/cache", "one"], 1, "one"),
    (["pull", "no name", "new"], 1, "is no name of a data set on the hub"),
    (["push", "one"], 2, "Missing argument 'REPOSITORY'"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), MISTAKES, ids=lambda value: str(value)[:60])
def test_a_mistake_is_one_line(
    workplace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    before = sorted(path.name for path in workplace.iterdir())
    assert main(["cache", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("twdpo: ")
    assert len(error.splitlines()) == 1
    assert sorted(path.name for path in workplace.iterdir()) == before


def test_damage_is_named_file_by_file(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (first, second, _) = list_shards(workplace / "one" / "data")
    for path in (first, second):
        damaged = bytearray(path.read_bytes())
        damaged[500] ^= 4
        path.write_bytes(damaged)
    assert main(["cache", "verify", "one"]) == 1
    printed = capsys.readouterr().out
    assert first.name in printed
    assert second.name in printed
    for command in (["compact", "one"], ["merge", "all", "one"], ["export", "one", "x.jsonl"], ["push", "one", "a/b"]):
        assert main(["cache", *command]) == 1
        error = capsys.readouterr().err
        assert "damaged" in error
        assert len(error.splitlines()) == 1
    assert not (workplace / "x.jsonl").exists()


def twdpo(home: Path, endpoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own: the hub's address is read when it is imported."""
    return subprocess.run(
        [sys.executable, "-m", "twdpo", "cache", *arguments],
        cwd=home,
        env=environment(HF_HOME=str(home / "hf"), HF_HUB_DISABLE_XET="1", HF_ENDPOINT=endpoint, HF_TOKEN="hf_of_me"),
        capture_output=True,
        text=True,
    )


def test_push_and_pull(workplace: Path) -> None:
    with Hub().serve() as endpoint:
        pushed = twdpo(workplace, endpoint, "push", "one", "me/cache")
        assert (pushed.returncode, pushed.stderr) == (0, "")
        assert "me/cache" in pushed.stdout
        again = twdpo(workplace, endpoint, "push", "one", "me/cache")
        assert "nothing: it was all there" in again.stdout
        pulled = twdpo(workplace, endpoint, "pull", "me/cache", "fetched")
        assert (pulled.returncode, pulled.stderr) == (0, "")
        assert "all sound" in pulled.stdout
        missing = twdpo(workplace, endpoint, "pull", "me/nothing", "fetched-2")
        assert missing.returncode == 1
        assert len(missing.stderr.splitlines()) == 1
    assert contents(workplace / "fetched") == expected(NUMBERS[:8])
    assert (workplace / "fetched" / "example.svg").is_file()
    assert SOURCE["licence"] in (workplace / "fetched" / "README.md").read_text()
