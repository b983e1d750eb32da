"""Every hard row goes through stage one: a row of weights, or a reason that a person understands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twdpo.pipeline.annotate import AnnotateConfig, AnnotateProgress, annotate
from twdpo.pipeline.annotate.engines.fake import FakeEngine
from twdpo.pipeline.models import load_tokenizer
from twdpo.weights_cache import WeightsCache, verify


def _check(out: Path, rows: int, counts: AnnotateProgress) -> None:
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text("utf-8").splitlines()]
    assert counts.seen == rows
    with WeightsCache.open(out) as cache:
        stored = len(cache)
    duplicates = counts.duplicates
    assert stored + len(rejects) + duplicates == rows
    assert all(len(reject["reason"]) > 10 and "Traceback" not in reject["reason"] for reject in rejects)
    assert len({reject["row"] for reject in rejects}) == len(rejects)
    assert not verify(out).problems


@pytest.mark.model
def test_every_edge_case_with_the_real_tokenizer(shared: Path, embedded_model: str, tmp_path: Path) -> None:
    """The embedded model's tokenizer on all rows; attention is faked, which tokenization does not notice."""
    file = shared / "data/edge_cases.jsonl"
    config = AnnotateConfig(dataset=str(file), out=str(tmp_path / "out"))
    result = annotate(config, engine=FakeEngine(), tokenizer=load_tokenizer(embedded_model))
    rows = file.read_text("utf-8").count("\n")
    assert rows == 153
    _check(tmp_path / "out", rows, result.counts)
    assert result.reasons  # empty and identical answers and differing prompts are among them


@pytest.mark.model
@pytest.mark.slow
def test_every_edge_case_with_the_real_model(shared: Path, embedded_model: str, tmp_path: Path) -> None:
    file = shared / "data/edge_cases.jsonl"
    config = AnnotateConfig(
        dataset=str(file), out=str(tmp_path / "out"), model=embedded_model, max_length=768, layers="-1", device="cpu"
    )
    result = annotate(config)
    _check(tmp_path / "out", 153, result.counts)
    assert result.counts.truncated > 0
