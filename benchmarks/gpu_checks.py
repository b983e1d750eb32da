"""What the tests check on a CPU, once more on a GPU: attention rows, log-probs with gradients in every way, short runs.

    python benchmarks/gpu_checks.py [--device cuda]

Prints a line a check and exits with 1 if one fails. Models are tiny and random; the oracle is each model's own logits
in float32 on the CPU. Not for: speed (train.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from machine import describe

from tests.fixtures.tiny_models import FAMILIES, save_tiny, tiny_model
from tests.pipeline.annotate.engines.test_transformers import eager, pair
from tests.pipeline.train.conftest import World
from tests.pipeline.train.test_logps import examples, naive
from twdpo.pipeline.annotate.engines.transformers import TransformersEngine
from twdpo.pipeline.train import train
from twdpo.pipeline.train.layouts import collate
from twdpo.pipeline.train.logps import TokenLogps

PAIRS = [(40, 90, 60), (110, 30, 140), (2, 1, 1)]


def log_probs(family: str, layout: str, dtype: torch.dtype | None, device: str) -> str:
    """Values and gradients against the model's own logits; returns what was compared."""
    pairs = examples(pairs=PAIRS)
    oracle = tiny_model(family)
    expected = naive(oracle, pairs)
    upstream = torch.linspace(-1, 1, len(expected))
    there = torch.autograd.grad((expected * upstream).sum(), list(oracle.parameters()))
    model = tiny_model(family).to(device)
    logps = TokenLogps(model, layout=layout, autocast=dtype, chunk_logits=50 * 400)
    found = logps(**collate(pairs, None, device, logps.layout).inputs)
    here = torch.autograd.grad((found * upstream.to(device)).sum(), list(model.parameters()))
    value, gradient = (1e-4, 1e-3) if dtype is None else (0.3, 0.5)
    torch.testing.assert_close(found.cpu(), expected, rtol=value, atol=value)
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=gradient, atol=gradient * float(other.abs().max()) + 1e-5)
    return f"{logps.layout}, head {logps.head}"


def run(device: str, **changes: Any) -> str:
    """A short run in a tiny world: it starts at log 2 and its loss falls."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = World(folder=folder, model=save_tiny(folder / "tiny"))
        world.annotate(world.write_pairs(60))
        result = train(world.config(device=device, epochs=3.0, **changes))
    before, after = result.before["eval_loss"], result.after["eval_loss"]
    assert abs(before - 0.6931) < 1e-3
    assert after < before - 0.05
    return f"loss {before:.4f} to {after:.4f}"


def judging(family: str, dtype: torch.dtype, device: str) -> str:
    """Attention rows and verdicts of pairs in a row against eager attention in float32 on the CPU."""
    layers = range(4)
    prompts = [prompt for seed, n in enumerate((11, 40, 3)) for prompt in pair(n, (30, 45), 50 * seed)]
    oracle = tiny_model(family, layers=4)
    expected = [eager(oracle, prompt, layers)[0] for prompt in prompts]
    engine = TransformersEngine(tiny_model(family, layers=4).to(device=device, dtype=dtype), token_budget=150)
    worst = 0.0
    for reading, asked, rows in zip(engine.read(prompts, layers, (5, 9)), prompts, expected, strict=True):
        for layer in layers:
            for got, span in zip(reading.attention[layer], (asked.answer_a, asked.answer_b), strict=True):
                worst = max(worst, float(abs(got - rows[layer][span.first : span.last]).max()))
    assert worst < (5e-6 if dtype == torch.float32 else 0.05), worst
    way: Any = engine._way
    return f"{type(way).__name__}, at once {getattr(way, '_at_once', False)}: {worst:.1e}"


def main() -> None:
    """Check everything, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    checks: list[tuple[str, Callable[[], str]]] = []
    for family in FAMILIES:
        checks += [
            (f"judging {family} {dtype}", lambda f=family, d=dtype: judging(f, d, device))  # type: ignore[misc]
            for dtype in (torch.float32, torch.bfloat16, torch.float16)
        ]
        for dtype in (None, torch.bfloat16):
            for layout in ("padded",) if family == "gemma2" else ("tree", "packed", "padded"):
                name = f"log-probs {family} {layout} {'float32' if dtype is None else 'bfloat16'}"
                checks.append((name, lambda f=family, a=layout, d=dtype: log_probs(f, a, d, device)))  # type: ignore[misc]
    runs: dict[str, dict[str, Any]] = {
        "run float32": {"dtype": "float32"},
        "run bfloat16": {"dtype": "bfloat16"},
        "run bfloat16, all activations computed again": {"dtype": "bfloat16", "gradient_checkpointing": True},
        "run bfloat16, streamed": {"dtype": "bfloat16", "streaming": True},
        "run adapters over bfloat16": {"dtype": "bfloat16", "lora_rank": 8, "learning_rate": 1e-2},
        "run adapters over 4 bits": {"lora_rank": 8, "learning_rate": 1e-2, "load_in_4bit": True},
        "run 8-bit AdamW": {"dtype": "bfloat16", "optimizer": "adamw_8bit"},
    }
    checks += [(name, lambda c=changes: run(device, **c)) for name, changes in runs.items()]  # type: ignore[misc]
    print(f"\n{describe()}\n\n| check | result |\n|---|---|")
    failed = 0
    for name, check in checks:
        try:
            result = check()
        except Exception as error:
            traceback.print_exc()
            failed += 1
            result = f"**failed**: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
        print(f"| {name} | {result} |", flush=True)
    print(f"\n{len(checks) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
