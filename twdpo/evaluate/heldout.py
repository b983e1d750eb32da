"""A policy on held-out pairs: log-ratios of every pair, and its KL from the reference, exact over the vocabulary.

    states = ReferenceStates.of(reference, examples)          once, for as many policies as there are
    figures = measure(policy, examples, states)               one entry a pair
    estimates = summarize(figures, beta=0.1)                  means with intervals

With ℓ_t = log π(y_t|·) − log π_ref(y_t|·), all in nats and none of it times beta. Shapes: N tokens, D hidden size, V
vocabulary. Not for: which pairs are held out (`pairs.py`), or files (`run.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twdpo.evaluate.figures import PairFigures, differences, summarize
from twdpo.evaluate.statistics import Floats
from twdpo.pipeline.models import input_device
from twdpo.pipeline.train.batches import TOKEN_BUDGET, micro_batches
from twdpo.pipeline.train.data import Example
from twdpo.pipeline.train.heads import Head
from twdpo.pipeline.train.layouts import Batch, Logps, collate
from twdpo.pipeline.train.logps import TokenLogps

__all__ = ["PairFigures", "ReferenceStates", "differences", "logps_of", "measure", "summarize"]

#: Logits held at a time, of each of the two models: 2^24 in float32 are 64 MiB.
CHUNK_LOGITS = 1 << 24

Advance = Callable[[int], None]


class ReferenceStates:
    """What the reference's LM head is given at every completion token of some examples, in the host's memory.

    Computed once, it serves any number of policies: a token takes its hidden size times the size of the model's type
    (2.3 kB in a 135M model in float32). The head is a copy: the model may be dropped, or trained on, afterwards.
    """

    def __init__(self, head: Head, states: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self.head, self._states = head, states

    @classmethod
    def of(
        cls,
        reference: TokenLogps,
        examples: Sequence[Example],
        *,
        pairs: int | None = None,
        tokens: int | None = None,
        copy_head: bool = True,
        advance: Advance | None = None,
    ) -> ReferenceStates:
        """Run the reference over the examples; pairs, tokens: of a forward pass, as in `micro_batches`."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for group, batch in _batches(reference, examples, pairs, tokens):
            states = reference.states(**batch.inputs).cpu()
            sides = torch.split(states, _lengths(group))
            for example, chosen, rejected in zip(group, sides[: len(group)], sides[len(group) :], strict=True):
                found[example.example_hash] = (chosen.clone(), rejected.clone())
            if advance is not None:
                advance(len(group))
        head = reference.lm_head
        return cls(head.copy() if copy_head else head, found)

    def __contains__(self, example_hash: object) -> bool:
        return example_hash in self._states

    def __len__(self) -> int:
        return len(self._states)

    def rows(self, group: Sequence[Example]) -> Tensor:
        """The states of a batch's completion tokens, in its order: [N, D]."""
        pairs = [self._states[example.example_hash] for example in group]
        return torch.cat([chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs])


@torch.no_grad()
def logps_of(
    model: TokenLogps, examples: Sequence[Example], *, pairs: int | None = None, tokens: int | None = None
) -> dict[str, Logps]:
    """Hash → log-probs of the chosen and the rejected tokens; pairs, tokens: as in `micro_batches`."""
    found: dict[str, Logps] = {}
    for group, batch in _batches(model, examples, pairs, tokens):
        logps = torch.split(model(**batch.inputs).float().cpu(), _lengths(group))
        for example, chosen, rejected in zip(group, logps[: len(group)], logps[len(group) :], strict=True):
            found[example.example_hash] = (chosen.numpy().copy(), rejected.numpy().copy())
    return found


@torch.no_grad()
def measure(
    policy: TokenLogps,
    examples: Sequence[Example],
    reference: ReferenceStates | Mapping[str, Logps],
    *,
    weighted: bool = True,
    pairs: int | None = None,
    tokens: int | None = None,
    chunk_logits: int = CHUNK_LOGITS,
    advance: Advance | None = None,
) -> PairFigures:
    """A policy's figures on examples, in their order.

    reference: the states, or hash → log-probs of the chosen and the rejected tokens, with which no KL is measured.
    weighted: whether the examples' weights say anything. pairs, tokens: of a forward pass, as in `micro_batches`.
    chunk_logits: logits that are held at a time, of each model. A policy with adapters is measured with them.
    """
    columns: dict[str, Any] = {}
    places = {id(example): place for place, example in enumerate(examples)}
    for group, batch in _batches(policy, examples, pairs, tokens):
        if isinstance(reference, ReferenceStates):
            found = _exact(policy, batch, reference, group, chunk_logits)
        else:
            known = [reference[example.example_hash][side] for side in (0, 1) for example in group]
            found = _Tokens(
                logps=policy(**batch.inputs).double().cpu().numpy(), reference=np.concatenate(known), kl=None
            )
        sums = _sums(found, group)
        rows = [places[id(example)] for example in group]
        for name, values in sums.items():
            columns.setdefault(name, np.zeros(len(examples)))[rows] = values
        if advance is not None:
            advance(len(group))
    if not weighted:
        columns = {name: column for name, column in columns.items() if not name.startswith("weighted")}
    empty = np.zeros(0)
    for name in ("chosen_ratios", "rejected_ratios", "chosen_logps", "rejected_logps"):
        columns.setdefault(name, empty)
    return PairFigures(
        hashes=tuple(example.example_hash for example in examples),
        chosen_tokens=np.array([len(example.chosen.weights) for example in examples], np.int64),
        rejected_tokens=np.array([len(example.rejected.weights) for example in examples], np.int64),
        **columns,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tokens:
    """Of a batch's completion tokens, chosen answers first: float64[N] each."""

    logps: Floats
    reference: NDArray[Any]
    kl: Floats | None


def _exact(
    policy: TokenLogps, batch: Batch, reference: ReferenceStates, group: Sequence[Example], chunk_logits: int
) -> _Tokens:
    """Both models' log-probs of the tokens, and Σ_v π(v) (log π(v) − log π_ref(v)) at each, chunk by chunk."""
    states_ND, head = policy.states(**batch.inputs), policy.lm_head
    others_ND = reference.rows(group)
    found: list[Tensor] = []
    step = max(1, chunk_logits // int(policy.model.config.get_text_config().vocab_size))
    for start in range(0, len(states_ND), step):
        part = slice(start, start + step)
        ours_NV = _log_softmax(head.logits(states_ND[part]))
        theirs_NV = _log_softmax(reference.head.logits(others_ND[part]).to(ours_NV.device))
        targets_N1 = batch.targets[part, None]
        chosen = [logps_NV.gather(-1, targets_N1)[:, 0] for logps_NV in (ours_NV, theirs_NV)]
        difference_NV = theirs_NV.neg_().add_(ours_NV)
        kl_N = ours_NV.exp_().mul_(difference_NV).sum(-1)
        found.append(torch.stack([*chosen, kl_N]).double().cpu())
        del ours_NV, theirs_NV, difference_NV
    logps, known, kl = torch.cat(found, -1).numpy()
    return _Tokens(logps=logps, reference=known, kl=kl)


def _log_softmax(logits_NV: Tensor) -> Tensor:
    return logits_NV.sub_(logits_NV.logsumexp(-1, keepdim=True))


def _sums(tokens: _Tokens, group: Sequence[Example]) -> dict[str, Floats]:
    """Over the tokens of each answer."""
    ends = np.cumsum(_lengths(group))[:-1]
    sides = [example.chosen for example in group] + [example.rejected for example in group]
    ratios = np.split(tokens.logps - tokens.reference, ends)
    columns = {
        "{}_ratios": [r.sum() for r in ratios],
        "weighted_{}_ratios": [r @ side.weights.astype(np.float64) for r, side in zip(ratios, sides, strict=True)],
        "{}_logps": [logps.sum() for logps in np.split(tokens.logps, ends)],
    }
    if tokens.kl is not None:
        columns["{}_kl"] = [kl.sum() for kl in np.split(tokens.kl, ends)]
    half = len(group)
    return {
        name.format(side): np.array(values[part])
        for name, values in columns.items()
        for side, part in (("chosen", slice(half)), ("rejected", slice(half, None)))
    }


def _batches(
    model: TokenLogps, examples: Sequence[Example], pairs: int | None, tokens: int | None
) -> Iterator[tuple[list[Example], Batch]]:
    device = input_device(model.model)
    budget = tokens or TOKEN_BUDGET["cpu" if device.type == "cpu" else "accelerator"]
    for group in micro_batches(examples, pairs, budget, model.layout):
        yield group, collate(group, None, device, model.layout)


def _lengths(group: Sequence[Example]) -> list[int]:
    """Completion tokens of each answer, chosen ones first."""
    sides = [example.chosen for example in group] + [example.rejected for example in group]
    return [len(side.weights) for side in sides]
