"""A run's three threads: reading ahead of the engine and writing behind it, with a bounded number of pairs between."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.tiny_models import tiny_tokenizer
from tests.weights_cache.states import state
from twdpo.errors import DataError, Interrupted, StorageError
from twdpo.pipeline.annotate import AnnotateConfig, AnnotateProgress, AnnotateResult, annotate, run
from twdpo.pipeline.annotate.engines.base import Engine, Reading
from twdpo.pipeline.annotate.engines.fake import FakeEngine
from twdpo.pipeline.annotate.prompt import JudgePrompt, PromptBuilder
from twdpo.weights_cache import CacheWriter, verify

PATIENCE = 20.0
WINDOW = 4


@pytest.fixture
def pairs_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """15 windows of 4 pairs."""
    monkeypatch.setattr(run, "WINDOW", WINDOW)
    rows = [{"prompt": f"question {i}", "chosen": "good answer", "rejected": "bad"} for i in range(60)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judge(dataset: Path, out: Path, engine: Engine, **options: Any) -> AnnotateResult:
    return annotate(
        AnnotateConfig(dataset=str(dataset), out=str(out)), engine=engine, tokenizer=tiny_tokenizer(), **options
    )


class Watched(FakeEngine):
    """Calls `before(n)` before its n-th window, from 1."""

    def __init__(self, before: Any) -> None:
        super().__init__()
        self._before, self.windows = before, 0

    def read(
        self, prompts: Sequence[JudgePrompt], layers: Sequence[int], verdict_ids: tuple[int, int] | None
    ) -> list[Reading]:
        self.windows += 1
        self._before(self.windows)
        return super().read(prompts, layers, verdict_ids)


def test_prompts_are_made_while_the_engine_works_and_not_too_many(
    pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, most = 0, 0
    change = threading.Condition()
    build = PromptBuilder.build

    def counting(self: PromptBuilder, *arguments: Any) -> JudgePrompt:
        nonlocal built
        with change:
            built += 1
            change.notify_all()
        return build(self, *arguments)

    def before(window: int) -> None:
        """Inside the engine: the prompts of the next windows are made meanwhile, and none beyond those."""
        nonlocal most
        wanted = 2 * WINDOW * min(15, window + 2)
        with change:
            assert change.wait_for(lambda: built >= wanted, PATIENCE)
            most = max(most, built - 2 * WINDOW * window)

    monkeypatch.setattr(PromptBuilder, "build", counting)
    assert judge(pairs_file, tmp_path / "out", Watched(before)).counts.written == 60
    assert most <= 2 * 2 * WINDOW


def test_rows_are_written_while_the_engine_works_and_not_too_late(
    pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first row waits until the engine has begun its second window; the fifth window waits for the first row."""
    second = threading.Event()
    added: list[int] = []
    add = CacheWriter.add

    def waiting(self: CacheWriter, row: Any) -> bool:
        assert second.wait(PATIENCE)
        assert threading.current_thread() is not threading.main_thread()
        added.append(1)
        return add(self, row)

    def before(window: int) -> None:
        if window == 2:
            assert added == []
            second.set()
        # Windows that are judged and not written: one in work, two that wait.
        assert WINDOW * (window - 1) - len(added) <= 3 * WINDOW

    monkeypatch.setattr(CacheWriter, "add", waiting)
    assert judge(pairs_file, tmp_path / "out", Watched(before)).counts.written == 60


def test_ctrl_c_keeps_what_was_judged_and_not_yet_written(
    pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = CacheWriter.add

    def slowly(self: CacheWriter, row: Any) -> bool:
        time.sleep(0.01)
        return add(self, row)

    def before(window: int) -> None:
        if window == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(CacheWriter, "add", slowly)
    with pytest.raises(Interrupted, match="stopped; 12 pairs of this run are kept"):
        judge(pairs_file, tmp_path / "out", Watched(before))
    assert verify(tmp_path / "out").pairs == 12


def test_errors_of_each_thread_are_those_that_were_raised(
    pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise StorageError("cannot write: the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(CacheWriter, "add", fail)
        with pytest.raises(StorageError, match="cannot write: the disk is full"):
            judge(pairs_file, tmp_path / "writing", FakeEngine())

    def broken(_window: int) -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        judge(pairs_file, tmp_path / "judging", Watched(broken))
    pairs_file.write_text(pairs_file.read_text() + "{\n")
    with pytest.raises(DataError, match="line 61"):
        judge(pairs_file, tmp_path / "reading", FakeEngine())
    # What came before the broken row in whole windows is kept, and nothing runs on.
    assert verify(tmp_path / "reading").pairs >= 48
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("twdpo")] == []


def test_progress_is_told_in_the_calling_thread(pairs_file: Path, tmp_path: Path) -> None:
    shown: list[AnnotateProgress] = []

    def show(progress: AnnotateProgress) -> None:
        assert threading.current_thread() is threading.main_thread()
        shown.append(progress)

    judge(pairs_file, tmp_path / "out", FakeEngine(), on_progress=show)
    assert [p.seen for p in shown] == sorted(p.seen for p in shown)
    assert all(p.seen == p.written + p.cached + p.duplicates + p.rejected + p.elsewhere for p in shown)
    assert shown[-1].seen == 60


def test_the_order_of_rows_is_that_of_the_data(pairs_file: Path, tmp_path: Path) -> None:
    for out in ("first", "second"):
        judge(pairs_file, tmp_path / out, FakeEngine())
    assert list(state(tmp_path / "first").rows) == list(state(tmp_path / "second").rows)
