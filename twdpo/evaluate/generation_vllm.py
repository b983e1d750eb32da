"""Answers through vLLM, whose own batching replaces batches of like length; prompts and ends as with transformers.

vLLM gets token ids, not messages, so that text that spells a special token stays text here as well. Not for: judging
through vLLM (`pipeline/annotate/engines/vllm.py`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from twdpo.errors import ModelError
from twdpo.evaluate.generation import COLD, GenerationSettings, Generator, Ids, Request, renderer_of, request_seed
from twdpo.pipeline.annotate.engines.vllm import make_llm, quiet_vllm, start_vllm, vllm_reason
from twdpo.pipeline.model_files import holds_adapter, loading, locate
from twdpo.pipeline.models import resolve_dtype

if TYPE_CHECKING:
    from twdpo.evaluate.benchmarks.config import GenerateConfig

#: Requests that vLLM has at once, and that are kept together: what an interruption may cost.
_BATCH = 128
_GPU_MEMORY = 0.9
_CPU_CACHE = "2"


class VllmGenerator(Generator):
    """Generates with a model in vLLM."""

    def __init__(
        self, llm: Any, sampling: Any, tokenizer: Any, ends: frozenset[int], context: int, settings: GenerationSettings
    ) -> None:
        super().__init__(renderer_of(tokenizer, settings), context, settings)
        self._llm, self._sampling, self._ends = llm, sampling, ends | super()._stops

    @property
    def batch_size(self) -> int:
        """As the settings say, or enough to keep vLLM busy."""
        return self._settings.batch_size or _BATCH

    @property
    def _stops(self) -> frozenset[int]:
        return self._ends

    def _generate(self, prompts: list[Ids], requests: list[Request], limits: list[int]) -> list[Ids]:
        if not prompts:
            return []
        sampling = [
            self._sampling(
                max_tokens=limit,
                temperature=request.temperature if request.temperature >= COLD else 0.0,
                seed=request_seed(self._settings.seed, request.key),
                stop_token_ids=sorted(self._ends),
                detokenize=False,
            )
            for request, limit in zip(requests, limits, strict=True)
        ]
        inputs = [{"prompt_token_ids": ids.tolist()} for ids in prompts]
        try:
            outputs = self._llm.generate(inputs, sampling, use_tqdm=False)
        except Exception as error:  # whatever it raises: its workers, its kernels or its models failed
            raise ModelError(
                f"vLLM stopped: {vllm_reason(error)}; VLLM_LOGGING_LEVEL=INFO shows its log, --engine transformers "
                "does without it"
            ) from error
        return [np.asarray(output.outputs[0].token_ids, np.int32) for output in outputs]

    def close(self) -> None:
        """End vLLM and free its memory."""
        self._llm.llm_engine.engine_core.shutdown()


def load_vllm_generator(config: GenerateConfig, settings: GenerationSettings) -> tuple[VllmGenerator, str | None, str]:
    """A generator, its model's revision and dtype. Raises UsageError where vLLM is missing, and ModelError."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    if config.model.endswith(".gguf") or holds_adapter(config.model):
        kind = "a GGUF file" if config.model.endswith(".gguf") else "an adapter"
        raise ModelError(f"{config.model} is {kind}, which --engine vllm does not load; use --engine transformers")
    vllm, device = start_vllm(config.device)
    folder, identity, arguments = locate(config.model, config.revision, config.trust_remote_code)
    with loading(config.model, "model"):
        model: Any = AutoConfig.from_pretrained(folder, **arguments)
        tokenizer = AutoTokenizer.from_pretrained(folder, **arguments)
    try:
        own: Any = GenerationConfig.from_pretrained(folder, revision=arguments.get("revision", "main")).eos_token_id
    except OSError:  # not every model has one
        own = model.eos_token_id
    ends = frozenset([own] if isinstance(own, int) else own or ())
    commit = getattr(model, "_commit_hash", None)
    dtype = resolve_dtype(config.dtype, device)
    if device == "cpu":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE)
    options: dict[str, Any] = {
        "model": folder,
        "revision": commit or arguments.get("revision"),
        "dtype": dtype,
        "tensor_parallel_size": config.tensor_parallel or 1,
        "gpu_memory_utilization": config.gpu_memory_utilization or _GPU_MEMORY,
        "trust_remote_code": config.trust_remote_code,
        "skip_tokenizer_init": True,
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
        "generation_config": "vllm",  # only what is asked for here, no sampling settings of the model's own
    }
    with quiet_vllm():
        llm = make_llm(vllm, {name: value for name, value in options.items() if value is not None}, config.model)
    context = int(llm.llm_engine.model_config.max_model_len)
    generator = VllmGenerator(llm, vllm.SamplingParams, tokenizer, ends, context, settings)
    return generator, identity or commit, dtype
