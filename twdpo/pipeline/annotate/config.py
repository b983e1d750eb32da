"""What `twdpo annotate` can be told. The field names are the flags' names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twdpo.errors import UsageError
from twdpo.pipeline.annotate.shard import Shard
from twdpo.pipeline.model_files import DEFAULT_MODEL
from twdpo.pipeline.models import DTYPES

#: What reads a judge, how accelerate can spread one over devices, and what of a run can hold the engines.
DEVICE_MAPS = ("auto", "balanced", "sequential")
RUNNERS = ("local", "ray")
ENGINES = ("transformers", "vllm")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateConfig:
    """The configuration of stage one.

    dataset: a named source, a local file or folder, or a hub id. source: what the weights come from; source_options:
    text such as `gamma=0.95,seed=1`; base: a cache to be reworked (see `sources`). model: the judge. layers: numbers
    separated by commas, `all`, or None for five layers over the depth. verdict: also keep the judge's probability of
    the chosen answer; without it the forward passes end at the deepest of `layers`. batch_size: prompts in one forward
    pass, None for as many as a token budget allows. engine: one of ENGINES; it decides speed, not numbers.
    tensor_parallel, gpu_memory_utilization: for vLLM, how many GPUs share the judge and how much of their memory it
    takes. seed: with `limit`, draw the pairs at random instead of taking the first. shard: `i/n`, the i-th of n parts
    (from 0), by the pairs' hashes. device_map: one of DEVICE_MAPS, for judges bigger than a device. runner: `local`, or
    `ray` with `workers` engines, None for one a GPU of the cluster (else one).
    Raises UsageError where a value is out of range.
    """

    dataset: str
    source: str = "attention"
    source_options: str | None = None
    base: str | None = None
    split: str | None = None
    dataset_revision: str | None = None
    model: str = DEFAULT_MODEL
    revision: str | None = None
    out: str = "weights_cache"
    limit: int | None = None
    seed: int | None = None
    shard: str | None = None
    layers: str | None = None
    verdict: bool = True
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    runner: str = "local"
    workers: int | None = None
    max_length: int = 2048
    batch_size: int | None = None
    engine: str = "transformers"
    tensor_parallel: int | None = None
    gpu_memory_utilization: float | None = None
    judge_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    include_text: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        least_of = {"limit": 1, "max_length": 64, "batch_size": 1, "seed": 0, "workers": 1, "tensor_parallel": 1}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name.replace('_', '-')} {value} is too small; the least is {least}")
        if self.engine not in ENGINES:
            raise UsageError(f"--engine {self.engine} is not known; choose one of {', '.join(ENGINES)}")
        if self.engine != "vllm":
            for name in ("tensor_parallel", "gpu_memory_utilization"):
                if getattr(self, name) is not None:
                    raise UsageError(f"--{name.replace('_', '-')} is for --engine vllm")
        if self.engine == "vllm":
            if self.device_map is not None:
                raise UsageError("--device-map is for --engine transformers; in vLLM it is --tensor-parallel")
            if self.runner == "ray" and (self.tensor_parallel or 1) > 1:
                raise UsageError("--runner ray gives each engine one GPU: leave --tensor-parallel out")
        share = self.gpu_memory_utilization
        if share is not None and not 0 < share <= 1:
            raise UsageError(f"--gpu-memory-utilization {share:g} must be more than 0 and at most 1")
        if self.dtype not in DTYPES:
            raise UsageError(f"--dtype {self.dtype} is not known; choose one of {', '.join(DTYPES)}")
        if self.seed is not None and self.limit is None:
            raise UsageError("--seed draws pairs at random and needs --limit, which says how many")
        if self.shard is not None:
            Shard.parse(self.shard)
        if self.device_map is not None and self.device_map not in DEVICE_MAPS:
            raise UsageError(f"--device-map {self.device_map} is not known; choose one of {', '.join(DEVICE_MAPS)}")
        if self.device_map is not None and self.device != "auto":
            raise UsageError(
                f"--device-map {self.device_map} places the judge itself: leave --device {self.device} out"
            )
        if self.runner not in RUNNERS:
            raise UsageError(f"--runner {self.runner} is not known; choose one of {', '.join(RUNNERS)}")
        if self.workers is not None and self.runner == "local":
            raise UsageError("--workers is how many engines --runner ray starts; give both, or neither")


HELP = {
    "dataset": "Named source (ultrafeedback, ultrafeedback-llama3, hh-rlhf, orca-dpo-pairs, demo), a file or folder "
    "(parquet, jsonl, json, arrow, save_to_disk), or a hub id such as org/name:config[split].",
    "source": "What the weights come from: attention, rollout, uniform, position, shuffled, random, tis, or one that "
    "an installed package registers.",
    "source_options": "Options of the source, such as gamma=0.95 or seed=1; docs/sources.md lists them.",
    "base": "With --source shuffled or random: an existing cache whose weights are reworked, without any model.",
    "split": "Split of the data set; each named source has a default.",
    "dataset_revision": "Revision of a data set on the hub.",
    "model": "Judge: a folder, a .gguf file or a hub id.",
    "revision": "Revision of a judge on the hub.",
    "out": "Folder of the weights cache; one that is there is gone on with.",
    "limit": "Judge so many pairs only: the first, or see --seed.",
    "seed": "Draw the --limit pairs at random with this seed.",
    "shard": "Judge one part only: i/n is the i-th of n, from 0; n runs with 0/n, 1/n and so on do the whole.",
    "layers": "Layers to store, such as 7,15,31 or -1 (the last) or all; five over the depth unless given.",
    "verdict": "Keep which answer the judge prefers; without it judging ends at the deepest layer stored.",
    "dtype": "auto, float32, bfloat16 or float16; auto is float32 on a CPU and bfloat16 elsewhere.",
    "device": "auto, cpu, cuda, cuda:1 or mps.",
    "device_map": "auto, balanced or sequential: spread a judge too big for a GPU over all, then memory and disk.",
    "runner": "local, or ray: engines on all GPUs of a Ray cluster, or on a laptop's cores.",
    "workers": "Engines that --runner ray starts; one for each GPU of the cluster unless given, one without GPUs.",
    "max_length": "Longest judge prompt in tokens; longer pairs are cut as published.",
    "batch_size": "Prompts in one forward pass; by a budget of tokens unless given.",
    "engine": "transformers, or vllm where that is installed; both give the same weights.",
    "tensor_parallel": "With --engine vllm: GPUs that share the judge; 1 unless given.",
    "gpu_memory_utilization": "With --engine vllm: share of a GPU's memory that it takes; 0.8 unless given.",
    "judge_template": "File with the judge prompt; {question}, {answer_a} and {answer_b} stand in it once each.",
    "chat_template_kwargs": "JSON object of arguments for the judge's chat template.",
    "include_text": "Store prompt and answers beside the weights.",
    "trust_remote_code": "Run code that a model's repository brings along.",
}


def default_layers(num_layers: int, candidates: tuple[int, ...]) -> tuple[int, ...]:
    """{0, L/4−1, L/2−1, 3L/4−1, L−1}, each moved to the nearest of `candidates`, the deeper where two are as near."""
    targets = [max(num_layers * quarter // 4 - 1, 0) for quarter in range(5)]
    nearest = {min(candidates, key=lambda layer: (abs(layer - target), -layer)) for target in targets}
    return tuple(sorted(nearest))


def parse_layers(text: str | None, num_layers: int, candidates: tuple[int, ...]) -> tuple[int, ...]:
    """The layers that `--layers` names; −1 is the last. Raises UsageError."""
    if text is None:
        return default_layers(num_layers, candidates)
    if text == "all":
        return candidates
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--layers {text!r} is not understood; give numbers such as 7,15,31, or all") from None
    layers = sorted({number + num_layers if number < 0 else number for number in numbers})
    if layers[0] < 0 or layers[-1] >= num_layers:
        raise UsageError(f"--layers {text}: the judge has {num_layers} layers, 0 to {num_layers - 1}")
    return tuple(layers)
