"""Metrics: TRL's names, means over pairs, windows that survive a checkpoint, and a file that survives a crash."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.pipeline.train.test_loss import sides
from twdpo.pipeline.train.loss import twdpo_loss
from twdpo.pipeline.train.metrics import NAMES, MetricsFile, Window, means, metric_sums


def test_names_and_values() -> None:
    pairs = twdpo_loss(*sides(5), beta=0.1)
    found = means(metric_sums(pairs), 3, "eval_")
    assert set(found) == {f"eval_{name}" for name in NAMES}
    assert found["eval_loss"] == pytest.approx(pairs.losses.mean().item())
    assert found["eval_rewards/margins"] == pytest.approx((pairs.chosen_rewards - pairs.rejected_rewards).mean().item())
    right = (pairs.weighted_chosen_rewards > pairs.weighted_rejected_rewards).double().mean().item()
    assert found["eval_rewards/weighted_accuracies"] == pytest.approx(right)
    assert found["eval_logps/weighted_rejected"] == pytest.approx(pairs.weighted_rejected_logps.mean().item())
    assert found["eval_logps/chosen"] == pytest.approx(pairs.chosen_logps.mean().item())


def test_a_window_goes_through_json_to_the_bit() -> None:
    import json

    window = Window.empty()
    window.add(torch.rand(len(NAMES)) / 3, 7, 1000, 0.5, 1e-6, 2.5)
    window.add(torch.rand(len(NAMES)) / 3, 8, 1000, 0.5, 2e-6, 3.5)
    again = Window.from_state(json.loads(json.dumps(window.state())))
    assert again.record() == window.record()
    assert window.record()["learning_rate"] == 2e-6
    assert window.record()["tokens_per_second"] == 2000


def test_the_file_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    assert file.begin(0) == []
    for step in (1, 2, 3):
        file.add({"step": step, "loss": 1.0})
    with file.path.open("a", encoding="utf-8") as stream:
        stream.write('{"step": 4, "lo')
    assert [record["step"] for record in file.begin(2)] == [1, 2]
    file.add({"step": 3, "loss": 2.0})
    assert [record["step"] for record in file.read()] == [1, 2, 3]
    assert file.begin(0) == []
    assert file.read() == []
