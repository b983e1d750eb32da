"""Products on a processor: float32 by torch's own, by oneDNN, and in short sums, with their rounding; attention.

    python benchmarks/matmul.py

Training takes oneDNN on AMD processors, judging takes it in sums of 192. Attention: a segment of 660 tokens after 336
others, nine heads that share three, by torch's fused kernel and by grouped products. Medians over alternating rounds,
for the shapes of the embedded 135M model. Rounding is relative, against float64.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from machine import describe
from torch import Tensor

from twdpo.pipeline.annotate.engines.kernels import Scores, grouped
from twdpo.pipeline.causal import causal_attention
from twdpo.pipeline.cpu_linear import exact_matmul_nt, matmul_nt, onednn_is_faster

TOKENS, ROUNDS = 1024, 20
SHAPES = ((576, 1536), (1536, 576), (576, 576))


def medians(ways: Mapping[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Seconds of each way, in turns after one run each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


@torch.inference_mode()
def products() -> None:
    """float32 matrices."""
    print("| in, out | torch, GFLOP/s | oneDNN | in pieces | oneDNN / torch | rounding, torch | oneDNN | in pieces |")
    print("|---|---|---|---|---|---|---|---|")
    for width, out in SHAPES:
        x, weight = torch.randn(TOKENS, width), torch.randn(out, width)
        transposed = weight.t().contiguous().t()
        ways: dict[str, Callable[[], Tensor]] = {
            "torch": lambda x=x, w=weight: x @ w.t(),  # type: ignore[misc]
            "oneDNN": lambda x=x, w=weight: matmul_nt(x, w),  # type: ignore[misc]
            "pieces": lambda x=x, w=transposed: exact_matmul_nt(x, w),  # type: ignore[misc]
        }
        rates = {name: 2e-9 * TOKENS * width * out / seconds for name, seconds in medians(ways).items()}
        exact = x.double() @ weight.double().t()
        errors = {name: float((way().double() - exact).norm() / exact.norm()) for name, way in ways.items()}
        cells = [f"{rate:.0f}" for rate in rates.values()] + [f"{rates['oneDNN'] / rates['torch']:.2f}"]
        print(f"| {width}, {out} | {' | '.join(cells)} | {' | '.join(f'{e:.1e}' for e in errors.values())} |")


@torch.inference_mode()
def attention() -> None:
    """One segment's attention."""
    print("\n| attention | torch's fused kernel, ms | grouped products, ms | ratio |\n|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        q = torch.randn(9, 660, 64, dtype=dtype)
        k, v = (torch.randn(3, 996, 64, dtype=dtype) for _ in range(2))
        seconds = medians(
            {
                "fused": lambda: causal_attention(q[None], k[None], v[None], scale=0.125, window=None),  # noqa: B023
                "grouped": lambda: grouped(q, k, v, Scores(scale=0.125)),  # noqa: B023
            }
        )
        fused, ours = 1e3 * seconds["fused"], 1e3 * seconds["grouped"]
        print(f"| {str(dtype)[6:]} | {fused:.1f} | {ours:.1f} | {fused / ours:.2f} |")


def main() -> None:
    """Measure and print."""
    print(f"\n{describe()}" + ("" if onednn_is_faster() else "; oneDNN is not taken here") + "\n")
    torch.manual_seed(0)
    products()
    attention()


if __name__ == "__main__":
    main()
