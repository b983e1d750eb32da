"""The demo from end to end on the real model, as `make demo` runs it; with fewer steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from twdpo.cli import main
from twdpo.weights_cache import WeightsCache


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_demo(
    embedded_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--steps", "2"]) == 0
    shown = capsys.readouterr().out
    assert "24 held-out pairs" in shown
    assert "twdpo-demo/weights_cache/" in shown
    with WeightsCache.open("twdpo-demo/weights_cache") as cache:
        assert len(cache) == 108
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained("twdpo-demo/trained")
    assert main(["demo", "--steps", "2"]) == 0  # a second run uses the weights that are there and trains anew
