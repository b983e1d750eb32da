"""A forward pass over prompts that lie in a row and share beginnings: attention, and the rows that are read off it.

The last decoder layer matters at the reading positions only, so it is computed there only; where no verdict is asked
for, the pass ends at the deepest wanted layer. Not for: what lies where (`tree.py`), or the products (`kernels.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twdpo.errors import ModelError
from twdpo.pipeline.annotate.engines.capture import EnoughError
from twdpo.pipeline.annotate.engines.kernels import Scores, attend, capped, softmax, varlen
from twdpo.pipeline.annotate.engines.tree import Ids, Row, Sequences, sequences


class Head:
    """What all prompts of a run begin with, and each layer's keys and values there, [K, h, D] each."""

    def __init__(self, ids: Ids) -> None:
        self.ids = ids
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}


class PackedPass:
    """One pass over a row of T tokens with R prompts.

    layers: whose attention is kept, in `rows`: float32[R, longest prompt], mean over heads, zero behind a prompt's end.
    last: the model's last layer. head: read from, or with `fill_head` written to; then nothing else is kept. stop_at:
    the layer at which EnoughError is raised. at_once: all segments in one kernel. windows: filled with what each layer
    asked for.
    """

    masked = False

    def __init__(
        self,
        row: Row,
        *,
        layers: Sequence[int],
        last: int,
        head: Head | None = None,
        fill_head: bool = False,
        stop_at: int | None = None,
        at_once: bool = False,
    ) -> None:
        self._row, self._layers, self._last = row, frozenset(layers), last
        self._head, self._fill_head, self._stop_at = head, fill_head, stop_at
        self._sequences = sequences(row, len(head.ids) if head and not fill_head else 0) if at_once else None
        self._ends: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}
        self._on: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}
        self.rows: dict[int, Tensor] = {}
        self.windows: dict[int, int | None] = {}

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **arguments: Any
    ) -> Tensor:
        """An attention function of transformers: query [1, H, T, D], key and value [1, K, T, D] → [1, T, H, D]."""
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        if layer in self.windows:
            raise ModelError(f"layer {layer} runs attention more than once a pass; such models are not supported")
        scores = Scores.of(query.shape[-1], arguments)
        self.windows[layer] = scores.window
        if self._fill_head and self._head is not None:
            self._head.keys[layer], self._head.values[layer] = key[0].clone(), value[0].clone()
            if layer == self._stop_at:
                raise EnoughError
        at_places = layer == self._last or layer in self._layers
        read = self._read(layer, query[0], key[0], value[0], scores) if at_places else None
        if layer == self._stop_at:
            raise EnoughError
        return read if read is not None else self._everywhere(layer, query[0], key[0], value[0], scores)

    def _everywhere(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
        """Each segment's attention to what its prompt has before it and to itself; [1, T, H, D]."""
        if self._sequences is not None and scores.softcap is None and scores.sinks is None:
            return self._at_once(layer, q, k, v, scores, self._sequences)
        outputs = []
        for segment in self._row.segments:
            own = slice(segment.at, segment.at + segment.length)
            stem = slice(segment.stem_at, segment.stem_at + segment.stem_length)
            keys, values = [k[:, stem], k[:, own]], [v[:, stem], v[:, own]]
            if self._head is not None and segment.head:
                keys.insert(0, self._head.keys[layer][:, : segment.head])
                values.insert(0, self._head.values[layer][:, : segment.head])
            outputs.append(attend(q[:, own], torch.cat(keys, dim=1), torch.cat(values, dim=1), scores))
        return torch.cat(outputs)[None]

    def _at_once(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scores: Scores, all_of_them: Sequences) -> Tensor:
        if q.device not in self._ends:
            arrays = (all_of_them.keys, all_of_them.query_ends, all_of_them.key_ends)
            self._ends[q.device] = tuple(torch.from_numpy(array).to(q.device) for array in arrays)  # type: ignore[assignment]
        keys, *ends = self._ends[q.device]
        if self._head is not None and not self._fill_head:
            k = torch.cat([self._head.keys[layer], k], dim=1)
            v = torch.cat([self._head.values[layer], v], dim=1)
        longest = (all_of_them.longest_query, all_of_them.longest_key)
        return varlen(q, k[:, keys], v[:, keys], (ends[0], ends[1]), longest, scores)[None]

    def _read(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor | None:
        """Keep the reading positions' attention; in the last layer also return its output there, zero elsewhere."""
        places_R, keys_RM, back_RM = self._on_device(q.device)
        H, T, D = q.shape
        if self._head is not None and self._head.keys:
            k = torch.cat([self._head.keys[layer], k], dim=1)
        K = k.shape[0]
        # In float32 whatever the model's type: the scores' last bits are the weights' first.
        q_RKgD = q[:, places_R].transpose(0, 1).reshape(len(places_R), K, H // K, D).float()
        s_RHM = torch.einsum("rkgd,krmd->rkgm", q_RKgD, k[:, keys_RM].float()).flatten(1, 2) * scores.scale
        unseen_RM = back_RM < 0 if scores.window is None else (back_RM < 0) | (back_RM >= scores.window)
        s_RHM = capped(s_RHM, scores.softcap).masked_fill(unseen_RM[:, None], float("-inf"))
        p_RHM = softmax(s_RHM, None if scores.sinks is None else scores.sinks.float().view(H, 1))
        if layer in self._layers:
            self.rows[layer] = p_RHM.mean(dim=1)
        if layer != self._last:
            return None
        if self._head is not None and self._head.values:
            v = torch.cat([self._head.values[layer], v], dim=1)
        p_RKgM = p_RHM.view(len(places_R), K, H // K, -1).to(v.dtype)
        output = q.new_zeros(1, T, H, D)
        output[0, places_R] = torch.einsum("rkgm,krmd->rkgd", p_RKgM, v[:, keys_RM]).flatten(1, 2)
        return output

    def _on_device(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """places int64[R], keys int64[R, M], and how far back each key lies, int64[R, M]; negative behind the end."""
        if device not in self._on:
            lengths = torch.from_numpy(self._row.lengths)
            back = lengths[:, None] - 1 - torch.arange(self._row.keys.shape[1])
            arrays = (torch.from_numpy(self._row.places), torch.from_numpy(self._row.keys), back)
            self._on[device] = tuple(array.to(device) for array in arrays)  # type: ignore[assignment]
        return self._on[device]
