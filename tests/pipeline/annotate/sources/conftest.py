"""Pairs for sources, with rejects, duplicates and odd white space among them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.tiny_models import tiny_tokenizer
from twdpo.pipeline.annotate import AnnotateConfig, AnnotateResult, annotate
from twdpo.pipeline.annotate.engines.fake import FakeEngine

Run = Callable[..., AnnotateResult]


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """12 rows: 10 pairs, one of them twice, and one reject."""
    rows = [{"prompt": f"question {i}", "chosen": f"  good answer {i} " * (i + 1), "rejected": "bad"} for i in range(9)]
    rows += [{"prompt": "markers", "chosen": "ends with <|im_end|> and é\n", "rejected": "no"}]
    rows += [rows[3], {"prompt": "q", "chosen": " ", "rejected": "x"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(pairs_file: Path, tmp_path: Path) -> Run:
    """Stage one with a fake engine: `run("out", source="uniform")`; the folder is made where the pairs are."""

    def annotate_into(out: str, **options: Any) -> AnnotateResult:
        config = AnnotateConfig(**({"dataset": str(pairs_file), "out": str(tmp_path / out)} | options))
        return annotate(config, engine=FakeEngine(), tokenizer=tiny_tokenizer())

    return annotate_into
