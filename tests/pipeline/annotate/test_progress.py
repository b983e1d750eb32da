"""Rates and the time left: over what was judged, whatever was in the cache before."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from tests.fixtures.tiny_models import tiny_tokenizer
from twdpo.console import _AnnotateLog
from twdpo.pipeline.annotate import AnnotateConfig, AnnotateProgress, annotate
from twdpo.pipeline.annotate.engines.fake import FakeEngine
from twdpo.pipeline.annotate.prompt import JudgePrompt
from twdpo.results import rates


class Counted(FakeEngine):
    """An engine on a device of a known kind: a thousand operations a token, a million in a second."""

    @property
    def peak_flops(self) -> float | None:
        return 1e6

    def flops(self, prompts: Sequence[JudgePrompt], layers: Sequence[int], *, verdict: bool) -> float | None:
        return 1000.0 * sum(len(prompt.ids) for prompt in prompts)


def test_cached_rows_do_not_spoil_the_pace() -> None:
    """A resumed run: 5,000 rows went by in a second, then 100 were judged in 50 seconds; as many are left."""
    progress = AnnotateProgress(
        total=5200, seen=5100, cached=5000, written=100, before=5000, tokens=80_000, seconds=51.0, judging=50.0
    )
    assert progress.pairs_per_second == 2.0
    assert progress.tokens_per_second == 1600.0
    assert progress.left == 50.0
    assert rates(progress) == "2.00 pairs/s  1,600 tokens/s"


def test_rows_of_other_parts_and_rejects_count_in_what_is_left() -> None:
    progress = AnnotateProgress(total=400, seen=100, written=30, elsewhere=60, rejected=10, judging=30.0)
    assert progress.left == 90.0


@pytest.mark.parametrize(
    "progress",
    [
        AnnotateProgress(total=100),
        AnnotateProgress(total=100, seen=50, cached=50, seconds=3.0),
        AnnotateProgress(total=None, seen=50, written=50, seconds=3.0, judging=3.0),
    ],
)
def test_where_nothing_tells_nothing_is_said(progress: AnnotateProgress) -> None:
    assert progress.left is None
    assert progress.utilisation is None


def test_utilisation() -> None:
    progress = AnnotateProgress(total=10, seen=5, written=5, tokens=5000, judging=2.0, flops=4e14, peak_flops=989.4e12)
    assert progress.utilisation == pytest.approx(4e14 / 2 / 989.4e12)
    assert rates(progress) == "2.50 pairs/s  2,500 tokens/s  20% of peak FLOP/s"


def test_sums() -> None:
    first = AnnotateProgress(total=9, seen=4, written=3, cached=1, judging=1.0, flops=2.0, peak_flops=5.0)
    both = first.plus(AnnotateProgress(total=4, seen=4, written=4, judging=2.0, flops=3.0, peak_flops=5.0))
    assert both == AnnotateProgress(total=9, seen=8, written=7, cached=1, judging=3.0, flops=5.0, peak_flops=5.0)


def test_a_run_tells_operations_and_where_judging_began(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "chosen": "good answer", "rejected": "bad"} for i in range(100)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"dataset": str(tmp_path / "pairs.jsonl"), "out": str(tmp_path / "out")}
    annotate(AnnotateConfig(**options, limit=40), engine=FakeEngine(), tokenizer=tiny_tokenizer())
    shown: list[AnnotateProgress] = []
    counts = annotate(
        AnnotateConfig(**options), engine=Counted(), tokenizer=tiny_tokenizer(), on_progress=shown.append
    ).counts
    assert (counts.cached, counts.written, counts.before) == (40, 60, 40)
    assert counts.flops == 1000.0 * counts.tokens
    assert counts.utilisation is not None
    assert 0 < counts.judging <= counts.seconds
    assert shown[-1].seen == counts.seen == 100
    assert (
        annotate(AnnotateConfig(**options, limit=1), engine=FakeEngine(), tokenizer=tiny_tokenizer()).counts.left
        is None
    )


def test_lines_of_a_log() -> None:
    out = io.StringIO()
    now = [1000.0]
    log = _AnnotateLog(Console(file=out, width=40), lambda: now[0])
    for seen, seconds in ((32, 10.0), (64, 20.0), (128, 40.0)):
        log(AnnotateProgress(total=2177, seen=seen, written=seen, tokens=1000 * seen, seconds=seconds, judging=seconds))
        now[0] += 20
    assert out.getvalue().splitlines() == [
        "32 of 2177 pairs  3.20 pairs/s  3,200 tokens/s  11 min left",
        "128 of 2177 pairs  3.20 pairs/s  3,200 tokens/s  11 min left",
    ]
