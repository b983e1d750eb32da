"""What `twdpo compare` can be told: a YAML file with the arms, the betas and the seeds. Not for: running it (`run.py`).

dataset: ultrafeedback.parquet
model: smollm2-135m
betas: [0.01, 0.1]
seeds: [1, 2, 3]
arms:
  dpo: {source: uniform, uncovered: one}
  attention: {uncovered: [zero, one]}     # a list makes an arm of each value
train: {learning_rate: 1e-5, batch_size: 8}
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from twdpo.config import checked, read_yaml
from twdpo.errors import UsageError
from twdpo.evaluate.compare.arms import Arm, check_list, expand, listed, sorted_betas
from twdpo.pipeline.annotate.config import AnnotateConfig
from twdpo.pipeline.model_files import DEFAULT_MODEL
from twdpo.pipeline.train.config import TrainConfig, names_split, parse_eval_split

#: The arm that the others are measured against, added where no arm has its name: DPO, every completion token alike.
BASELINE = "dpo"

#: What the comparison decides itself, and how to say it instead.
_DECIDED: Mapping[str, str] = {
    "weights": "weights: at the top",
    "dataset": "dataset: at the top",
    "split": "split: at the top",
    "model": "model: or judge: at the top",
    "out": "out: at the top",
    "source": "an arm",
    "source_options": "an arm",
    "base": "weights: at the top",
    "attn_source": "an arm",
    "sink_fix": "an arm",
    "uniform_mix": "an arm",
    "uncovered": "an arm",
    "loss": "an arm",
    "simpo_gamma": "an arm",
    "ipo_mean": "an arm",
    "beta": "betas: at the top",
    "seed": "seeds: at the top",
    "missing": "nothing: every arm has the same pairs",
    "reference_cache": "nothing: it is shared",
    "resume": "nothing: finished runs are kept",
    "push": "twdpo train",
    "private": "twdpo train",
    "run_name": "nothing: a run is called after its arm, beta and seed",
    "shard": "twdpo annotate",
    "streaming": "twdpo train",
}
#: What the same name means in stage one is another thing.
_ANNOTATE_OWN = frozenset({"seed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig:
    """The configuration of a comparison: every arm at every beta and seed, on the same pairs in the same order.

    dataset, split: the pairs. model: the policy; judge: whose attention is read, None for the policy. weights: a cache
    of attention weights that is there already, None to make one. arms: as the file has them, name → settings. betas: of
    all arms that name none of their own. match: scale every arm's weights to the summed weight of the baseline (as its
    beta, which is the same). split_seed: decides the held-out pairs, which are the same for all runs. keep_models: keep
    every trained model, not its evaluation alone. resamples: of the bootstrap. reward_model: scores an answer of every
    policy to each held-out prompt, of at most max_new_tokens, drawn at `temperature` (0 for the likeliest tokens).
    annotate, train: options of the two stages for all arms alike.
    Raises UsageError.
    """

    dataset: str
    split: str | None = None
    model: str = DEFAULT_MODEL
    judge: str | None = None
    weights: str | None = None
    out: str = "comparison"
    arms: dict[str, Any]
    baseline: str = BASELINE
    betas: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    seeds: tuple[int, ...] = (1, 2, 3)
    match: bool = True
    split_seed: int = 0
    keep_models: bool = False
    resamples: int = 4000
    reward_model: str | None = None
    max_new_tokens: int = 512
    temperature: float = 0.0
    annotate: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", sorted_betas(self.betas))
        check_list("seeds", self.seeds, "1")
        if not all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in self.seeds):
            raise UsageError(f"seeds: {listed(self.seeds)} must be whole numbers from 0 on")
        if self.resamples < 100:
            raise UsageError(f"resamples: {self.resamples} is too few for an interval; the least is 100")
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens: {self.max_new_tokens} is too few; the least is 1")
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"temperature: {self.temperature} must be a number from 0 on")
        arms = self.expanded
        if self.baseline not in {arm.name for arm in arms}:
            known = ", ".join(arm.name for arm in arms)
            raise UsageError(f"baseline: {self.baseline} is no arm; there are {known}")
        if len(arms) < 2:
            raise UsageError("arms: there is nothing to compare; name at least one beside the baseline")
        self.annotate_config(arms[0], weights="weights")
        for arm in arms:
            training = self.train_config(arm, weights="weights", out="out")
        held_out = parse_eval_split(training.eval_split)
        if held_out is None or names_split(training):
            raise UsageError(
                f"train: eval_split: {training.eval_split} is neither a share nor a count: all arms are measured on "
                "pairs held out of the same split"
            )

    @property
    def expanded(self) -> tuple[Arm, ...]:
        """Every arm, the baseline first, lists of values multiplied out. Raises UsageError."""
        arms = [arm for name, settings in self.arms.items() for arm in expand(str(name), settings)]
        names = [arm.name for arm in arms]
        if self.baseline == BASELINE and BASELINE not in names:
            arms.insert(0, Arm(name=BASELINE, source="uniform", uncovered="one"))
        return tuple(sorted(arms, key=lambda arm: arm.name != self.baseline))

    def annotate_config(
        self, arm: Arm, *, weights: str, base: str | None = None, leave_out: Collection[str] = ()
    ) -> AnnotateConfig:
        """Stage one for an arm's source, into the folder `weights`; base: the attention cache that it reworks.

        leave_out: options that the source would refuse.
        """
        given = _stage(AnnotateConfig, self.annotate, "annotate")
        given = {name: value for name, value in given.items() if name not in leave_out}
        return AnnotateConfig(
            **given,
            dataset=self.dataset,
            split=self.split,
            model=self.judge or self.model,
            out=weights,
            source=arm.source,
            source_options=arm.source_options,
            base=base,
        )

    def betas_of(self, arm: Arm) -> tuple[float, ...]:
        """The betas that an arm is trained at."""
        return arm.betas or self.betas

    def train_config(
        self, arm: Arm, *, weights: str, out: str, beta: float | None = None, seed: int | None = None
    ) -> TrainConfig:
        """Stage two for one run; beta, seed: None for the first ones.

        Its checkpoints and its own evaluations are off unless `train` asks for them.
        """
        given = {"save_every": 0, "evaluate": False, **_stage(TrainConfig, self.train, "train")}
        return TrainConfig(
            **given,
            **arm.training,
            weights=weights,
            dataset=self.dataset,
            split=self.split,
            model=self.model,
            out=out,
            beta=self.betas_of(arm)[0] if beta is None else beta,
            seed=self.seeds[0] if seed is None else seed,
            split_seed=self.split_seed,
            missing="drop",
        )


def load_config(file: str, out: str | None = None) -> CompareConfig:
    """The configuration in a YAML file; `out` wins over what it says. Raises UsageError."""
    content = read_yaml(file, file)
    if not isinstance(content, dict):
        raise UsageError(f"{file}: expected dataset:, arms: and so on; see twdpo compare --help")
    values = checked(CompareConfig, content, file)
    for name in ("dataset", "arms"):
        if not values.get(name):
            raise UsageError(f"{file}: {name} is missing")
    try:
        return CompareConfig(**{**values, **({} if out is None else {"out": out})})
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


def _stage(kind: type, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options of a stage, of their types, none of them the comparison's own to decide. Raises UsageError."""
    values = checked(kind, given, where)
    own = _ANNOTATE_OWN if kind is AnnotateConfig else frozenset()
    for name in values:
        if name in _DECIDED and name not in own:
            raise UsageError(f"{where}: {name} is decided by the comparison; set it with {_DECIDED[name]}")
    return values
