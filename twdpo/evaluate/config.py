"""What `twdpo eval` can be told. The field names are the flags' names.

Not for: reading YAML or flags (`twdpo/config.py`, `cli_evaluate.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from twdpo.errors import UsageError
from twdpo.pipeline.train.config import DEVICES, LAYOUTS, UNCOVERED

DTYPES = ("float32", "bfloat16")
#: Of a sampled answer.
MAX_NEW_TOKENS = 512
#: How weights are read, as in `TrainConfig`.
RULES = ("attn_source", "sink_fix", "uncovered", "uniform_mix")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """The configuration of an evaluation. None stands for what the model's own run said, where it has a train.yaml.

    model: a folder of a model or an adapter, a .gguf file or a hub id. dataset, split, limit: the pairs; None for
    those that the run held out. weights: the cache, for weighted figures; None for the run's with its own pairs, and
    for plain figures alone with a `dataset`. attn_source, sink_fix, uncovered, uniform_mix: as in `TrainConfig`.
    reference: the model that ratios and KL are from. beta: of the rewards, which are left out where none is known. kl:
    whether to measure the exact KL. dtype: float32 resolves what training changes; bfloat16 computes in it over
    float32 parameters. against: another evaluation's eval.json, or its folder, for paired differences. reward_model:
    scores sampled answers of model and reference; max_new_tokens, temperature: of both, None for MAX_NEW_TOKENS and for
    greedy. out: the file for the result, None for eval.json in the model's folder, if it is one. json: whether the
    command prints JSON.

    Raises UsageError where a value is out of range, or would be ignored.
    """

    model: str
    revision: str | None = None
    dataset: str | None = None
    split: str | None = None
    limit: int | None = None
    weights: str | None = None
    attn_source: str | None = None
    sink_fix: bool | None = None
    uncovered: str | None = None
    uniform_mix: float | None = None
    reference: str | None = None
    reference_revision: str | None = None
    reference_cache: str | None = None
    beta: float | None = None
    kl: bool = True
    max_length: int | None = None
    batch_size: int | None = None
    layout: str = "auto"
    dtype: str = "float32"
    device: str = "auto"
    against: str | None = None
    reward_model: str | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    resamples: int = 10_000
    level: float = 0.95
    seed: int = 0
    out: str | None = None
    json: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        choices = (("uncovered", UNCOVERED), ("layout", LAYOUTS), ("dtype", DTYPES), ("device", DEVICES))
        for name, allowed in choices:
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise UsageError(f"{_flag(name)} {value} is not known; choose {' or '.join(allowed)}")
        for name, least in (
            ("limit", 1),
            ("max_length", 8),
            ("batch_size", 1),
            ("max_new_tokens", 1),
            ("resamples", 100),
            ("temperature", 0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is not None and not (value >= least and math.isfinite(value)):
                raise UsageError(f"{_flag(name)} {value} is too small; the least is {least}")
        if self.beta is not None and not (self.beta > 0 and math.isfinite(self.beta)):
            raise UsageError(f"--beta {self.beta} must be a number above 0")
        if not 0.0 < self.level < 1.0:
            raise UsageError(f"--level {self.level} is outside 0 to 1, such as 0.95")
        if self.uniform_mix is not None and not 0.0 <= self.uniform_mix <= 1.0:
            raise UsageError(f"--uniform-mix {self.uniform_mix} is outside 0 to 1")
        self._refuse_ignored()

    def _refuse_ignored(self) -> None:
        """Raise UsageError for a setting that would change nothing as the others are."""
        ignored = (
            (
                ("split",),
                self.dataset is None,
                "needs --dataset; without both, the pairs are those that the model's run held out",
            ),
            (
                RULES,
                self.dataset is not None and self.weights is None,
                "needs --weights; with --dataset and without it there are plain figures only",
            ),
            (
                ("reference_revision",),
                self.reference is None,
                "needs --reference; the run's own is known with its revision",
            ),
            (("reference_cache",), self.kl, "needs --no-kl; for the exact KL the reference is computed anew"),
            (
                ("max_new_tokens", "temperature"),
                self.reward_model is None,
                "needs --reward-model, which scores answers",
            ),
        )
        for names, idle, why in ignored:
            for name in names:
                if idle and getattr(self, name) is not None:
                    raise UsageError(f"{_flag(name)} {why}")

    @property
    def rules(self) -> dict[str, object]:
        """What was given of how weights are read."""
        return {name: getattr(self, name) for name in RULES if getattr(self, name) is not None}


HELP = {
    "model": "Policy: a folder that twdpo train wrote (model or adapter), another model's folder, a .gguf or a hub id.",
    "revision": "Revision of a policy on the hub.",
    "dataset": "Pairs to evaluate on; those that the policy's run held out unless given.",
    "split": "Split of --dataset.",
    "limit": "The first so many pairs only.",
    "weights": "Weights cache for the weighted figures; the run's unless given, and none with --dataset.",
    "attn_source": "Whose attention to use, as in training; as the run did unless given, else last.",
    "sink_fix": "Give each answer's first token the mean weight; as the run did unless given, else on.",
    "uncovered": "Weight of tokens that the judge did not see, zero or one; as the run did unless given, else zero.",
    "uniform_mix": "Share of even weights mixed in; as the run did unless given, else 0.",
    "reference": "Model to measure from; what the policy was trained from unless given, where that is known.",
    "reference_revision": "Revision of a --reference on the hub.",
    "reference_cache": "Folder of reference log-probs, with --no-kl; the run's unless given.",
    "beta": "Of the rewards, beta times a margin; the run's unless given, if it has one (SimPO's is none).",
    "kl": "Measure the KL from the reference, exactly; without it stored reference log-probs are used.",
    "max_length": "Longest sequence in tokens; the run's unless given, else 2048 or the policy's context.",
    "batch_size": "Pairs in a forward pass, answers in a batch; by a budget of tokens unless given.",
    "layout": "How sequences meet the model: tree, packed, padded, or auto.",
    "dtype": "float32, or bfloat16 for speed at the cost of small differences.",
    "device": "auto, cpu, cuda or mps.",
    "against": "Another evaluation on the same pairs, its eval.json or folder: paired differences from it.",
    "reward_model": "Score sampled answers of policy and reference by this reward model: a folder or a hub id.",
    "max_new_tokens": "With --reward-model: longest sampled answer in tokens; 512 unless given.",
    "temperature": "With --reward-model: temperature of sampled answers; 0, the likeliest token, unless given.",
    "resamples": "Bootstrap resamples of an interval.",
    "level": "Confidence of the intervals.",
    "seed": "Decides resamples and sampled answers.",
    "out": "File for the result as JSON; eval.json in the policy's folder unless given, if it is a folder.",
    "json": "Print the result as JSON instead of a table.",
    "trust_remote_code": "Run code that a model's repository brings along.",
}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
