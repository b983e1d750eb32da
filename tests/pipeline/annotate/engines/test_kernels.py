"""Attention of the last queries against a loop over queries and heads in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twdpo.pipeline.annotate.engines import kernels
from twdpo.pipeline.annotate.engines.kernels import Scores, attend, grouped


def naive(q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
    q, k, v = q.double(), k.double(), v.double()
    heads, n, _ = q.shape
    before = k.shape[1] - n
    output = torch.zeros(n, heads, v.shape[2], dtype=torch.float64)
    for h in range(heads):
        own = h // (heads // k.shape[0])
        for i in range(n):
            first = 0 if scores.window is None else max(0, before + i - scores.window + 1)
            seen = slice(first, before + i + 1)
            s = (k[own, seen] @ q[h, i]) * scores.scale
            if scores.softcap is not None:
                s = torch.tanh(s / scores.softcap) * scores.softcap
            e = torch.exp(s - s.max())
            total = e.sum()
            if scores.sinks is not None:
                total = total + math.exp(float(scores.sinks[h]) - float(s.max()))
            output[i, h] = (e / total) @ v[own, seen]
    return output


def tensors(n: int, m: int, heads: int, groups: int, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n * 1000 + m)
    shapes = ((heads * groups, n, width), (heads, m, width), (heads, m, width))
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return q, k, v


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    before=st.integers(0, 30),
    heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    window=st.one_of(st.none(), st.integers(1, 50)),
    softcap=st.one_of(st.none(), st.just(2.0)),
    sinks=st.booleans(),
)
def test_grouped(
    n: int, before: int, heads: int, groups: int, window: int | None, softcap: float | None, sinks: bool
) -> None:
    q, k, v = tensors(n, before + n, heads, groups)
    scores = Scores(
        scale=0.3, window=window, softcap=softcap, sinks=torch.linspace(-1, 1, heads * groups) if sinks else None
    )
    torch.testing.assert_close(grouped(q, k, v, scores).double(), naive(q, k, v, scores), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 5])
def test_some_queries_at_a_time(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    """Chunks that end in the middle, and are wider than the window."""
    monkeypatch.setattr(kernels, "_SCORES_ON_CPU", 1)
    q, k, v = tensors(37, 60, 2, 3)
    scores = Scores(scale=0.3, window=window)
    torch.testing.assert_close(grouped(q, k, v, scores).double(), naive(q, k, v, scores), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    q, k, v = (tensor.to(dtype) for tensor in tensors(20, 30, 2, 2))
    output = attend(q, k, v, Scores(scale=8**-0.5))
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), naive(q, k, v, Scores(scale=8**-0.5)), atol=0.03, rtol=0.03)


def test_long_sums_over_views() -> None:
    """Keys and values as transformers hands them: views of other tensors, and more keys than one piece of a sum."""
    q, k, v = (tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in tensors(300, 500, 2, 2))
    scores = Scores(scale=8**-0.5)
    torch.testing.assert_close(grouped(q, k, v, scores).double(), naive(q, k, v, scores), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("before", [0, 9])
@pytest.mark.parametrize("window", [None, 5])
def test_the_way_of_accelerators(monkeypatch: pytest.MonkeyPatch, before: int, window: int | None) -> None:
    """Here on the CPU, which the kernels are told is none; soft caps and sinks stay with the products."""
    monkeypatch.setattr(kernels, "_prefers_products", lambda _device: False)
    q, k, v = tensors(12, 12 + before, 2, 2)
    for scores in (Scores(scale=0.3, window=window), Scores(scale=0.3, window=window, softcap=2.0)):
        torch.testing.assert_close(attend(q, k, v, scores).double(), naive(q, k, v, scores), atol=1e-5, rtol=1e-5)
