"""Log-probs of tokens: every family against its own logits, in value and gradient, chunked and whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.tiny_models import FAMILIES, VOCABULARY, tiny_model
from twdpo.errors import ModelError
from twdpo.pipeline.train.logps import TokenLogps, disable_dropout


def batch(seed: int = 0, rows: int = 3, length: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids padded on the right, their mask, and the tokens that are wanted."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY - 5, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, length * 2 // 3 :] = 0
    wanted = (torch.rand(rows, length, generator=generator) < 0.4) & mask.bool()
    wanted[:, 0] = False
    return ids, mask, wanted


def naive(model: Any, ids: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
    """All logits, all log-probs, and of those the wanted ones."""
    logps: Tensor = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
    return logps[:, :-1].gather(-1, ids[:, 1:, None])[..., 0][wanted[:, 1:]]


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    model = tiny_model(family)
    ids, mask, wanted = batch()
    logps = TokenLogps(model, chunk_logits=5 * VOCABULARY)
    assert logps.chunked
    expected = naive(model, ids, mask, wanted)
    found = logps(ids, mask, wanted)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.linspace(-1, 1, len(found))
    gradients = [torch.autograd.grad((y * upstream).sum(), list(model.parameters())) for y in (found, expected)]
    for here, there in zip(*gradients, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)


def test_no_whole_logits() -> None:
    """The LM head never sees more hidden states at a time than its chunk allows."""
    model = tiny_model()
    ids, mask, wanted = batch()
    logps = TokenLogps(model, chunk_logits=5 * VOCABULARY)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[0]))
    logps(ids, mask, wanted).sum().backward()
    assert max(seen) == 5
    assert sum(seen) == 2 * int(wanted.sum())  # once forward, once again backward


class _Scaled(nn.Module):
    """Does something to hidden states before the head, as MiniCPM does."""

    def __init__(self, model: Any, calls_head: bool = True) -> None:
        super().__init__()
        self.inner, self.config, self._calls_head = model, model.config, calls_head

    @property
    def base_model(self) -> Any:
        """The decoder."""
        return self.inner.base_model

    def get_output_embeddings(self) -> Any:
        """The head."""
        return self.inner.lm_head

    def forward(self, **inputs: Any) -> Any:
        """Logits of a third of the hidden states."""
        output = self.inner.base_model(**inputs)
        head = self.inner.lm_head
        hidden = output.last_hidden_state / 3
        output.logits = head(hidden) if self._calls_head else hidden @ head.weight.T * 2
        return output


def test_a_model_that_does_more_takes_the_other_way() -> None:
    model = _Scaled(tiny_model())
    ids, mask, wanted = batch()
    logps = TokenLogps(model)
    assert not logps.chunked
    torch.testing.assert_close(logps(ids, mask, wanted), naive(model, ids, mask, wanted), rtol=1e-5, atol=1e-5)


def test_a_model_that_cannot_be_followed_is_refused() -> None:
    with pytest.raises(ModelError, match="do not agree with its logits; choose another model"):
        TokenLogps(_Scaled(tiny_model(), calls_head=False))


def test_softcap_is_seen_where_logits_are_small() -> None:
    """A bound that hardly shows at the model's own logits is one all the same."""
    model = tiny_model("gemma2", final_logit_softcapping=50.0)
    logps = TokenLogps(model)
    logps._finish = lambda logits: logits
    assert logps._agrees(logps._chunked) is False


def test_autocast_computes_in_bfloat16_and_returns_float32() -> None:
    model = tiny_model()
    ids, mask, wanted = batch()
    exact, rough = TokenLogps(model)(ids, mask, wanted), TokenLogps(model, autocast=torch.bfloat16)(ids, mask, wanted)
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, rtol=0.05, atol=0.3)
    rough.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_dropout_is_off() -> None:
    model = tiny_model("gpt_neox", attention_dropout=0.5, hidden_dropout=0.5).train()
    disable_dropout(model)
    logps = TokenLogps(model)
    ids, mask, wanted = batch()
    torch.testing.assert_close(logps(ids, mask, wanted), logps(ids, mask, wanted), rtol=0, atol=0)
