"""Attention of the last positions against every score written out."""

from __future__ import annotations

import pytest
import torch

from twdpo.pipeline.causal import causal_attention


@pytest.mark.parametrize("before", [0, 9])
@pytest.mark.parametrize("window", [None, 5, 100])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_against_every_score_written_out(before: int, window: int | None, groups: int, scale: float | None) -> None:
    generator = torch.Generator().manual_seed(before)
    n, m, width = 12, 12 + before, 8
    q = torch.randn(2, 2 * groups, n, width, generator=generator)
    k, v = (torch.randn(2, 2, m, width, generator=generator) for _ in range(2))
    output = causal_attention(q, k, v, scale=scale, window=window)
    scores = q.double() @ k.double().repeat_interleave(groups, 1).mT * (scale or width**-0.5)
    for i in range(n):
        for j in range(m):
            if not 0 <= before + i - j < (window or m):
                scores[:, :, i, j] = float("-inf")
    expected = scores.softmax(-1) @ v.double().repeat_interleave(groups, 1)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)
