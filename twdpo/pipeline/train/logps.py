"""Log-probs of chosen tokens under a causal language model, without ever holding the logits of a whole batch.

The decoder runs once; at the wanted places only, and a chunk at a time, the LM head turns hidden states into float32
log-probs. How the head is reached and how sequences are laid out depends on the model: the fastest way that agrees
with the model's own logits is taken. Shapes: B rows, T tokens, N wanted tokens over all rows, D hidden size, V
vocabulary. Not for: sums, weights or losses (`loss.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from twdpo.errors import ModelError
from twdpo.pipeline.cpu_linear import use_fast_linear
from twdpo.pipeline.train.attention import Stem, observed_windows, register
from twdpo.pipeline.train.data import Example, Side
from twdpo.pipeline.train.heads import Head
from twdpo.pipeline.train.layouts import collate
from twdpo.pipeline.train.lean import keep_less
from twdpo.pipeline.train.linear_logps import HeadRules, linear_logps

#: Logits held at a time: 2^25 in float32 are 128 MiB, and a few times that in the backward pass.
CHUNK_LOGITS = 1 << 25
#: How the self-test magnifies hidden states, so that a bound on the logits shows in a model whose logits are small.
_MAGNIFY = 16.0
_TOLERANCE, _HALF_TOLERANCE = 2e-2, 2e-1
#: Prompt, chosen and rejected lengths of the self-test's pairs.
_PROBES = ((5, 7, 3), (3, 2, 6))

HEADS = ("fused", "chunked", "whole")


class TokenLogps(nn.Module):
    """A causal language model as a function from token ids to log-probs of those of them that are wanted.

    A module, so that everything a trainer wraps around a model (DDP, FSDP) sees one forward. `autocast`: compute in
    this type over the parameters as they are, or None. `layout`: see `layouts.py`; `auto` is tree where that agrees
    with the model's own logits, else padded. `head`: `fused` works on the head's weight itself, `chunked` calls the
    head in chunks, `whole` leaves what follows the decoder to the model's own forward; None for the first that agrees.
    Raises ModelError where no way of computing log-probs agrees.
    """

    def __init__(
        self,
        model: Any,
        *,
        autocast: torch.dtype | None = None,
        layout: str = "auto",
        head: str | None = None,
        chunk_logits: int = CHUNK_LOGITS,
    ) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast
        config = model.config.get_text_config()
        self._chunk = max(1, chunk_logits // int(config.vocab_size))
        self._rules = head_rules(config)
        use_fast_linear(model)
        keep_less(model)
        self._recomputation: Recomputation | None = None
        self.layout = "padded"
        self.head = self._choose_head(HEADS if head is None else (head,))
        if layout != "padded":
            self._choose_layout(layout)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None,
        stems: Sequence[Stem] | None,
        places: Tensor,
        targets: Tensor,
    ) -> Tensor:
        """log π(targets[n]) at places[n], given what comes before in its sequence; float32[N].

        The arguments are those of `Batch.inputs`.
        """
        if self._recomputation is not None:
            self._recomputation.prepare(ids.numel())
        with torch.autocast(ids.device.type, self.autocast) if self.autocast else nullcontext():
            return self._ways[self.head](_model_inputs(ids, positions, stems), places, targets)

    @torch.no_grad()
    def states(
        self,
        ids: Tensor,
        positions: Tensor | None,
        stems: Sequence[Stem] | None,
        places: Tensor,
        targets: Tensor,
    ) -> Tensor:
        """What `lm_head` makes logits of at each place: hidden states [N, D], logits themselves where `head` is whole.

        The arguments are those of `forward`; the targets have no part in it.
        """
        inputs = _model_inputs(ids, positions, stems)
        with torch.autocast(ids.device.type, self.autocast) if self.autocast else nullcontext():
            return self._whole_logits(inputs, places) if self.head == "whole" else self._hidden(inputs, places)

    @property
    def lm_head(self) -> Head:
        """The head by itself, sharing the model's parameters."""
        module = None if self.head == "whole" else self.model.get_output_embeddings()
        return Head(module=module, is_matrix=self.head == "fused", rules=self._rules, autocast=self.autocast)

    def recompute_above(self, tokens: int) -> None:
        """From now on keep activations of passes over so many tokens or fewer; those of longer ones are recomputed.

        Raises ModelError where that must always be so (0) and the model cannot.
        """
        self._recomputation = Recomputation(self.model, tokens)

    @property
    def _ways(self) -> dict[str, Callable[[dict[str, Any], Tensor, Tensor], Tensor]]:
        return {"fused": self._fused, "chunked": self._chunked, "whole": self._whole}

    def _hidden(self, inputs: dict[str, Any], places_N: Tensor) -> Tensor:
        hidden_BTD = self.model.base_model(**inputs).last_hidden_state
        return cast(Tensor, hidden_BTD.flatten(0, 1).index_select(0, places_N))

    def _fused(self, inputs: dict[str, Any], places_N: Tensor, targets_N: Tensor) -> Tensor:
        hidden_ND = self._hidden(inputs, places_N)
        # After the decoder, where a sharded head's parameters are whole.
        head = self.model.get_output_embeddings()
        dtype = self.autocast or head.weight.dtype
        return linear_logps(
            hidden_ND, head.weight, head.bias, targets_N, chunk=self._chunk, dtype=dtype, rules=self._rules
        )

    def _chunked(self, inputs: dict[str, Any], places_N: Tensor, targets_N: Tensor) -> Tensor:
        hidden_ND = self._hidden(inputs, places_N)
        chunks = zip(torch.split(hidden_ND, self._chunk), torch.split(targets_N, self._chunk), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([self._head_logps(*chunk) for chunk in chunks])
        return torch.cat([checkpoint(self._head_logps, *chunk, use_reentrant=False) for chunk in chunks])

    def _head_logps(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        return _pick(self._rules.apply(self.model.get_output_embeddings()(hidden_ND)), targets_N)

    def _whole(self, inputs: dict[str, Any], places_N: Tensor, targets_N: Tensor) -> Tensor:
        return _pick(self._whole_logits(inputs, places_N), targets_N)

    def _whole_logits(self, inputs: dict[str, Any], places_N: Tensor) -> Tensor:
        """For models whose own forward does more between decoder and logits: let it, at the wanted places only."""

        def gather(_module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden_BTD, *rest = arguments
            return (hidden_BTD.flatten(0, 1).index_select(0, places_N)[None], *rest)

        with _removed_after(self.model.get_output_embeddings().register_forward_pre_hook(gather)):
            logits_1NV = self.model(**inputs).logits
        return cast(Tensor, logits_1NV[0])

    def _choose_head(self, candidates: Sequence[str]) -> str:
        for candidate in candidates:
            self.head = candidate
            if self._agrees():
                return candidate
        if not self._gives_numbers():
            raise ModelError(f"the logits of this {type(self.model).__name__} are not numbers; check its weights")
        raise ModelError(
            f"cannot compute log-probs of a {type(self.model).__name__}: they do not agree with its logits; "
            "choose another model"
        )

    def _choose_layout(self, layout: str) -> None:
        """Lay sequences end to end where the model's attention can be replaced and then agrees with its logits."""
        before = getattr(self.model.config, "_attn_implementation", None)
        self.layout = "tree" if layout == "auto" else layout
        try:
            self.model.set_attn_implementation(register())
            if self._agrees():
                return
            self.model.set_attn_implementation(before)
        except (AttributeError, ValueError, ImportError):  # attention is not this model's to choose
            pass
        self.layout = "padded"
        if layout != "auto":
            raise ModelError(
                f"--layout {layout} does not give the logits of a {type(self.model).__name__}; use --layout padded"
            )

    @torch.no_grad()
    def _agrees(self) -> bool:
        """Whether head and layout give what the model's own logits give, on short pairs, hidden states magnified."""
        head = self.model.get_output_embeddings()
        if head is None or (self.head == "fused" and not _is_one_matrix(head)):
            return False
        config = self.model.config.get_text_config()
        pairs = _probe_pairs(int(config.vocab_size))
        batch = collate(pairs, None, head.weight.device, self.layout)
        autocast, self.autocast = self.autocast, None
        try:
            with _removed_after(self.model.base_model.register_forward_hook(_magnify)), observed_windows() as windows:
                expected = torch.cat([self._own_logps(side) for side in _sides(pairs)])
                logps = self(**batch.inputs)
        except (AttributeError, TypeError, RuntimeError, IndexError, ValueError, ModelError):
            return False  # not built as this way needs it
        finally:
            self.autocast = autocast
        if batch.stems is not None and not _attention_is_known(config, windows):
            return False
        tolerance = _TOLERANCE if head.weight.dtype.itemsize > 2 else _HALF_TOLERANCE
        close = logps.shape == expected.shape and torch.allclose(logps, expected, rtol=tolerance, atol=tolerance)
        return bool(close)

    @torch.no_grad()
    def _gives_numbers(self) -> bool:
        """Whether the model's own log-probs are numbers; with any that is none, no way of computing them agrees."""
        try:
            pairs = _probe_pairs(int(self.model.config.get_text_config().vocab_size))
            return all(bool(self._own_logps(side).isfinite().all()) for side in _sides(pairs))
        except (AttributeError, TypeError, RuntimeError, IndexError, ValueError):
            return True  # something else is wrong with it

    def _own_logps(self, side: Side) -> Tensor:
        """A completion's log-probs by the model's own logits."""
        ids_1T = torch.from_numpy(side.ids.astype(np.int64))[None].to(self.model.get_output_embeddings().weight.device)
        logits_TV = self.model(input_ids=ids_1T, use_cache=False).logits[0]
        first = side.prompt_length
        return _pick(logits_TV[first - 1 : -1], ids_1T[0, first:])


def _model_inputs(ids: Tensor, positions: Tensor | None, stems: Sequence[Stem] | None) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if stems is not None:
        # A mask of four dimensions is passed on as it is; the attention function goes by the stems.
        nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
        inputs |= {"position_ids": positions, "attention_mask": nothing, "stems": stems}
    # Without stems no mask: padding stands on the right, where no token looks.
    return inputs


def head_rules(config: Any) -> HeadRules:
    """What the family does to the LM head's output: Cohere and Granite scale it, Gemma 2 bounds it."""
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return HeadRules(scale=scale, cap=getattr(config, "final_logit_softcapping", None))


def disable_dropout(model: nn.Module) -> None:
    """Switch off every dropout, so that policy and reference differ by their parameters only."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Attention functions read the rate off their module.
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


class Recomputation:
    """Activations inside decoder layers that are dropped and computed again on the way back, in long passes only.

    Raises ModelError where a model that must always do so cannot.
    """

    def __init__(self, model: Any, above: int) -> None:
        self._model, self._above, self._on = model, above, False
        self._rests_in_training = model.training
        # The newer of the two names; transformers warns about the older one.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        try:
            enable({"use_reentrant": False})
        except ValueError:
            if above == 0:
                raise ModelError(
                    f"a {type(model).__name__} cannot compute activations again; leave out --gradient-checkpointing"
                ) from None
        self._layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False) is True]
        for layer in self._layers:
            layer.gradient_checkpointing = False

    def prepare(self, tokens: int) -> None:
        """Be on or off for a pass over so many tokens."""
        wanted = bool(self._layers) and torch.is_grad_enabled() and tokens > self._above
        if wanted != self._on:
            self._on = wanted
            for layer in self._layers:
                layer.gradient_checkpointing = wanted
            # Only a model in training mode drops its activations; with dropout off, nothing else changes.
            self._model.train(wanted or self._rests_in_training)


def _pick(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """The targets' log-probs, float32[N]."""
    logits_NV = logits_NV.float()
    return logits_NV.gather(-1, targets_N[:, None])[:, 0] - logits_NV.logsumexp(-1)


def _is_one_matrix(head: nn.Module) -> bool:
    """Whether a head is its weight and bias and nothing else: no adapter, no hook, no parameters kept elsewhere."""
    hooks = head._forward_hooks or head._forward_pre_hooks
    return isinstance(head, nn.Linear) and not list(head.children()) and not hooks and not hasattr(head.weight, "ds_id")


def _attention_is_known(config: Any, windows: set[int | None]) -> bool:
    """Whether what decides which tokens a layer sees reaches the attention function, and is not in a mask alone."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds <= {"full_attention", "sliding_attention"}:
        return False
    window = getattr(config, "sliding_window", None)
    expected = "sliding_attention" in kinds if kinds else bool(window)
    return not expected or window in windows


def _probe_pairs(vocabulary: int) -> list[Example]:
    """A few pairs of tokens from all over the vocabulary."""
    pairs = []
    for number, (prompt, *answers) in enumerate(_PROBES):
        ids = ((np.arange(prompt + sum(answers)) + 17 * number) * 7919 + 11) % vocabulary
        parts = (ids[prompt : prompt + answers[0]], ids[prompt + answers[0] :])
        chosen, rejected = (
            Side(
                ids=np.concatenate([ids[:prompt], part]).astype(np.int32),
                prompt_length=prompt,
                weights=np.ones(len(part), np.float32),
            )
            for part in parts
        )
        pairs.append(Example(example_hash=str(number), row=number, chosen=chosen, rejected=rejected))
    return pairs


def _sides(pairs: Sequence[Example]) -> list[Side]:
    """In the order in which a batch gives log-probs."""
    return [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]


def _magnify(_module: nn.Module, _arguments: Any, output: Any) -> Any:
    output.last_hidden_state = output.last_hidden_state * _MAGNIFY
    return output


@contextmanager
def _removed_after(hook: Any) -> Iterator[None]:
    """A hook for the length of a `with` block."""
    try:
        yield
    finally:
        hook.remove()
