"""What `twdpo generate` can be told. The field names are the flags' names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twdpo.errors import UsageError
from twdpo.evaluate.benchmarks.questions import ARENA_VERSIONS, BENCHMARKS
from twdpo.pipeline.models import DTYPES

ENGINES = ("transformers", "vllm")
#: What the tools' own configurations give a local model: AlpacaEval's most often, FastChat's default, Arena-Hard's.
MAX_NEW_TOKENS = {"alpaca_eval": 2048, "mt_bench": 1024, "arena_hard": 4096}
TEMPERATURES = {"alpaca_eval": 0.7, "arena_hard": 0.0}
#: MT-Bench has one a category, and this for those that it does not know.
MT_BENCH_TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
MT_BENCH_TEMPERATURE = 0.7
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateConfig:
    """The configuration of a run that answers a benchmark's questions.

    benchmark: one of BENCHMARKS. name: what the official tool calls the model, its folder's name unless given.
    questions: a file, None for the hub's. arena_version: one of ARENA_VERSIONS, for the hub's. max_new_tokens,
    temperature: None for the benchmark's own. Raises UsageError where a value is out of range.
    """

    benchmark: str
    model: str
    revision: str | None = None
    name: str | None = None
    out: str = "answers"
    questions: str | None = None
    arena_version: str = "v0.1"
    limit: int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    seed: int = 0
    engine: str = "transformers"
    batch_size: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    tensor_parallel: int | None = None
    gpu_memory_utilization: float | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        least_of = {"limit": 1, "max_new_tokens": 1, "batch_size": 1, "seed": 0, "tensor_parallel": 1}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name.replace('_', '-')} {value} is too small; the least is {least}")
        choices = {"benchmark": BENCHMARKS, "arena_version": ARENA_VERSIONS, "engine": ENGINES, "dtype": DTYPES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UsageError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is not known; choose one of {', '.join(known)}"
                )
        if self.temperature is not None and not 0 <= self.temperature <= 10:
            raise UsageError(f"--temperature {self.temperature:g} must be between 0 and 10")
        share = self.gpu_memory_utilization
        if share is not None and not 0 < share <= 1:
            raise UsageError(f"--gpu-memory-utilization {share:g} must be more than 0 and at most 1")
        if self.engine != "vllm":
            for name in ("tensor_parallel", "gpu_memory_utilization"):
                if getattr(self, name) is not None:
                    raise UsageError(f"--{name.replace('_', '-')} is for --engine vllm")
        if not _NAME.fullmatch(self.called):
            raise UsageError(
                f"--name {self.called!r} would be a file's name: give one of letters, digits, dots, dashes and "
                "underscores"
            )

    @property
    def called(self) -> str:
        """The model's name in the answer file."""
        if self.name is not None:
            return self.name
        path = Path(self.model).expanduser()
        return (path.resolve() if path.exists() else path).name.removesuffix(".gguf")

    @property
    def tokens(self) -> int:
        """The most tokens of an answer."""
        return self.max_new_tokens or MAX_NEW_TOKENS[self.benchmark]

    def temperature_of(self, category: str) -> float:
        """Of a question of that category."""
        if self.temperature is not None:
            return self.temperature
        if self.benchmark == "mt_bench":
            return MT_BENCH_TEMPERATURES.get(category, MT_BENCH_TEMPERATURE)
        return TEMPERATURES[self.benchmark]


HELP = {
    "benchmark": "alpaca_eval, mt_bench or arena_hard.",
    "model": "The model that answers: a folder, a .gguf file or a hub id.",
    "revision": "Revision of a model on the hub.",
    "name": "What the official tool calls the model; its folder's name unless given.",
    "out": "Folder for the answers, which may hold those of several models and benchmarks.",
    "questions": "File of questions, as the official tool has it; from the hub unless given.",
    "arena_version": "Release of Arena-Hard from the hub: v0.1 or v2.0; a file of --questions says itself.",
    "limit": "Answer the first questions only, to try it; the file cannot be judged officially.",
    "max_new_tokens": "Longest answer in tokens; 2048 for alpaca_eval, 1024 for mt_bench, 4096 for arena_hard.",
    "temperature": "For all questions; 0.7 for alpaca_eval, 0 for arena_hard, by category for mt_bench unless given.",
    "seed": "Seed of what is drawn at temperatures above 0.",
    "engine": "transformers, or vllm where that is installed.",
    "batch_size": "Questions in one batch; by device unless given.",
    "dtype": "auto, float32, bfloat16 or float16; auto is float32 on a CPU and bfloat16 elsewhere.",
    "device": "auto, cpu, cuda, cuda:1 or mps.",
    "tensor_parallel": "With --engine vllm: GPUs that share the model; 1 unless given.",
    "gpu_memory_utilization": "With --engine vllm: share of a GPU's memory that it takes; 0.9 unless given.",
    "chat_template_kwargs": "JSON object of arguments for the model's chat template.",
    "trust_remote_code": "Run code that a model's repository brings along.",
}
