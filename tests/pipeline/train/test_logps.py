"""Log-probs of tokens: every family against its own logits, in value and gradient, in every layout and every way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.tiny_models import FAMILIES, VOCABULARY, tiny_model
from twdpo.errors import ModelError
from twdpo.pipeline.train.data import Example, Side
from twdpo.pipeline.train.layouts import collate
from twdpo.pipeline.train.linear_logps import HeadRules
from twdpo.pipeline.train.logps import HEADS, TokenLogps, disable_dropout

PAIRS = [(4, 9, 6), (11, 3, 14), (2, 1, 1)]


def examples(seed: int = 0, pairs: Sequence[tuple[int, int, int]] = PAIRS) -> list[Example]:
    """Pairs of random tokens: prompt, chosen and rejected of so many."""
    rng = np.random.default_rng(seed)
    made = []
    for number, (prompt, *lengths) in enumerate(pairs):
        ids = rng.integers(0, VOCABULARY - 5, prompt)
        chosen, rejected = (
            Side(
                ids=np.concatenate([ids, rng.integers(0, VOCABULARY - 5, n)]).astype(np.int32),
                prompt_length=prompt,
                weights=rng.random(n).astype(np.float32),
            )
            for n in lengths
        )
        made.append(Example(example_hash=f"{number:032x}", row=number, chosen=chosen, rejected=rejected))
    return made


def naive(model: Any, pairs: Sequence[Example]) -> Tensor:
    """Each sequence alone: all logits, all log-probs, and of those the completion's; chosen answers first."""
    found = []
    for side in [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]:
        ids = torch.from_numpy(side.ids.astype(np.int64))
        logps = model(input_ids=ids[None]).logits[0].float().log_softmax(-1)
        found.append(logps[:-1].gather(-1, ids[1:, None])[side.prompt_length - 1 :, 0])
    return torch.cat(found)


def run(logps: TokenLogps, pairs: Sequence[Example]) -> Tensor:
    """The log-probs of a batch of these pairs."""
    result: Tensor = logps(**collate(pairs, None, layout=logps.layout).inputs)
    return result


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("layout", ["tree", "packed", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, layout: str, head: str) -> None:
    model = tiny_model(family)
    pairs = examples()
    expected = naive(model, pairs)
    upstream = torch.linspace(-1, 1, len(expected))
    there = torch.autograd.grad((expected * upstream).sum(), list(model.parameters()))
    if layout != "padded" and family == "gemma2":
        with pytest.raises(ModelError, match=f"--layout {layout} does not give the logits of a Gemma2ForCausalLM"):
            TokenLogps(model, layout=layout, head=head)
        return
    logps = TokenLogps(model, layout=layout, head=head, chunk_logits=5 * VOCABULARY)
    assert (logps.layout, logps.head) == (layout, head)
    found = run(logps, pairs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    here = torch.autograd.grad((found * upstream).sum(), list(model.parameters()))
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fastest_way_that_agrees_is_taken(family: str) -> None:
    logps = TokenLogps(tiny_model(family))
    assert (logps.head, logps.layout) == ("fused", "padded" if family == "gemma2" else "tree")


def test_a_window_shorter_than_a_sequence_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the test before training is too short to show it."""
    model = tiny_model("mistral", sliding_window=6)
    pairs = examples(pairs=[(9, 12, 10)])
    torch.testing.assert_close(run(TokenLogps(model, layout="tree"), pairs), naive(model, pairs), rtol=1e-5, atol=1e-5)
    longer = tiny_model("mistral", sliding_window=100)
    monkeypatch.setattr(longer.model.layers[0].self_attn, "forward", _without_window(longer.model.layers[0].self_attn))
    monkeypatch.setattr(longer.model.layers[1].self_attn, "forward", _without_window(longer.model.layers[1].self_attn))
    assert TokenLogps(longer).layout == "padded"


def _without_window(attention: Any) -> Any:
    """A layer whose attention function hears nothing of its window, as in models that leave it to the mask."""
    forward, config = attention.forward, attention.config

    def changed(*arguments: Any, **options: Any) -> Any:
        window, config.sliding_window = config.sliding_window, None
        try:
            return forward(*arguments, **options)
        finally:
            config.sliding_window = window

    return changed


def test_kinds_of_attention_that_are_not_known_are_padded() -> None:
    model = tiny_model()
    model.config.layer_types = ["full_attention", "chunked_attention"]
    assert TokenLogps(model).layout == "padded"


def test_no_whole_logits() -> None:
    """The LM head never sees more hidden states at a time than its chunk allows."""
    model = tiny_model()
    pairs = examples()
    logps = TokenLogps(model, head="chunked", chunk_logits=5 * VOCABULARY)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[0]))
    run(logps, pairs).sum().backward()
    assert max(seen) == 5
    assert sum(seen) == 2 * sum(n for _, *lengths in PAIRS for n in lengths)  # once forward, once again backward


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
    pairs = examples()
    logps = TokenLogps(model)
    assert (logps.head, logps.layout) == ("whole", "padded")
    torch.testing.assert_close(run(logps, pairs), naive(model, pairs), rtol=1e-5, atol=1e-5)


def test_a_model_that_cannot_be_followed_is_refused() -> None:
    with pytest.raises(ModelError, match="do not agree with its logits; choose another model"):
        TokenLogps(_Scaled(tiny_model(), calls_head=False))


def test_softcap_is_seen_where_logits_are_small() -> None:
    """A bound that hardly shows at the model's own logits is one all the same."""
    model = tiny_model("gemma2", final_logit_softcapping=50.0)
    logps = TokenLogps(model)
    logps._rules = HeadRules()
    assert logps._agrees() is False


def test_autocast_computes_in_bfloat16_and_returns_float32() -> None:
    model = tiny_model()
    pairs = examples()
    exact, rough = run(TokenLogps(model), pairs), run(TokenLogps(model, autocast=torch.bfloat16), pairs)
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, rtol=0.05, atol=0.3)
    rough.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_autocast_with_the_mask_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The causal bias that GPUs take is refused where queries and values differ in type, before autocast acts."""
    from torch.nn.attention.bias import causal_lower_right

    from twdpo.pipeline import causal

    # As many keys as queries: beside a mask, keys are repeated on a GPU.
    logps = TokenLogps(tiny_model(num_key_value_heads=4), autocast=torch.bfloat16)
    expected = run(logps, examples())
    monkeypatch.setattr(causal, "_lower_right", lambda q, length: causal_lower_right(q.shape[2], length))
    torch.testing.assert_close(run(logps, examples()), expected, rtol=0.02, atol=0.1)


def kept_tensors(logps: TokenLogps, pairs: Sequence[Example]) -> int:
    """How many tensors the graph of a forward pass holds on to."""
    count = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(logps, pairs)
    return count


def test_only_long_passes_are_computed_again() -> None:
    model = tiny_model()
    logps = TokenLogps(model)
    short, long = examples(pairs=[(4, 5, 6)]), examples(pairs=[(4, 50, 60)])
    kept = kept_tensors(logps, short)
    assert kept_tensors(logps, long) == kept
    logps.recompute_above(100)
    assert kept_tensors(logps, short) == kept
    assert kept_tensors(logps, long) < kept / 2
    assert not kept_tensors(logps, short) < kept
    with torch.no_grad():
        run(logps, long)
    assert not model.training
    logps.recompute_above(0)
    assert kept_tensors(logps, short) < kept / 2


def test_what_cannot_be_computed_again_is_kept() -> None:
    model = tiny_model()
    model.supports_gradient_checkpointing = False
    logps = TokenLogps(model)
    kept = kept_tensors(logps, examples())
    logps.recompute_above(1)
    assert kept_tensors(logps, examples()) == kept
    with pytest.raises(ModelError, match="leave out --gradient-checkpointing"):
        logps.recompute_above(0)


def test_dropout_is_off() -> None:
    model = tiny_model("gpt_neox", attention_dropout=0.5, hidden_dropout=0.5).train()
    disable_dropout(model)
    logps = TokenLogps(model)
    pairs = examples()
    torch.testing.assert_close(run(logps, pairs), run(logps, pairs), rtol=0, atol=0)
