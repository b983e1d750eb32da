"""Failed allocations are told from other failures, on every device."""

from __future__ import annotations

import pytest
import torch

from twdpo.pipeline.memory import give_back, out_of_memory


def test_a_real_failed_allocation_is_known() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 55)
    assert out_of_memory(raised.value)
    give_back()


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError(), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_are_of_memory(error: Exception, is_one: bool) -> None:
    assert out_of_memory(error) == is_one
