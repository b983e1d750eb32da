"""float32 matrix products of a linear layer: torch's own against oneDNN's, which training takes on AMD processors.

    python benchmarks/matmul.py

Prints medians over alternating rounds, for the shapes of the embedded 135M model and 1,024 tokens.
"""

from __future__ import annotations

import statistics
import time

import torch
from machine import describe

from twdpo.pipeline.cpu_linear import _multiply

TOKENS, ROUNDS = 1024, 20
SHAPES = ((576, 1536), (1536, 576), (576, 576))


def main() -> None:
    """Measure and print."""
    print(f"\n{describe()}\n\n| in, out | torch, GFLOP/s | oneDNN, GFLOP/s | ratio |\n|---|---|---|---|")
    for width, out in SHAPES:
        x, weight = torch.randn(TOKENS, width), torch.randn(out, width)
        seconds: dict[str, list[float]] = {"torch": [], "oneDNN": []}
        for _ in range(ROUNDS):
            for name, times in seconds.items():
                started = time.perf_counter()
                x @ weight.t() if name == "torch" else _multiply(x, weight, None)
                times.append(time.perf_counter() - started)
        rates = {name: 2e-9 * TOKENS * width * out / statistics.median(times) for name, times in seconds.items()}
        theirs, ours = rates["torch"], rates["oneDNN"]
        print(f"| {width}, {out} | {theirs:.0f} | {ours:.0f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()
