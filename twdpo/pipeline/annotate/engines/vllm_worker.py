"""What runs inside vLLM's worker processes: watches the wanted layers' attention and keeps the reading positions' rows.

vLLM mixes `AttentionReader` into its worker class (`worker_extension_cls`), and `collective_rpc` calls it by method
name. Its `__init__` never runs, and its names must not be the worker's own: hence the prefix. What is wrong is told in
text, not raised: an exception in the midst of a step would end the worker. Not for: the arithmetic (`paged.py`), or the
run (`vllm.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from twdpo.pipeline.annotate.engines.kernels import Scores
from twdpo.pipeline.annotate.engines.paged import KeyStore, Step, step_rows

_LAYER_NUMBER = re.compile(r"\.(\d+)(?=\.)")
#: What vLLM puts behind a request's id to make it unique.
_SUFFIX = re.compile(r"-[0-9a-f]{8}$")
#: Settings of a backend that change scores in ways which the rows would not follow.
_UNFOLLOWED = {"alibi_slopes": "ALiBi", "sinks": "attention sinks"}
#: What a step's metadata must hold; backends differ.
_METADATA = ("query_start_loc", "seq_lens", "block_table", "slot_mapping")

#: First and last token of answer A and of answer B, and the tokens of the whole prompt.
Places = tuple[int, int, int, int, int]


class AttentionReader:
    """Mixed into vLLM's worker; each method is called on all workers at once."""

    model_runner: Any
    vllm_config: Any
    twdpo_watch_of_layers: Watch | None = None

    def twdpo_watch(self, layers: Sequence[int]) -> tuple[str | None, bool]:
        """Read these layers from now on; what stands against it, and whether cached prefixes must be forgotten."""
        current = self.twdpo_watch_of_layers
        if current is not None and current.layers == tuple(layers):
            current.forget()
            return None, False
        if current is not None:
            current.end()
        self.twdpo_watch_of_layers = None
        modules, refusal = find_layers(self.vllm_config.compilation_config.static_forward_context, layers)
        if refusal is None:
            self.twdpo_watch_of_layers = Watch(self.model_runner, modules)
        return refusal, True

    def twdpo_take(self, places: Mapping[str, Places]) -> tuple[str | None, list[int], dict[str, list[bytes]]]:
        """What went wrong, each layer's heads here, and for each request a layer's float32 on answer A, then B."""
        watch = self.twdpo_watch_of_layers
        if watch is None:
            return "no layer is watched", [], {}
        return watch.take(places)


class Watch:
    """The wanted layers' attention, wrapped, and the rows read since the last `forget`."""

    def __init__(self, runner: Any, modules: Mapping[int, Any]) -> None:
        self.layers = tuple(modules)
        self._runner, self._modules = runner, modules
        self._groups = {
            name: number
            for number, group in enumerate(runner.kv_cache_config.kv_cache_groups)
            for name in group.layer_names
        }
        self._stores: dict[int, KeyStore] = {}
        self._steps: dict[int, tuple[Any, Step]] = {}
        self._names: tuple[str, ...] | None = None
        self._rows: dict[str, dict[int, Tensor]] = {}
        self._failure: str | None = None
        self._undo: list[Callable[[], None]] = []
        for layer, module in modules.items():
            self._wrap(module.impl, "forward", self._reading(layer, module))
        self._wrap(runner, "execute_model", self._stepping)
        if hasattr(runner, "prepare_inputs"):
            self._wrap(runner, "prepare_inputs", self._naming)

    def forget(self) -> None:
        """Drop the rows; the keys stay, as cached prefixes do."""
        self._rows, self._failure = {}, None

    def end(self) -> None:
        """Leave the model as it was."""
        for undo in reversed(self._undo):
            undo()

    def take(self, places: Mapping[str, Places]) -> tuple[str | None, list[int], dict[str, list[bytes]]]:
        """As `AttentionReader.twdpo_take`; the rows are dropped."""
        rows = {_SUFFIX.sub("", name): of_layers for name, of_layers in self._rows.items()} | self._rows
        failure = self._failure
        answers: dict[str, list[bytes]] = {}
        for name, (first_a, last_a, first_b, last_b, length) in places.items():
            of_layers = rows.get(name, {})
            missing = [n for n in self.layers if n not in of_layers or len(of_layers[n]) != length]
            if missing:
                failure = failure or f"layer {missing[0]} gave no attention of the last prompt token"
                break
            answers[name] = [
                torch.cat([row[first_a:last_a], row[first_b:last_b]]).cpu().numpy().tobytes()
                for row in (of_layers[n] for n in self.layers)
            ]
        self.forget()
        return failure, [int(module.impl.num_heads) for module in self._modules.values()], answers

    def _wrap(self, owner: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        setattr(owner, name, around(getattr(owner, name)))
        self._undo.append(lambda: delattr(owner, name))

    def _stepping(self, execute: Callable[..., Any]) -> Callable[..., Any]:
        """Forget the last step when one begins."""

        def wrapped(*arguments: Any, **options: Any) -> Any:
            self._steps, self._names = {}, None
            return execute(*arguments, **options)

        return wrapped

    def _naming(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        """The second model runner makes its batch anew each step: keep the names in it."""

        def wrapped(*arguments: Any, **options: Any) -> Any:
            batch = prepare(*arguments, **options)
            self._names = tuple(batch.req_ids)
            return batch

        return wrapped

    def _reading(self, layer: int, module: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        scores = scores_of(module)

        def around(forward: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(
                owner: Any, query: Any, key: Any, value: Any, cache: Any, metadata: Any, *more: Any, **options: Any
            ) -> Any:
                if metadata is not None and self._failure is None:
                    try:
                        self._failure = self._read(layer, module.layer_name, scores, query, key, metadata)
                    except Exception as error:
                        self._failure = f"{type(error).__name__}: {error}"
                return forward(owner, query, key, value, cache, metadata, *more, **options)

            return wrapped

        return around

    def _read(self, layer: int, name: str, scores: Scores, query: Tensor, key: Tensor, metadata: Any) -> str | None:
        """Keep the step's keys and the rows of a layer; returns what stands against it."""
        lacking = [field for field in _METADATA if not hasattr(metadata, field)]
        if lacking:
            return f"{type(metadata).__name__} of this attention backend has no {lacking[0]}"
        if getattr(metadata, "causal", True) is not True:
            return f"layer {layer} attends to later tokens too"
        step = self._step(name, metadata)
        if isinstance(step, str):
            return step
        tokens = step.starts[-1]  # what follows is padding
        query, key, slot_mapping = query[:tokens], key[:tokens], metadata.slot_mapping[:tokens]
        if layer not in self._stores:
            blocks = int(self._runner.kv_cache_config.num_blocks)
            spec = self._runner.kv_cache_config.kv_cache_groups[self._groups[name]].kv_cache_spec
            self._stores[layer] = KeyStore(blocks * int(spec.block_size), key)
        store = self._stores[layer]
        store.write(slot_mapping, key)
        for request, row in step_rows(step, query, key, store, scores).items():
            self._rows.setdefault(request, {})[layer] = row
        return None

    def _step(self, name: str, metadata: Any) -> Step | str:
        """The step of a layer's group, made once a step, or what stands against it."""
        group = self._groups[name]
        known = self._steps.get(group)
        if known is not None and known[0] is metadata:
            return known[1]
        names = self._names if self._names is not None else tuple(self._runner.input_batch.req_ids)
        starts = tuple(metadata.query_start_loc.tolist()[: len(names) + 1])
        lengths = tuple(metadata.seq_lens.tolist()[: len(names)])
        if len(starts) != len(names) + 1 or starts[-1] > len(metadata.slot_mapping):
            return "the step's requests are not those of its metadata"
        step = Step(
            names=names,
            starts=starts,
            lengths=lengths,
            block_table=metadata.block_table,
            block_size=_block_size(self._runner, group),
        )
        if not step.agrees(metadata.slot_mapping):
            return "the step's slots are not those of its block table"
        self._steps[group] = metadata, step
        return step


def find_layers(modules: Mapping[str, Any], layers: Sequence[int]) -> tuple[dict[int, Any], str | None]:
    """The attention of each wanted layer among vLLM's layers by name, and why it cannot be read, if it cannot."""
    by_number: dict[int, list[Any]] = {}
    for name, module in modules.items():
        numbers = _LAYER_NUMBER.findall(f".{name}.")
        if len(numbers) == 1:
            by_number.setdefault(int(numbers[0]), []).append(module)
    found: dict[int, Any] = {}
    for layer in layers:
        here = by_number.get(layer, [])
        if len(here) != 1:
            return {}, f"layer {layer} has {len(here) or 'no'} attention modules that vLLM knows by number"
        reason = _refusal(here[0])
        if reason is not None:
            return {}, f"layer {layer} {reason}"
        found[layer] = here[0]
    return found, None


def _refusal(module: Any) -> str | None:
    """Why a layer's row could be wrong, or None where it is right."""
    kind = type(module).__name__
    if kind != "Attention":
        return f"is {kind}, whose keys are not those that the scores are made of"
    impl = module.impl
    lacking = [name for name in ("scale", "logits_soft_cap", "num_heads", "num_kv_heads") if not hasattr(impl, name)]
    if lacking:
        return f"runs in {type(impl).__name__}, which does not tell its {lacking[0]}"
    for name, what in _UNFOLLOWED.items():
        if getattr(impl, name, None) is not None:
            return f"uses {what}"
    if getattr(module, "attn_type", "decoder") != "decoder":
        return f"is {module.attn_type} attention"
    if getattr(module, "kv_sharing_target_layer_name", None) is not None:
        return "shares the keys of another layer"
    if str(getattr(module, "kv_cache_dtype", "auto")) not in ("auto", "float16", "bfloat16", "float32"):
        return f"keeps its keys as {module.kv_cache_dtype}"
    return None


def scores_of(module: Any) -> Scores:
    """How a layer scores, from its module."""
    window = getattr(module, "sliding_window", None)
    return Scores(
        scale=float(module.impl.scale), softcap=float(module.impl.logits_soft_cap or 0) or None, window=window or None
    )


def _block_size(runner: Any, group: int) -> int:
    """Tokens in a block of a group's block table; both model runners keep it, each in its own place."""
    tables = getattr(runner, "block_tables", None)
    if tables is not None:
        return int(tables.block_sizes[group])
    return int(runner.input_batch.block_table[group].block_size)
