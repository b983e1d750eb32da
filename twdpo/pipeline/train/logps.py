"""Log-probs of chosen tokens under a causal language model, without ever holding the logits of a whole batch.

The decoder runs once; at the wanted positions only, and a chunk at a time, the LM head turns hidden states into
float32 log-probs. Chunks are recomputed in the backward pass. Shapes: B sequences, T tokens, N wanted tokens over all
sequences, D hidden size, V vocabulary. Not for: sums, weights or losses (`loss.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from twdpo.errors import ModelError

#: Logits held at a time: 2^25 in float32 are 128 MiB, and a few times that in the backward pass.
CHUNK_LOGITS = 1 << 25
#: How the self-test magnifies hidden states, so that a bound on the logits shows in a model whose logits are small.
_MAGNIFY = 16.0
_TOLERANCE = 2e-2


class TokenLogps(nn.Module):
    """A causal language model as a function from token ids to log-probs of those of them that are wanted.

    A module, so that everything a trainer wraps around a model (DDP, compilation) sees one forward. `autocast`:
    compute in this type over the parameters as they are, or None. Raises ModelError where no way of computing
    log-probs agrees with the model's own logits.
    """

    def __init__(self, model: Any, *, autocast: torch.dtype | None = None, chunk_logits: int = CHUNK_LOGITS) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast
        config = model.config.get_text_config()
        self._chunk = max(1, chunk_logits // int(config.vocab_size))
        self._finish = _finish_logits(config)
        self.chunked = self._agrees(self._chunked)
        if not self.chunked and not self._agrees(self._whole):
            raise ModelError(
                f"cannot compute log-probs of a {type(model).__name__}: they do not agree with its logits; "
                "choose another model"
            )

    def forward(self, ids_BT: Tensor, mask_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        """log π(ids[b, t] | ids[b, :t]) wherever `wanted`, row by row; float32[N].

        ids: int64. mask: 1 for tokens, 0 for padding on the right. wanted: bool, False at t = 0.
        """
        rows, columns = torch.nonzero(wanted_BT, as_tuple=True)
        targets = ids_BT[rows, columns]
        places = rows * ids_BT.shape[1] + columns - 1
        how = self._chunked if self.chunked else self._whole
        with torch.autocast(ids_BT.device.type, self.autocast) if self.autocast else nullcontext():
            return how(ids_BT, mask_BT, places, targets)

    def _chunked(self, ids_BT: Tensor, mask_BT: Tensor, places_N: Tensor, targets_N: Tensor) -> Tensor:
        output = self.model.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
        hidden_ND = output.last_hidden_state.flatten(0, 1).index_select(0, places_N)
        chunks = zip(torch.split(hidden_ND, self._chunk), torch.split(targets_N, self._chunk), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([self._head_logps(*chunk) for chunk in chunks])
        return torch.cat([checkpoint(self._head_logps, *chunk, use_reentrant=False) for chunk in chunks])

    def _head_logps(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        logits_NV = self._finish(self.model.get_output_embeddings()(hidden_ND))
        return _pick(logits_NV, targets_N)

    def _whole(self, ids_BT: Tensor, mask_BT: Tensor, places_N: Tensor, targets_N: Tensor) -> Tensor:
        """For models whose own forward does more between decoder and logits: let it, at the wanted positions only."""

        def gather(_module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden_BTD, *rest = arguments
            return (hidden_BTD.flatten(0, 1).index_select(0, places_N)[None], *rest)

        with _hooked(self.model.get_output_embeddings(), gather):
            logits_1NV = self.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
        return _pick(logits_1NV[0], targets_N)

    @torch.no_grad()
    def _agrees(self, how: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> bool:
        """Whether `how` gives what the model's own logits give, on a few tokens and with magnified hidden states."""
        head = self.model.get_output_embeddings()
        if head is None:
            return False
        device = head.weight.device
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        ids_BT = (torch.arange(14, device=device).view(2, 7) * 7919 + 11) % vocabulary
        mask_BT = torch.ones_like(ids_BT)
        places = torch.tensor([0, 4, 9, 12], device=device)
        targets = ids_BT.flatten()[places + 1]
        with _hooked(head, lambda _module, arguments: (arguments[0] * _MAGNIFY, *arguments[1:])):
            try:
                logits_BTV = self.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
                logps = how(ids_BT, mask_BT, places, targets)
            except (AttributeError, TypeError, RuntimeError, IndexError):  # not built as this way needs it
                return False
        expected = _pick(logits_BTV.flatten(0, 1)[places], targets)
        return logps.shape == expected.shape and bool(torch.allclose(logps, expected, rtol=_TOLERANCE, atol=_TOLERANCE))


def disable_dropout(model: nn.Module) -> None:
    """Switch off every dropout, so that policy and reference differ by their parameters only."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Attention functions read the rate off their module.
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def checkpoint_activations(model: Any) -> None:
    """Keep no activations inside decoder layers, but compute them again in the backward pass."""
    # The newer of the two names; transformers warns about the older one.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    # Only a model in training mode drops its activations; with dropout off, nothing else changes.
    model.train()


def _pick(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """The targets' log-probs, float32[N]."""
    logits_NV = logits_NV.float()
    return logits_NV.gather(-1, targets_N[:, None])[:, 0] - logits_NV.logsumexp(-1)


def _finish_logits(config: Any) -> Callable[[Tensor], Tensor]:
    """What the family does to the LM head's output: Cohere and Granite scale it, Gemma 2 bounds it."""
    scale = getattr(config, "logit_scale", None) or 1.0
    scale = scale / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def finish(logits: Tensor) -> Tensor:
        if scale != 1.0:
            logits = logits * scale
        return torch.tanh(logits / cap) * cap if cap else logits

    return finish


class _hooked:
    """A forward pre-hook for the length of a `with` block."""

    def __init__(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self._module, self._hook = module, hook

    def __enter__(self) -> None:
        self._handle = self._module.register_forward_pre_hook(self._hook)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
