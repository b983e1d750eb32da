"""What judging a pair costs by prompt length and by tokens a pass: time and peak memory, measured and drawn.

    python benchmarks/cost.py [--plot docs/images/cost] [--json cost.json]

Prompts are of random tokens, with the shares that real ones have: 157 tokens of template before the question, a sixth
of the rest a question that both orders share. Each figure comes from a process of its own; times are medians of three
runs (one where a run takes over 0.8 seconds). The published procedure keeps all attention maps, 30 · 9 · n² · 4 bytes
for n tokens; where that is more than the machine has it is left out. Not for: comparing on real pairs (annotate.py).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import describe

from twdpo.plotting import BLUE, QUIET, VERMILION, picture_bytes, plain_style, settle

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
BUDGETS, BUDGET_LENGTH = (2048, 4096, 8192, 16384), 1024
LAYERS = (0, 6, 14, 21, 29)
HEAD, VERDICTS = 157, (49, 50)
LONG_SECONDS, PUBLISHED_BYTES = 0.8, 12 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measurement. way: published, or the type of our engine. budget: tokens a pass, None for the engine's own."""

    way: str
    length: int
    pairs: int = 1
    budget: int | None = None


def prompts(length: int, pairs: int) -> list[Any]:
    """Two prompts a pair."""
    import numpy as np

    from twdpo.pipeline.annotate.prompt import AnswerSpan, JudgePrompt

    rng = np.random.default_rng(length)
    head = np.random.default_rng(0).integers(100, 40000, HEAD).astype(np.int32)[: length // 2]
    made = []
    for _ in range(pairs):
        question = rng.integers(100, 40000, (length - len(head)) // 6).astype(np.int32)
        for _ in range(2):
            tail = rng.integers(100, 40000, length - len(head) - len(question)).astype(np.int32)
            first, middle = len(head) + len(question), length - len(tail) // 2
            places = np.arange(len(tail), dtype=np.int32)
            spans = [
                AnswerSpan(first=a, last=b, starts=places[: b - a], ends=places[: b - a] + 1)
                for a, b in ((first, middle), (middle, length))
            ]
            ids = np.concatenate([head, question, tail])
            made.append(JudgePrompt(ids=ids, answer_a=spans[0], answer_b=spans[1], truncated=False))
    return made


def run(case: Case) -> dict[str, float]:
    """Seconds a pair, and GiB at the peak, model included."""
    from annotate import published

    from twdpo.pipeline.annotate.engines.transformers import TransformersEngine
    from twdpo.pipeline.models import load_model

    asked = prompts(case.length, case.pairs)
    if case.way == "published":
        loaded = load_model("smollm2-135m", dtype="float32", device="cpu", attn_implementation="eager")
        once = published(loaded.model, LAYERS)
        once(prompts(64, 1))
    else:
        engine = TransformersEngine(
            load_model("smollm2-135m", dtype=case.way, device="cpu").model, token_budget=case.budget
        )
        # The head is computed once a run: here, before the clock starts.
        engine.read(prompts(min(case.length, 512), 2), LAYERS, VERDICTS)

        def once(asked: Any) -> Any:
            return engine.read(asked, LAYERS, VERDICTS)

    seconds: list[float] = []
    while len(seconds) < 3 and (not seconds or seconds[0] < LONG_SECONDS):
        started = time.perf_counter()
        once(asked)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": statistics.median(seconds) / case.pairs, "gib": peak}


def measure(case: Case) -> dict[str, Any]:
    """`run` in a process of its own."""
    output = subprocess.run(
        [sys.executable, __file__, "--case", json.dumps(asdict(case))], check=True, capture_output=True, text=True
    ).stdout
    return asdict(case) | json.loads(output.splitlines()[-1])


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Four panels: time and memory by length, and by tokens a pass."""
    from matplotlib.figure import Figure

    looks = {
        "published": (QUIET, "published procedure, float32"),
        "float32": (BLUE, "twdpo, float32"),
        "bfloat16": (VERMILION, "twdpo, bfloat16"),
    }
    figure = Figure(figsize=(10, 7.2), layout="constrained")
    axes: Any = figure.subplots(2, 2)
    for row, (key, label) in enumerate((("seconds", "seconds a pair"), ("gib", "peak memory, GiB"))):
        for way, (colour, name) in looks.items():
            by_length = [r for r in results if r["way"] == way and r["budget"] is None]
            axes[row, 0].plot(
                [r["length"] for r in by_length], [r[key] for r in by_length], "o-", color=colour, label=name
            )
            chosen = [r for r in results if r["way"] == way and r["budget"] is not None]
            label_here = f"{name}, prompts of {BUDGET_LENGTH:,}" if chosen else None
            axes[row, 1].plot(
                [r["budget"] for r in chosen], [r[key] for r in chosen], "o-", color=colour, label=label_here
            )
        for axis in axes[row]:
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
            axis.set_ylabel(label)
        axes[row, 0].set_xlabel("tokens a judge prompt")
        axes[row, 1].set_xlabel("tokens a forward pass, at the most")
        axes[row, 1].set_ylim(bottom=0)
    axes[0, 0].set_yscale("log", base=10)
    axes[0, 0].legend(frameon=False)
    axes[0, 1].legend(frameon=False, fontsize=8)
    figure.suptitle("What judging a pair costs: SmolLM2-135M, two CPU cores")
    settle(figure)
    for kind in ("png", "svg"):
        path.with_suffix(f".{kind}").write_bytes(picture_bytes(figure, kind))


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, default=None, help="files to draw to, without the ending")
    parser.add_argument(
        "--json", type=Path, default=None, help="keep results here; what is there is not measured again"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run(Case(**json.loads(options.case)))))
        return
    results = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    cases = [Case(way=way, length=n) for n in LENGTHS for way in ("published", "float32", "bfloat16")]
    cases = [case for case in cases if case.way != "published" or 30 * 9 * case.length**2 * 4 <= PUBLISHED_BYTES]
    cases += [
        Case(way=way, length=BUDGET_LENGTH, pairs=8, budget=budget)
        for budget in BUDGETS
        for way in ("float32", "bfloat16")
    ]
    for case in cases:
        if any(asdict(case).items() <= result.items() for result in results):
            continue
        results.append(measure(case))
        if options.json:
            options.json.write_text(json.dumps(results))
    print(f"\n{describe()}\n\n| | tokens a prompt | tokens a pass | s a pair | peak GiB |\n|---|---|---|---|---|")
    for r in results:
        budget = "" if r["way"] == "published" else r["budget"] or "the engine's"
        print(f"| {r['way']} | {r['length']:,} | {budget} | {r['seconds']:.3f} | {r['gib']:.2f} |")
    if options.plot:
        with plain_style():
            draw(results, options.plot)


if __name__ == "__main__":
    main()
