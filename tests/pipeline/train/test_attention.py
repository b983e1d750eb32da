"""Attention over stems and branches: against a full mask, in value and gradient, in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from twdpo.errors import ModelError
from twdpo.pipeline.train.attention import Stem, branch_attention

MODULE = SimpleNamespace()
STEMS = st.lists(
    st.tuples(st.integers(0, 6), st.lists(st.integers(1, 7), min_size=1, max_size=3)), min_size=1, max_size=3
)


def full_mask(stems: list[Stem], window: int | None) -> Tensor:
    """True where a token sees another: an oracle that goes through tokens one by one."""
    tokens = []  # (stem, branch or None, place in its sequence)
    for number, stem in enumerate(stems):
        tokens += [(number, None, place) for place in range(stem.length)]
        for branch, length in enumerate(stem.branches):
            tokens += [(number, branch, stem.length + place) for place in range(length)]

    def sees(a: tuple[int, int | None, int], b: tuple[int, int | None, int]) -> bool:
        near = window is None or a[2] - b[2] < window
        return a[0] == b[0] and b[1] in (None, a[1]) and b[2] <= a[2] and near

    return torch.tensor([[sees(a, b) for b in tokens] for a in tokens])


@given(STEMS, st.one_of(st.none(), st.integers(1, 8)), st.integers(0, 10**6))
def test_against_a_full_mask(sizes: list[tuple[int, list[int]]], window: int | None, seed: int) -> None:
    stems = [Stem(length=length, branches=tuple(branches)) for length, branches in sizes]
    total = sum(stem.tokens for stem in stems)
    torch.manual_seed(seed)
    q = torch.randn(1, 4, total, 5, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(1, 2, total, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    found, _ = branch_attention(MODULE, q, k, v, None, stems=stems, scaling=0.3, sliding_window=window)
    keys, values = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    scores = (q @ keys.transpose(-1, -2) * 0.3).masked_fill(~full_mask(stems, window), float("-inf"))
    expected = (scores.softmax(-1) @ values).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    upstream = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * upstream).sum(), [q, k, v]) for y in (found, expected)]
    for here, there in zip(*gradients, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_scores_that_are_computed_otherwise_are_refused(name: str) -> None:
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(ModelError, match=f"{name}; use --layout padded"):
        branch_attention(MODULE, q, q, q, None, stems=[Stem(length=1, branches=(2,))], **{name: 1.0})
