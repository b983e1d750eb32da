"""Stage one from pairs to cache, with a fake engine: every pair accounted for, resume, recipes, interruption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.tiny_models import save_tiny, tiny_tokenizer
from twdpo.errors import DataError, Interrupted, RecipeMismatch, UsageError
from twdpo.pipeline.annotate import AnnotateConfig, AnnotateProgress, AnnotateResult, annotate
from twdpo.pipeline.annotate.engines.base import Engine, Reading
from twdpo.pipeline.annotate.engines.fake import FakeEngine
from twdpo.pipeline.annotate.prompt import JudgePrompt
from twdpo.preferences import Pair, load, resolve
from twdpo.weights_cache import WeightsCache


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """40 rows: 36 pairs, two of them twice, one empty answer, one pair of equal answers."""
    rows = [{"prompt": f"question {i}", "chosen": f"good answer {i} " * (i + 1), "rejected": "bad"} for i in range(36)]
    rows += [rows[3], rows[5]]
    rows += [{"prompt": "q", "chosen": " ", "rejected": "x"}, {"prompt": "q", "chosen": "same", "rejected": "same"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(dataset: Path, out: Path, *, engine: Engine | None = None, **options: Any) -> AnnotateResult:
    config = AnnotateConfig(dataset=str(dataset), out=str(out), **options)
    return annotate(config, engine=engine or FakeEngine(), tokenizer=tiny_tokenizer())


def weights(out: Path) -> dict[str, list[np.ndarray[Any, Any]]]:
    with WeightsCache.open(out) as cache:
        return {
            row.example_hash: [*row.chosen.weights.values(), *row.rejected.weights.values()] for row in cache.rows()
        }


def equal(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(np.array_equal(x, y) for key in a for x, y in zip(a[key], b[key], strict=True))


class StopsAfter(FakeEngine):
    """A fake engine under which Ctrl-C is pressed at the n-th window."""

    def __init__(self, windows: int) -> None:
        super().__init__()
        self._left = windows

    def read(
        self, prompts: Sequence[JudgePrompt], layers: Sequence[int], verdict_ids: tuple[int, int] | None
    ) -> list[Reading]:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        return super().read(prompts, layers, verdict_ids)


def test_counts_add_up(pairs_file: Path, tmp_path: Path) -> None:
    counts = run(pairs_file, tmp_path / "out").counts
    assert (counts.total, counts.seen) == (40, 40)
    assert (counts.written, counts.duplicates, counts.rejected, counts.cached) == (36, 2, 2, 0)
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert sorted(reject["row"] for reject in rejects) == [38, 39]
    assert all(reject["reason"] for reject in rejects)


def test_a_second_run_does_nothing_and_lists_no_reject_twice(pairs_file: Path, tmp_path: Path) -> None:
    run(pairs_file, tmp_path / "out")
    counts = run(pairs_file, tmp_path / "out").counts
    assert (counts.written, counts.cached, counts.duplicates, counts.rejected) == (0, 36, 2, 2)
    assert len((tmp_path / "out/rejects.jsonl").read_text().splitlines()) == 2


def test_interrupted_and_resumed_equals_uninterrupted(pairs_file: Path, tmp_path: Path) -> None:
    run(pairs_file, tmp_path / "whole")
    with pytest.raises(Interrupted, match="32 pairs of this run are kept .* run the same command again"):
        run(pairs_file, tmp_path / "out", engine=StopsAfter(1))
    assert len(weights(tmp_path / "out")) == 32
    counts = run(pairs_file, tmp_path / "out").counts
    assert (counts.cached, counts.written) == (32, 4)
    assert equal(tmp_path / "whole", tmp_path / "out")


def test_without_the_verdict_the_weights_are_the_same(pairs_file: Path, tmp_path: Path) -> None:
    run(pairs_file, tmp_path / "with")
    result = run(pairs_file, tmp_path / "without", verdict=False)
    assert result.judge_accuracy is None
    assert equal(tmp_path / "with", tmp_path / "without")
    with WeightsCache.open(tmp_path / "without") as cache:
        assert all(np.isnan([row.judge_prob_cr, row.judge_prob_rc]).all() for row in cache.rows())


def test_order_of_pairs_and_a_second_data_set_do_not_matter(pairs_file: Path, tmp_path: Path) -> None:
    run(pairs_file, tmp_path / "whole")
    lines = pairs_file.read_text().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_text("".join(reversed(lines[10:])))
    (tmp_path / "b.jsonl").write_text("".join(lines))
    run(tmp_path / "a.jsonl", tmp_path / "out")
    run(tmp_path / "b.jsonl", tmp_path / "out")
    assert equal(tmp_path / "whole", tmp_path / "out")
    with WeightsCache.open(tmp_path / "out") as cache:
        assert [source["name"] for source in cache.manifest.sources] == [
            str(tmp_path / "a.jsonl"),
            str(tmp_path / "b.jsonl"),
        ]


def test_another_recipe_is_refused_by_field(pairs_file: Path, tmp_path: Path) -> None:
    run(pairs_file, tmp_path / "out")
    with pytest.raises(RecipeMismatch, match=r"max_length: 2048 in the cache, 1024 asked for"):
        run(pairs_file, tmp_path / "out", max_length=1024)
    with pytest.raises(RecipeMismatch, match=r"layers: 0,1,2,3 in the cache, 3 asked for"):
        run(pairs_file, tmp_path / "out", layers="3")


def test_limit_takes_the_first_and_seed_draws(pairs_file: Path, tmp_path: Path) -> None:
    first = run(pairs_file, tmp_path / "first", limit=5)
    assert (first.counts.total, first.counts.seen) == (5, 5)
    hashes = [item.example_hash for item in load(resolve(str(pairs_file))) if isinstance(item, Pair)]
    assert set(weights(tmp_path / "first")) == set(hashes[:5])
    for out in ("drawn", "again"):
        assert run(pairs_file, tmp_path / out, limit=5, seed=1).counts.seen == 5
    assert equal(tmp_path / "drawn", tmp_path / "again")
    assert set(weights(tmp_path / "drawn")) != set(weights(tmp_path / "first"))


def test_include_text_makes_the_cache_a_data_set_of_its_own(pairs_file: Path, tmp_path: Path) -> None:
    run(pairs_file, tmp_path / "out", include_text=True)
    with WeightsCache.open(tmp_path / "out") as cache:
        row = next(iter(cache.rows()))
    assert row.prompt == (("user", "question 0"),)
    assert (row.chosen_text, row.rejected_text) == ("good answer 0 ", "bad")


def test_configuration_is_saved_beside_the_result(pairs_file: Path, tmp_path: Path) -> None:
    run(pairs_file, tmp_path / "out", limit=2, layers="1,3")
    from twdpo.config import resolve as read

    saved = read(AnnotateConfig, str(tmp_path / "out/annotate.yaml"), {})
    assert (saved.limit, saved.layers, saved.dataset) == (2, "1,3", str(pairs_file))


def test_progress_counts_up_to_the_total(pairs_file: Path, tmp_path: Path) -> None:
    shown: list[AnnotateProgress] = []
    config = AnnotateConfig(dataset=str(pairs_file), out=str(tmp_path / "out"))
    annotate(config, on_progress=shown.append, engine=FakeEngine(), tokenizer=tiny_tokenizer())
    assert shown
    assert all(p.seen == p.written + p.cached + p.duplicates + p.rejected for p in shown)
    assert [p.seen for p in shown] == sorted(p.seen for p in shown)


def test_an_empty_selection_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="empty"):
        run(tmp_path / "empty.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, (0, 6, 14, 21, 29)), ("29", (29,)), ("-1,0", (0, 29)), ("7,7,3", (3, 7)), ("all", tuple(range(30)))],
)
def test_layers(text: str | None, expected: tuple[int, ...]) -> None:
    from twdpo.pipeline.annotate.config import parse_layers

    assert parse_layers(text, 30, tuple(range(30))) == expected


def test_default_layers_are_the_published_ones_and_keep_to_global_layers() -> None:
    from twdpo.pipeline.annotate.config import default_layers

    assert default_layers(32, tuple(range(32))) == (0, 7, 15, 23, 31)
    assert default_layers(26, tuple(range(5, 26, 6))) == (5, 11, 17, 23)
    assert default_layers(1, (0,)) == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "--limit 0 is too small"),
        ({"dtype": "int8"}, "--dtype int8 is not known"),
        ({"seed": 3}, "--seed draws pairs at random and needs --limit"),
        ({"layers": "4"}, "the judge has 4 layers, 0 to 3"),
        ({"layers": "a"}, "--layers 'a' is not understood"),
    ],
)
def test_wrong_options(pairs_file: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(pairs_file, tmp_path / "out", **options)


class TestRealLoading:
    """The transformers engine on a tiny model in a folder, as a user names it."""

    def test_tiny_model_end_to_end(self, pairs_file: Path, tmp_path: Path) -> None:
        save_tiny(tmp_path / "judge", "llama", layers=4, context=2048)
        config = AnnotateConfig(
            dataset=str(pairs_file), out=str(tmp_path / "out"), model=str(tmp_path / "judge"), limit=4, device="cpu"
        )
        result = annotate(config)
        assert result.counts.written == 4
        assert result.layers == (0, 1, 2, 3)
        with WeightsCache.open(tmp_path / "out") as cache:
            assert cache.recipe.judge_revision is not None
            for row in cache.rows():
                assert 0 < row.judge_prob_cr < 1
                assert 0 < row.attention_share_chosen < 1

    def test_context_and_windows_are_checked(self, pairs_file: Path, tmp_path: Path) -> None:
        save_tiny(tmp_path / "short", "llama", context=512)
        base = {"dataset": str(pairs_file), "out": str(tmp_path / "out"), "device": "cpu"}
        with pytest.raises(UsageError, match="more than the judge's context of 512 tokens; use --max-length 512"):
            annotate(AnnotateConfig(**base, model=str(tmp_path / "short")))
        save_tiny(tmp_path / "sliding", "gemma2", layers=4, context=2048)
        with pytest.raises(UsageError, match="layer 0 of the judge attends over 16 tokens only"):
            annotate(AnnotateConfig(**base, model=str(tmp_path / "sliding"), layers="0", max_length=1024))
