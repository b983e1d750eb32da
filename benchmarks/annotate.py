"""Stage one against the published procedure, on the same pairs and the same model, alternating in one run.

    python benchmarks/annotate.py [PAIRS.parquet] --pairs 8 --rounds 3

Published: one prompt at a time, eager attention, every attention map kept, logits at every position.
Ours: the transformers engine as `twdpo annotate` runs it. Prints medians, the ratio and the largest difference of p.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from machine import describe

from twdpo.pipeline.annotate.engines.transformers import TransformersEngine
from twdpo.pipeline.annotate.prompt import JudgePrompt, PromptBuilder, load_template
from twdpo.pipeline.annotate.weights import distribution
from twdpo.pipeline.models import load_model
from twdpo.preferences import Pair, load, resolve

LAYERS = (0, 6, 14, 21, 29)
Readings = list[dict[int, tuple[Any, Any]]]


def published(model: Any, prompts: list[JudgePrompt]) -> Readings:
    """The published procedure's forward passes."""
    rows = []
    for prompt in prompts:
        with torch.no_grad():
            output = model(input_ids=torch.tensor(prompt.ids[None].astype(np.int64)), output_attentions=True)
        last = {layer: output.attentions[layer][0, :, -1].float().mean(dim=0).numpy() for layer in LAYERS}
        spans = (prompt.answer_a, prompt.answer_b)
        rows.append({layer: tuple(row[s.first : s.last] for s in spans) for layer, row in last.items()})
    return rows  # type: ignore[return-value]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", nargs="?", default="demo")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    loaded, eager = (load_model("smollm2-135m", dtype="float32", device="cpu") for _ in range(2))
    eager.model.set_attn_implementation("eager")
    engine = TransformersEngine(loaded.model)
    builder = PromptBuilder(loaded.tokenizer, template=load_template(None))
    pairs = [item for item in load(resolve(options.dataset)) if isinstance(item, Pair)][: options.pairs]
    prompts = [builder.build(pair, order) for pair in pairs for order in ("cr", "rc")]
    tokens = sum(len(prompt.ids) for prompt in prompts)

    theirs: list[float] = []
    ours: list[float] = []
    engine.read(prompts[:2], LAYERS, builder.verdict_ids())
    for _ in range(options.rounds):
        started = time.perf_counter()
        expected = published(eager.model, prompts)
        theirs.append(time.perf_counter() - started)
        started = time.perf_counter()
        readings = engine.read(prompts, LAYERS, builder.verdict_ids())
        ours.append(time.perf_counter() - started)
    worst = max(
        float(np.abs(distribution(a) - distribution(b)).max())
        for reading, rows in zip(readings, expected, strict=True)
        for layer in LAYERS
        for a, b in zip(reading.attention[layer], rows[layer], strict=True)
    )
    ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
    print(f"\n{describe()}\n{len(pairs)} pairs of {options.dataset}, {tokens:,} tokens, {options.rounds} rounds\n")
    print("| float32 | pairs/s (median) | tokens/s |\n|---|---|---|")
    for name, seconds in (("published procedure", theirs), ("twdpo annotate", ours)):
        median = statistics.median(seconds)
        print(f"| {name} | {len(pairs) / median:.2f} | {tokens / median:,.0f} |")
    print(f"\nratio, median of rounds: {ratio:.2f}; largest difference of p: {worst:.1e}")


if __name__ == "__main__":
    main()
