"""Parts of a data set: they partition it, and judged one by one or all at once they make what one run makes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures.tiny_models import save_tiny, tiny_tokenizer
from tests.preferences.processes import environment
from tests.weights_cache.states import assert_weights_agree, state
from twdpo.errors import UsageError
from twdpo.pipeline.annotate import AnnotateConfig, AnnotateResult, annotate
from twdpo.pipeline.annotate.engines.fake import FakeEngine
from twdpo.pipeline.annotate.shard import Shard
from twdpo.weights_cache import Manifest, merge, verify

ROOT = Path(__file__).resolve().parents[3]
PARTS = ("0/3", "1/3", "2/3")


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """40 rows: 34 pairs, two of them twice, two with an empty answer, and two that are no pairs at all."""
    rows: list[dict[str, Any]] = [
        {"prompt": f"question {i}", "chosen": f"good answer {i} " * (1 + i % 5), "rejected": "bad"} for i in range(34)
    ]
    rows += [rows[3], rows[5]]
    rows += [{"prompt": f"q{i}", "chosen": " ", "rejected": "x"} for i in range(2)]
    rows += [{"prompt": 7, "chosen": None, "rejected": "x"}, {"prompt": "q", "chosen": 3, "rejected": "x"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(dataset: Path, out: Path, shard: str | None, **options: Any) -> AnnotateResult:
    config = AnnotateConfig(dataset=str(dataset), out=str(out), shard=shard, **options)
    return annotate(config, engine=FakeEngine(), tokenizer=tiny_tokenizer())


@given(
    keys=st.lists(st.one_of(st.none(), st.binary(max_size=8).map(lambda b: hashlib.sha256(b).hexdigest()[:32]))),
    count=st.integers(1, 50),
)
def test_parts_partition_any_set(keys: list[str | None], count: int) -> None:
    parts = [Shard(index=index, count=count) for index in range(count)]
    takers = [[part.index for part in parts if part.takes(key, row)] for row, key in enumerate(keys)]
    assert all(len(taker) == 1 for taker in takers)
    by_key: dict[str, int] = {}
    for row, (key, taker) in enumerate(zip(keys, takers, strict=True)):
        if key is None:
            assert taker == [row % count]
        else:
            assert by_key.setdefault(key, taker[0]) == taker[0]


def test_parts_are_about_equal() -> None:
    keys = [hashlib.sha256(str(i).encode()).hexdigest()[:32] for i in range(3000)]
    sizes = [sum(Shard(index=index, count=3).takes(key, 0) for key in keys) for index in range(3)]
    assert max(sizes) - min(sizes) < 150


@pytest.mark.parametrize("text", ["3/3", "0/0", "1", "a/b", "-1/3", "0/3/4", "", "0.5/3", "1/"])
def test_what_is_no_part_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="--shard") as caught:
        AnnotateConfig(dataset="demo", shard=text)
    assert "\n" not in str(caught.value)


def test_one_after_the_other_they_make_what_one_run_makes(pairs_file: Path, tmp_path: Path) -> None:
    whole = run(pairs_file, tmp_path / "whole", None).counts
    results = [run(pairs_file, tmp_path / "out", shard) for shard in PARTS]
    assert state(tmp_path / "out") == state(tmp_path / "whole")
    for name in ("manifest.json", "annotate.yaml"):
        first, second = ((tmp_path / folder / name).read_text() for folder in ("whole", "out"))
        if name.endswith("yaml"):
            assert first.replace("whole", "out") == second
    manifests = [Manifest.load(tmp_path / folder) for folder in ("whole", "out")]
    assert manifests[0].sources == manifests[1].sources
    counts = [result.counts for result in results]
    assert [c.seen for c in counts] == [whole.seen] * 3 == [40] * 3
    assert sum(c.elsewhere for c in counts) == 2 * 40
    for name in ("written", "duplicates", "rejected", "truncated", "tokens"):
        assert sum(getattr(c, name) for c in counts) == getattr(whole, name), name
    assert all(0 < c.written < 34 and c.cached == 0 for c in counts)
    again = run(pairs_file, tmp_path / "out", "1/3").counts
    assert (again.written, again.cached) == (0, counts[1].written)


def test_a_new_order_changes_nothing(pairs_file: Path, tmp_path: Path) -> None:
    run(pairs_file, tmp_path / "out", "1/3")
    lines = pairs_file.read_text().splitlines(keepends=True)
    pairs_file.write_text("".join(reversed(lines)))
    assert run(pairs_file, tmp_path / "out", "1/3").counts.written == 0


def test_folders_of_their_own_are_merged_to_what_one_run_makes(pairs_file: Path, tmp_path: Path) -> None:
    run(pairs_file, tmp_path / "whole", None, limit=30, seed=5)
    for i, shard in enumerate(PARTS):
        run(pairs_file, tmp_path / str(i), shard, limit=30, seed=5)
    merge(tmp_path / "out", [tmp_path / str(i) for i in range(3)])
    merged, whole = state(tmp_path / "out"), state(tmp_path / "whole")
    assert (merged.rows, merged.rejects, merged.counts) == (whole.rows, whole.rejects, whole.counts)
    assert Manifest.load(tmp_path / "out").sources == Manifest.load(tmp_path / "whole").sources
    assert verify(tmp_path / "out").problems == ()


@pytest.mark.slow
def test_three_processes_at_the_same_time_with_a_real_model(pairs_file: Path, tmp_path: Path) -> None:
    """Through the command, into one cache; batches differ from one run's, so weights agree as they are rounded."""
    save_tiny(tmp_path / "judge", "llama", layers=3, context=2048)
    options = ["--dataset", str(pairs_file), "--model", str(tmp_path / "judge"), "--device", "cpu"]

    def start(out: str, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "twdpo", "annotate", *options, "--out", str(tmp_path / out), *more],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1"),
        )

    running = [start("out", "--shard", shard) for shard in PARTS]
    for process, shard in zip(running, PARTS, strict=True):
        shown, errors = process.communicate()
        assert process.returncode == 0, errors
        assert f"{shard};" in shown
        assert "next: the other parts, then twdpo train" in shown
    annotate(AnnotateConfig(dataset=str(pairs_file), out=str(tmp_path / "whole"), model=options[3], device="cpu"))
    assert verify(tmp_path / "out").problems == ()
    ours, whole = Manifest.load(tmp_path / "out"), Manifest.load(tmp_path / "whole")
    assert ours.sources == whole.sources
    assert ours.counts["rejected"] == whole.counts["rejected"]
    assert ours.counts["pairs"] == 34
    assert_weights_agree(tmp_path / "out", tmp_path / "whole")
