"""What runs in vLLM's workers, over stand-ins for its runners and attention modules: refusals and faults too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from twdpo.pipeline.annotate.engines.kernels import Scores
from twdpo.pipeline.annotate.engines.paged import attention_row
from twdpo.pipeline.annotate.engines.vllm_worker import AttentionReader, find_layers, scores_of

BLOCK, WIDTH = 4, 8


class Impl:
    """An attention backend that notes what it was called with."""

    def __init__(self, **settings: Any) -> None:
        self.scale, self.logits_soft_cap, self.num_heads, self.num_kv_heads = 0.5, 0, 4, 2
        self.alibi_slopes = self.sinks = None
        self.calls = 0
        for name, value in settings.items():
            setattr(self, name, value)

    def forward(self, _layer: Any, query: Tensor, *_others: Any, **_options: Any) -> Tensor:
        self.calls += 1
        return query


class Attention:
    """As vLLM names its attention module."""

    def __init__(self, layer: int, *, impl: Impl | None = None, **settings: Any) -> None:
        self.layer_name = f"model.layers.{layer}.self_attn.attn"
        self.impl = impl or Impl()
        self.attn_type, self.kv_cache_dtype, self.sliding_window = "decoder", "auto", None
        self.kv_sharing_target_layer_name = None
        for name, value in settings.items():
            setattr(self, name, value)


class MLAAttention(Attention):
    """As vLLM names its latent attention."""


class Runner:
    """vLLM's first model runner: a step runs every layer's attention with one metadata object."""

    def __init__(self, modules: list[Attention]) -> None:
        names = [module.layer_name for module in modules]
        group = SimpleNamespace(layer_names=names, kv_cache_spec=SimpleNamespace(block_size=BLOCK))
        self.modules = modules
        self.kv_cache_config = SimpleNamespace(num_blocks=8, kv_cache_groups=[group])
        self.input_batch = SimpleNamespace(req_ids=[], block_table=[SimpleNamespace(block_size=BLOCK)])

    def execute_model(self, step: SimpleNamespace) -> None:
        self.input_batch.req_ids = step.names
        for module, query, key in zip(self.modules, step.queries, step.keys, strict=True):
            module.impl.forward(module, query, key, key, None, step.metadata, output=None)


class SecondRunner(Runner):
    """vLLM's second model runner: the batch is what `prepare_inputs` returns."""

    def __init__(self, modules: list[Attention]) -> None:
        super().__init__(modules)
        del self.input_batch
        self.block_tables = SimpleNamespace(block_sizes=[BLOCK])

    def prepare_inputs(self, step: SimpleNamespace) -> SimpleNamespace:
        return SimpleNamespace(req_ids=step.names)

    def execute_model(self, step: SimpleNamespace) -> None:
        self.prepare_inputs(step)
        for module, query, key in zip(self.modules, step.queries, step.keys, strict=True):
            module.impl.forward(module, query, key, key, None, step.metadata, output=None)


def worker(runner: Runner) -> Any:
    """A worker with the extension mixed in as vLLM does it: without its `__init__`."""
    made: Any = type("Worker", (AttentionReader,), {})()
    made.model_runner = runner
    forward_context = {module.layer_name: module for module in runner.modules}
    made.vllm_config = SimpleNamespace(compilation_config=SimpleNamespace(static_forward_context=forward_context))
    return made


def make_step(
    names: list[str], spans: list[tuple[int, int]], blocks: list[list[int]], keys: Tensor, queries: Tensor
) -> SimpleNamespace:
    """A step that computes tokens `[first, last)` of each request; keys, queries: [layers, tokens of the step, ...]."""
    starts, slots = [0], []
    for (first, last), row in zip(spans, blocks, strict=True):
        starts.append(starts[-1] + last - first)
        slots += [row[place // BLOCK] * BLOCK + place % BLOCK for place in range(first, last)]
    metadata = SimpleNamespace(
        query_start_loc=torch.tensor(starts),
        seq_lens=torch.tensor([last for _, last in spans]),
        block_table=torch.tensor(blocks, dtype=torch.int32),
        slot_mapping=torch.tensor(slots),
        causal=True,
    )
    return SimpleNamespace(names=names, metadata=metadata, keys=list(keys), queries=list(queries))


def tokens(layers: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(layers, count, 2, WIDTH, generator=generator), torch.randn(
        layers, count, 4, WIDTH, generator=generator
    )


def whole(queries: Tensor, keys: Tensor) -> Any:
    return attention_row(queries[-1], keys, Scores(scale=0.5)).numpy()


@pytest.mark.parametrize("kind", [Runner, SecondRunner])
@pytest.mark.parametrize("suffix", ["", "-0a1b2c3d"])
def test_rows_of_the_wanted_layers_over_chunks_and_cached_blocks(kind: type[Runner], suffix: str) -> None:
    modules = [Attention(layer) for layer in range(3)]
    made = worker(kind(modules))
    assert made.twdpo_watch([0, 2]) == (None, True)
    keys, queries = tokens(3, 9, 0)
    blocks = [[5, 1, 3]]
    # The first request in two steps, then another that shares its first two blocks.
    for first, last in ((0, 6), (6, 9)):
        made.model_runner.execute_model(
            make_step([f"0{suffix}"], [(first, last)], blocks, keys[:, first:last], queries[:, first:last])
        )
    more_keys, more_queries = tokens(3, 2, 1)
    made.model_runner.execute_model(make_step([f"1{suffix}"], [(8, 10)], [[5, 1, 2]], more_keys, more_queries))
    failure, heads, answers = made.twdpo_take({"0": (0, 4, 4, 9, 9), "1": (2, 5, 6, 10, 10)})
    assert (failure, heads) == (None, [4, 4])
    for i, layer in enumerate((0, 2)):
        row = np.frombuffer(answers["0"][i], np.float32)
        np.testing.assert_allclose(row, whole(queries[layer], keys[layer]), atol=1e-6)
        expected = whole(more_queries[layer], torch.cat([keys[layer, :8], more_keys[layer]]))
        row = np.frombuffer(answers["1"][i], np.float32)
        np.testing.assert_allclose(row, np.concatenate([expected[2:5], expected[6:10]]), atol=1e-6)
    assert [module.impl.calls for module in modules] == [3, 3, 3]


def test_other_layers_start_afresh_and_leave_the_model_as_it_was() -> None:
    modules = [Attention(layer) for layer in range(2)]
    made = worker(Runner(modules))
    made.twdpo_watch([0])
    assert made.twdpo_watch([0]) == (None, False)  # cached prefixes are good still
    assert "forward" in vars(modules[0].impl)
    assert made.twdpo_watch([1]) == (None, True)
    assert "forward" not in vars(modules[0].impl)
    assert "forward" in vars(modules[1].impl)


def test_rows_are_of_one_read_only() -> None:
    made = worker(Runner([Attention(0)]))
    made.twdpo_watch([0])
    keys, queries = tokens(1, 3, 0)
    made.model_runner.execute_model(make_step(["0"], [(0, 3)], [[1]], keys, queries))
    made.twdpo_watch([0])
    failure, _, answers = made.twdpo_take({"0": (0, 1, 1, 2, 3)})
    assert failure == "layer 0 gave no attention of the last prompt token"
    assert answers == {}


def test_an_unfinished_prompt_is_no_row() -> None:
    made = worker(Runner([Attention(0)]))
    made.twdpo_watch([0])
    keys, queries = tokens(1, 3, 0)
    made.model_runner.execute_model(make_step(["0"], [(0, 3)], [[1, 2]], keys, queries))
    assert made.twdpo_take({"0": (0, 1, 1, 2, 5)})[0] == "layer 0 gave no attention of the last prompt token"


def test_what_goes_wrong_in_a_step_is_told_and_the_step_goes_on() -> None:
    module = Attention(0)
    made = worker(Runner([module]))
    made.twdpo_watch([0])
    keys, queries = tokens(1, 3, 0)
    for field, value, told in (
        ("slot_mapping", torch.tensor([0, 1, 2]), "slots are not those of its block table"),
        ("causal", False, "attends to later tokens too"),
        ("query_start_loc", torch.tensor([0]), "requests are not those of its metadata"),
        ("seq_lens", None, "AttributeError"),
    ):
        step = make_step(["0"], [(0, 3)], [[1]], keys, queries)
        setattr(step.metadata, field, value)
        made.model_runner.execute_model(step)
        failure, _, answers = made.twdpo_take({"0": (0, 1, 1, 2, 3)})
        assert told in failure
        assert answers == {}
    step = make_step(["0"], [(0, 3)], [[1]], keys, queries)
    del step.metadata.block_table
    made.model_runner.execute_model(step)
    assert "has no block_table" in made.twdpo_take({"0": (0, 1, 1, 2, 3)})[0]
    assert module.impl.calls == 5


def test_metadata_that_are_filled_anew_each_step_are_read_anew() -> None:
    made = worker(Runner([Attention(0)]))
    made.twdpo_watch([0])
    keys, queries = tokens(1, 6, 0)
    first, second = (
        make_step(["0"], [span], [[1, 2]], keys[:, slice(*span)], queries[:, slice(*span)]) for span in ((0, 2), (2, 6))
    )
    made.model_runner.execute_model(first)
    vars(first.metadata).update(vars(second.metadata))
    second.metadata = first.metadata
    made.model_runner.execute_model(second)
    failure, _, answers = made.twdpo_take({"0": (0, 3, 3, 6, 6)})
    assert failure is None
    np.testing.assert_allclose(np.frombuffer(answers["0"][0], np.float32), whole(queries[0], keys[0]), atol=1e-6)


def test_a_dry_run_is_not_read() -> None:
    made = worker(Runner([Attention(0)]))
    made.twdpo_watch([0])
    keys, queries = tokens(1, 3, 0)
    step = make_step(["0"], [(0, 3)], [[1]], keys, queries)
    step.metadata = None
    made.model_runner.execute_model(step)
    assert made.twdpo_take({})[0] is None


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (MLAAttention(0), "is MLAAttention"),
        (Attention(0, impl=Impl(alibi_slopes=[0.5])), "uses ALiBi"),
        (Attention(0, impl=Impl(sinks=torch.zeros(4))), "uses attention sinks"),
        (Attention(0, attn_type="encoder_only"), "is encoder_only attention"),
        (Attention(0, kv_cache_dtype="fp8_e4m3"), "keeps its keys as fp8_e4m3"),
        (Attention(0, kv_sharing_target_layer_name="model.layers.1"), "shares the keys of another layer"),
    ],
)
def test_what_could_give_wrong_numbers_is_refused_by_name(module: Attention, why: str) -> None:
    found, refusal = find_layers({module.layer_name: module}, [0])
    assert found == {}
    assert refusal is not None
    assert refusal.startswith(f"layer 0 {why}")


def test_a_backend_that_does_not_tell_how_it_scores_is_refused() -> None:
    module = Attention(0)
    del module.impl.logits_soft_cap
    _, refusal = find_layers({module.layer_name: module}, [0])
    assert refusal == "layer 0 runs in Impl, which does not tell its logits_soft_cap"


def test_layers_are_found_by_their_number() -> None:
    modules: dict[str, Any] = {f"language_model.model.layers.{n}.self_attn.attn": Attention(n) for n in (0, 1, 11)}
    modules["model.layers.2.cross.attn"] = modules["model.layers.2.self.attn"] = Attention(2)
    found, refusal = find_layers(modules, [1, 11])
    assert (list(found), refusal) == ([1, 11], None)
    assert find_layers(modules, [2])[1] == "layer 2 has 2 attention modules that vLLM knows by number"
    assert find_layers(modules, [5])[1] == "layer 5 has no attention modules that vLLM knows by number"


def test_how_a_layer_scores() -> None:
    module = Attention(0, impl=Impl(logits_soft_cap=30.0), sliding_window=128)
    assert scores_of(module) == Scores(scale=0.5, softcap=30.0, window=128)
    assert scores_of(Attention(0)) == Scores(scale=0.5, softcap=None, window=None)
