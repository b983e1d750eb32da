"""What `twdpo judge` can be told. The field names are the flags' names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twdpo.errors import UsageError
from twdpo.pipeline.annotate.config import HELP as ANNOTATE_HELP
from twdpo.pipeline.annotate.config import AnnotateConfig
from twdpo.pipeline.model_files import DEFAULT_MODEL

#: Options that are those of stage one.
_SHARED = (
    "revision",
    "dtype",
    "device",
    "max_length",
    "batch_size",
    "engine",
    "tensor_parallel",
    "gpu_memory_utilization",
    "judge_template",
    "chat_template_kwargs",
    "trust_remote_code",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """The configuration of a comparison of two answer files by a local judge.

    a, b: answer files of one benchmark, B that of the reference. model: the judge. questions: the benchmark's file, for
    answer files without the questions' texts; None for the hub's. common: judge what both answer. The other options are
    those of stage one. Raises UsageError where a value is out of range.
    """

    a: str
    b: str
    model: str = DEFAULT_MODEL
    revision: str | None = None
    questions: str | None = None
    out: str | None = None
    common: bool = False
    limit: int | None = None
    seed: int = 0
    json: bool = False
    dtype: str = "auto"
    device: str = "auto"
    max_length: int = 2048
    batch_size: int | None = None
    engine: str = "transformers"
    tensor_parallel: int | None = None
    gpu_memory_utilization: float | None = None
    judge_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name, least in {"limit": 1, "seed": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name} {value} is too small; the least is {least}")
        _ = self.annotate  # which looks at what is shared

    @property
    def annotate(self) -> AnnotateConfig:
        """The judge's part, as stage one takes it."""
        return AnnotateConfig(dataset="", model=self.model, **{name: getattr(self, name) for name in _SHARED})


HELP = {name: ANNOTATE_HELP[name] for name in ("model", *_SHARED)} | {
    "a": "Answer file of a model: AlpacaEval's, MT-Bench's or Arena-Hard's.",
    "b": "Answer file of another model, or the benchmark's reference answers.",
    "questions": "The benchmark's file of questions, for MT-Bench, whose answer files lack them; from the hub unless "
    "given. Gives Arena-Hard's categories, too.",
    "out": "Folder of the verdicts; judgments/A_vs_B by the models' names unless given.",
    "common": "Judge the questions that both files answer, where they do not answer the same.",
    "limit": "Judge the first questions only.",
    "seed": "Seed of the bootstrap.",
    "json": "Print the result as JSON.",
}
