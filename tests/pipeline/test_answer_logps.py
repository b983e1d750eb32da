"""Log-probs of answers' tokens are those of the model's own logits, however sequences are put together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.fixtures.tiny_models import tiny_model
from twdpo.errors import ModelError
from twdpo.pipeline import answer_logps as module
from twdpo.pipeline.answer_logps import AnswerInContext, answer_logps


def sequences() -> list[AnswerInContext]:
    rng = np.random.default_rng(0)
    spans = [(20, 3, 20), (11, 1, 2), (30, 12, 25), (5, 4, 5)]
    return [
        AnswerInContext(ids=rng.integers(0, 400, size=n).astype(np.int32), first=first, last=last)
        for n, first, last in spans
    ]


# A soft cap behind the head, which a look at hidden states alone would miss.
@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_they_are_the_models_own(family: str, batch_size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOKENS_ON_CPU", 50)
    model = tiny_model(family)
    for each, got in zip(sequences(), answer_logps(model, sequences(), batch_size=batch_size), strict=True):
        ids = torch.tensor(each.ids.astype(np.int64))
        with torch.no_grad():
            logps = model(ids[None]).logits[0].log_softmax(dim=-1)
        expected = [float(logps[t - 1, ids[t]]) for t in range(each.first, each.last)]
        np.testing.assert_allclose(got, expected, atol=2e-5)


# A CPU's allocator raises what any failure is.
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")]
)
def test_where_memory_runs_out_passes_are_halved(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tried = tiny_model("llama"), list[int]()
    forward = module._logits_at

    def scarce(model: object, ids: torch.Tensor, *places: torch.Tensor) -> torch.Tensor:
        tried.append(len(ids))
        if len(ids) > 1:
            raise error
        return forward(model, ids, *places)

    expected = answer_logps(model, sequences())
    monkeypatch.setattr(module, "_logits_at", scarce)
    for got, wanted in zip(answer_logps(model, sequences()), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert tried == [4, 2, 1, 1, 1, 1]

    def none(*_arguments: object) -> torch.Tensor:
        raise error

    monkeypatch.setattr(module, "_logits_at", none)
    with pytest.raises(ModelError, match="out of memory on a single sequence of 30 tokens; use a smaller --max-length"):
        answer_logps(model, sequences())
