"""Every setting of weights and loss through `train`, against sums that are written out here, resident and streamed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.pipeline.train.conftest import LAYERS, World, stored_weights
from twdpo.pipeline.train import train
from twdpo.pipeline.train.metrics import MetricsFile, Record
from twdpo.weights_cache import SideWeights

BOTH = pytest.mark.parametrize("streaming", [False, True], ids=["resident", "streamed"])
SETTINGS: list[dict[str, Any]] = [
    {},
    {"attn_source": "0"},
    {"attn_source": "mean"},
    {"attn_source": "mean:0,1", "uniform_mix": 0.25},
    {"sink_fix": False},
    {"uncovered": "one"},
    {"uniform_mix": 1.0, "uncovered": "one"},
]


def words(text: str) -> SideWeights:
    """Weights of a judge whose tokens are words and marks, and no spaces."""
    spans = [span for _, span in pre_tokenizers.Whitespace().pre_tokenize_str(text)]
    rng = np.random.default_rng(len(text))
    raw = {layer: rng.random(len(spans)) + 0.01 for layer in LAYERS}
    starts, ends = (np.array(side, np.int32) for side in zip(*spans, strict=True))
    return SideWeights(starts=starts, ends=ends, weights={k: (w / w.mean()).astype(np.float32) for k, w in raw.items()})


def judged(stored: SideWeights, source: str = "last", sink_fix: bool = True) -> list[float]:
    """A judge's weights as one of the sources has them."""
    layers = {"last": [1], "0": [0], "mean": [0, 1], "mean:0,1": [0, 1]}[source]
    weights = [sum(float(stored.weights[k][i]) for k in layers) / len(layers) for i in range(len(stored.starts))]
    if sink_fix and len(weights) >= 5:
        total = sum(weights)
        mean = total / len(weights)
        weights = [mean, *(w * (total - mean) / (total - weights[0]) for w in weights[1:])]
    return weights


def weighted_logps(world: World, stored: Callable[[str], SideWeights], side: str, **settings: Any) -> float:
    """The mean over the pairs of Σ w log π, a character at a time."""
    tokenizer: Any = AutoTokenizer.from_pretrained(world.model)
    model: Any = AutoModelForCausalLM.from_pretrained(world.model)
    mix, beyond = settings.pop("uniform_mix", 0.0), 1.0 if settings.pop("uncovered", "zero") == "one" else 0.0
    sums = []
    for line in world.pairs.read_text("utf-8").splitlines():
        row = json.loads(line)
        before = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        text = before + row[side] + "<|im_end|>\n"
        encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        first = len(tokenizer(before, add_special_tokens=False)["input_ids"])
        judge = stored(row[side])
        mass = dict.fromkeys(range(len(row[side])), 0.0)
        seen = set()
        for start, end, weight in zip(judge.starts, judge.ends, judged(judge, *_source(settings)), strict=True):
            for place in range(start, end):
                mass[place] += weight / (end - start)
                seen.add(place)
        spans = [range(a - len(before), b - len(before)) for a, b in encoded["offset_mapping"][first:]]
        covered = [bool(seen & set(span)) for span in spans]
        raw = [sum(mass.get(place, 0.0) for place in span) for span in spans]
        scale = sum(covered) / sum(raw)
        weights = [(1 - mix) * r * scale + mix if c else beyond for r, c in zip(raw, covered, strict=True)]
        with torch.no_grad():
            logps = model(torch.tensor([encoded["input_ids"]])).logits[0].log_softmax(-1)
        ids = encoded["input_ids"]
        sums.append(sum(w * float(logps[first + i - 1, ids[first + i]]) for i, w in enumerate(weights)))
    return sum(sums) / len(sums)


def _source(settings: dict[str, Any]) -> tuple[str, bool]:
    return settings.get("attn_source", "last"), settings.get("sink_fix", True)


def records(world: World, **changes: Any) -> list[Record]:
    """The lines of a run without held-out pairs."""
    result = train(world.config(**({"eval_split": "none", "save_every": 0} | changes)))
    return MetricsFile(result.out / "metrics.jsonl").read()


@BOTH
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("stored", [stored_weights, words], ids=["the policy's tokens", "another tokenizer's"])
def test_weights_are_those_asked_for(
    empty_world: World, streaming: bool, settings: dict[str, Any], stored: Callable[[str], SideWeights]
) -> None:
    empty_world.annotate(empty_world.write_pairs(6), stored=stored)
    (record,) = records(empty_world, streaming=streaming, batch_size=6, max_steps=1, **settings)
    for side in ("chosen", "rejected"):
        expected = weighted_logps(empty_world, stored, side, **settings)
        assert record[f"logps/weighted_{side}"] == pytest.approx(expected, rel=1e-4), side


@BOTH
@pytest.mark.parametrize(("beta", "smoothing"), [(0.1, 0.0), (0.7, 0.2)])
def test_beta_and_label_smoothing(empty_world: World, streaming: bool, beta: float, smoothing: float) -> None:
    """One pair, of which all figures are known: rewards are β times what was gained, the loss is that of the margin."""
    empty_world.annotate(empty_world.write_pairs(1))
    changes: dict[str, Any] = {"streaming": streaming, "batch_size": 1, "max_steps": 3, "learning_rate": 1e-3}
    first, *_, last = records(empty_world, beta=beta, label_smoothing=smoothing, warmup_ratio=0.0, **changes)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    for side in ("chosen", "rejected"):
        gained = last[f"logps/weighted_{side}"] - first[f"logps/weighted_{side}"]
        assert last[f"rewards/weighted_{side}"] == pytest.approx(beta * gained, rel=1e-3, abs=1e-4)
    margin = last["rewards/weighted_margins"]
    assert margin > 0.01
    expected = (1 - smoothing) * math.log1p(math.exp(-margin)) + smoothing * math.log1p(math.exp(margin))
    assert last["loss"] == pytest.approx(expected, rel=1e-4)
