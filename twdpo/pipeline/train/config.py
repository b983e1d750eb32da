"""What `twdpo train` can be told. The field names are the flags' names.

Not for: reading YAML or flags (`twdpo/config.py`, `cli.py`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from twdpo.errors import UsageError
from twdpo.pipeline.train.objectives import GAMMA_SHARE, OBJECTIVES, Objective

UNCOVERED = ("zero", "one")
MISSING = ("error", "drop", "uniform")
OPTIMIZERS = ("adamw", "adamw_8bit")
SCHEDULERS = ("cosine", "linear", "constant")
LAYOUTS = ("auto", "tree", "packed", "padded")
DTYPES = ("auto", "float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda", "mps")

#: `eval_split: auto` holds out 2 % of the pairs, at most 256, and none of fewer than 50.
AUTO_SHARE, AUTO_MOST, AUTO_LEAST = 0.02, 256, 50

#: Fields that may change between a run and its continuation: they decide no number of the training steps.
FREE_ON_RESUME = frozenset(
    {
        "out",
        "resume",
        "log_every",
        "save_every",
        "evaluate",
        "eval_every",
        "device",
        "reference_cache",
        "merge_adapter",
        "keep_checkpoints",
        "tracker",
        "run_name",
        "push",
        "private",
        "accelerate_config",
        "num_processes",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The configuration of stage two; the defaults are the published hyper-parameters.

    weights: the cache of stage one. dataset, split: None for the pairs that the cache's manifest names. model: the
    policy, None for the manifest's. limit: the first pairs of the data set only. attn_source: `last`, a layer (29),
    `mean` or `mean:7,15`. uncovered: the weight of completion tokens that the judge did not see. missing: what becomes
    of pairs without a row. batch_size: pairs an optimizer step; micro_batch_size: pairs a forward pass, None for as
    many as a token budget allows. epochs may be a fraction; max_steps, where given, replaces it. dtype: bfloat16
    computes in bfloat16 over float32 parameters. eval_split: `auto`, `none`, a share (0.05), a count (64) or a split's
    name; evaluate: measure on them before, after and every eval_every steps, else they are only kept out of training;
    eval_every, save_every: steps, 0 for never. reference_cache: None for a folder beside the weights.

    loss: twdpo, simpo or ipo. beta: None for the loss's own default. simpo_gamma: SimPO's target margin γ, None for
    half of beta. ipo_mean: IPO's log ratios as means over tokens.

    gradient_checkpointing: compute activations again on the way back, always; else only in forward passes of more than
    activation_tokens, None for what the device affords.

    lora_rank: None trains every parameter; else adapters of that rank, and the reference is the model without them.
    lora_alpha: None for twice the rank. load_in_4bit: the frozen base in NF4 (QLoRA). merge_adapter: write the merged
    model instead of the adapter. layout: how sequences meet the model; `tree` computes a pair's prompt once, `packed`
    lays sequences end to end, `padded` side by side, `auto` is tree where that agrees with the model's own logits, else
    padded. streaming: read the pairs as they come, in constant memory, shuffled within blocks of `shuffle_block`.
    split_seed: decides which pairs are held out where that is left to chance, None for `seed`: runs of several seeds
    can then be judged on the same pairs.
    tracker: `none`, or trackers of accelerate separated by commas. push: a hub repository for the result;
    private: for you alone, where it is made now.
    accelerate_config: `ddp`, `fsdp2`, `zero3` or a file of `accelerate config`; num_processes: how many to start.
    Raises UsageError where a value is out of range.
    """

    weights: str = "weights_cache"
    dataset: str | None = None
    split: str | None = None
    model: str | None = None
    revision: str | None = None
    out: str = "trained"
    limit: int | None = None
    attn_source: str = "last"
    sink_fix: bool = True
    uncovered: str = "zero"
    uniform_mix: float = 0.0
    missing: str = "error"
    loss: str = "twdpo"
    beta: float | None = None
    simpo_gamma: float | None = None
    ipo_mean: bool = False
    label_smoothing: float = 0.0
    learning_rate: float = 1e-6
    scheduler: str = "cosine"
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 32
    micro_batch_size: int | None = None
    max_length: int = 2048
    dtype: str = "auto"
    device: str = "auto"
    optimizer: str = "adamw"
    gradient_checkpointing: bool = False
    activation_tokens: int | None = None
    layout: str = "auto"
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_targets: str = "all-linear"
    load_in_4bit: bool = False
    merge_adapter: bool = False
    streaming: bool = False
    shuffle_block: int = 4096
    eval_split: str = "auto"
    evaluate: bool = True
    eval_every: int = 100
    save_every: int = 100
    keep_checkpoints: int = 2
    log_every: int = 1
    resume: bool = True
    seed: int = 42
    split_seed: int | None = None
    reference_cache: str | None = None
    tracker: str = "none"
    run_name: str | None = None
    push: str | None = None
    private: bool = False
    accelerate_config: str | None = None
    num_processes: int | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("loss", tuple(OBJECTIVES)),
            ("uncovered", UNCOVERED),
            ("missing", MISSING),
            ("optimizer", OPTIMIZERS),
            ("scheduler", SCHEDULERS),
            ("layout", LAYOUTS),
            ("dtype", DTYPES),
            ("device", DEVICES),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(f"{flag(name)} {getattr(self, name)} is not known; choose {' or '.join(allowed)}")
        for name in (
            "limit",
            "max_steps",
            "batch_size",
            "micro_batch_size",
            "log_every",
            "activation_tokens",
            "lora_rank",
            "shuffle_block",
            "keep_checkpoints",
            "num_processes",
        ):
            _at_least(name, getattr(self, name), 1)
        for name in ("eval_every", "save_every", "seed", "split_seed", "weight_decay"):
            _at_least(name, getattr(self, name), 0)
        _at_least("max_length", self.max_length, 8)
        for name in ("beta", "learning_rate", "epochs", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{flag(name)} {value} must be a number above 0")
        _within("uniform_mix", self.uniform_mix, 0.0, 1.0)
        _within("warmup_ratio", self.warmup_ratio, 0.0, 1.0)
        if not 0.0 <= self.label_smoothing < 0.5:
            raise UsageError(f"--label-smoothing {self.label_smoothing} is outside 0 to 0.5 (0.5 excluded)")
        parse_eval_split(self.eval_split)
        self._check_loss()
        self._check_adapters()

    def _check_loss(self) -> None:
        """What belongs to one loss is refused beside another."""
        if self.label_smoothing and not OBJECTIVES[self.loss].smoothing:
            able = " or ".join(name for name, objective in OBJECTIVES.items() if objective.smoothing)
            raise UsageError(f"--label-smoothing is not defined for --loss {self.loss}; leave it out, or use {able}")
        if self.simpo_gamma is not None and self.loss != "simpo":
            raise UsageError("--simpo-gamma needs --loss simpo")
        if self.simpo_gamma is not None and not (self.simpo_gamma >= 0 and math.isfinite(self.simpo_gamma)):
            raise UsageError(f"--simpo-gamma {self.simpo_gamma} must be a number of 0 or more")
        if self.ipo_mean and self.loss != "ipo":
            raise UsageError("--ipo-mean needs --loss ipo")

    def _check_adapters(self) -> None:
        """What belongs to adapters needs them: a setting that is ignored would be a surprise."""
        if self.lora_rank is None:
            for name in ("lora_alpha", "lora_targets", "load_in_4bit", "merge_adapter"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise UsageError(f"{flag(name)} needs --lora-rank, such as --lora-rank 16")
        if self.lora_alpha is not None and not (self.lora_alpha > 0 and math.isfinite(self.lora_alpha)):
            raise UsageError(f"--lora-alpha {self.lora_alpha} must be a number above 0")
        if not self.lora_targets.replace(",", " ").strip():
            raise UsageError("--lora-targets is empty; pass all-linear, or names such as q_proj,v_proj")

    @property
    def holding_seed(self) -> int:
        """What decides the held-out pairs."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def objective(self) -> Objective:
        """What is known of the loss."""
        return OBJECTIVES[self.loss]

    def settled(self) -> TrainConfig:
        """The same with the loss's own defaults where nothing was given: what a run writes down."""
        beta = self.objective.beta if self.beta is None else self.beta
        gamma = self.simpo_gamma
        if self.loss == "simpo" and gamma is None:
            gamma = GAMMA_SHARE * beta
        return replace(self, beta=beta, simpo_gamma=gamma)

    @property
    def name(self) -> str:
        """What the run is called where it has to be told from others."""
        return self.run_name or Path(self.out).absolute().name

    @property
    def reference_folder(self) -> Path:
        """Where reference log-probs are kept."""
        if self.reference_cache is not None:
            return Path(self.reference_cache)
        return Path(self.weights).absolute().parent / "reference_cache"


HELP = {
    "weights": "Folder of the weights cache that twdpo annotate wrote.",
    "dataset": "Where the pairs are; the data sets that the cache names unless given.",
    "split": "Split of the data set.",
    "model": "Policy: a folder, a .gguf file or a hub id; the one that the cache names unless given.",
    "revision": "Revision of a policy on the hub.",
    "out": "Folder for the trained model, its metrics and checkpoints.",
    "limit": "Train on the first so many pairs only.",
    "attn_source": "Whose attention to use: last (the deepest stored layer), a layer (29), mean, or mean:7,15.",
    "sink_fix": "Give the first token of each answer, where attention collects, the mean weight; see docs/sources.md.",
    "uncovered": "Weight of tokens that the judge did not see (end of turn, cut tail): zero or one.",
    "uniform_mix": "Share of even weights mixed in: 0 is the cached weights alone, 1 is plain DPO on what was judged.",
    "missing": "What to do with pairs that the cache lacks: error, drop or uniform.",
    "loss": "twdpo (with even weights: DPO), simpo (no reference, mean log-probs) or ipo.",
    "beta": "Strength of the pull towards the reference, for simpo the scale of mean log-probs; 0.005 for twdpo, 2 for "
    "simpo and 0.1 for ipo unless given.",
    "simpo_gamma": "Margin that --loss simpo asks for; half of beta unless given.",
    "ipo_mean": "Let --loss ipo take means over tokens, as TRL does, not sums.",
    "label_smoothing": "Probability that a label is wrong, below 0.5.",
    "learning_rate": "Peak learning rate.",
    "scheduler": "What the learning rate does after its warm-up: cosine, linear or constant.",
    "warmup_ratio": "Share of the steps over which the learning rate rises.",
    "weight_decay": "Weight decay of AdamW.",
    "max_grad_norm": "Gradients are clipped to this norm.",
    "epochs": "Passes over the pairs; may be a fraction.",
    "max_steps": "Optimizer steps, instead of --epochs.",
    "batch_size": "Pairs in an optimizer step.",
    "micro_batch_size": "Pairs in a forward pass; by a budget of tokens unless given.",
    "max_length": "Longest sequence in tokens; longer answers are cut at their end.",
    "dtype": "auto, float32 or bfloat16; auto is float32 on a CPU and bfloat16 elsewhere.",
    "device": "auto, cpu, cuda or mps.",
    "optimizer": "adamw, or adamw_8bit where bitsandbytes is installed.",
    "gradient_checkpointing": "Trade time for memory: compute all activations again on the way back.",
    "activation_tokens": "Forward passes of more tokens compute activations again; by the device unless given.",
    "layout": "How sequences meet the model: tree (prompt computed once), packed, padded, or auto.",
    "lora_rank": "Train adapters of this rank instead of every parameter (LoRA); needs peft.",
    "lora_alpha": "Scale of the adapters; twice the rank unless given.",
    "lora_targets": "Modules that get adapters: all-linear, or names such as q_proj,v_proj.",
    "load_in_4bit": "Hold the frozen base in 4 bits (QLoRA); needs --lora-rank and bitsandbytes.",
    "merge_adapter": "Write the merged model instead of the adapter.",
    "streaming": "Read pairs as they come, in constant memory: for data sets that do not fit.",
    "shuffle_block": "Pairs that are shuffled together with --streaming.",
    "eval_split": "Held-out pairs: auto (2 %, at most 256), none, a share, a count, or a split's name.",
    "evaluate": "Evaluate on the held-out pairs; without it they are only kept out of training.",
    "eval_every": "Steps between evaluations; 0 for before and after only.",
    "save_every": "Steps between checkpoints; 0 for none.",
    "keep_checkpoints": "How many of the last checkpoints are kept; the best one is kept besides.",
    "log_every": "Steps that a line of metrics.jsonl covers.",
    "resume": "Go on from the last checkpoint in --out.",
    "seed": "Decides the order of the pairs, how adapters start, and which pairs are held out.",
    "split_seed": "Decides which pairs are held out, in place of --seed.",
    "reference_cache": "Folder for reference log-probs; beside the weights cache unless given.",
    "tracker": "Where curves go besides metrics.jsonl: none, tensorboard, wandb, trackio, mlflow or another that "
    "accelerate knows; several with commas.",
    "run_name": "Name of the run for trackers; the name of --out unless given.",
    "push": "Model repository on the hub (owner/name) that gets the finished model.",
    "private": "Of a repository that --push makes now: for you alone.",
    "accelerate_config": "Start several processes: ddp, fsdp2, zero3, or a file that accelerate config wrote.",
    "num_processes": "How many processes to start on this machine.",
    "trust_remote_code": "Run code that a model's repository brings along.",
}


def flag(name: str) -> str:
    """A field as the command line spells it."""
    return f"--{name.replace('_', '-')}"


def parse_eval_split(text: str) -> float | int | str | None:
    """A share (float, 0 to 1), a count (int), a split's name or "auto" (str), or None. Raises UsageError."""
    if text in ("none", "0"):
        return None
    if re.fullmatch(r"\d+", text):
        return int(text)
    if re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", text):
        try:
            share = float(text)
        except ValueError:
            share = -1.0
        if not 0.0 < share < 1.0:
            raise UsageError(f"--eval-split {text} is no share between 0 and 1, no count and no split's name")
        return share
    if not re.fullmatch(r"\w+([.-]\w+)*", text):
        raise UsageError(f"--eval-split {text!r} is no share between 0 and 1, no count and no split's name")
    return text


def names_split(config: TrainConfig) -> bool:
    """Whether the held-out pairs are a split of their own, whose prompts may be trained on, too."""
    found = parse_eval_split(config.eval_split)
    return isinstance(found, str) and found != "auto"


def heldout_count(eval_split: float | int | str | None, pairs: int) -> int:
    """How many of `pairs` to hold out where `eval_split` names no split. Raises UsageError where none would be left."""
    if eval_split == "auto":
        return min(AUTO_MOST, round(AUTO_SHARE * pairs)) if pairs >= AUTO_LEAST else 0
    if isinstance(eval_split, int):
        if eval_split >= pairs:
            raise UsageError(f"--eval-split {eval_split} would leave no pair of {pairs} to train on")
        return eval_split
    if isinstance(eval_split, float):
        return min(max(1, round(eval_split * pairs)), pairs - 1)
    return 0


def _at_least(name: str, value: float | None, least: int) -> None:
    if value is not None and not value >= least:
        raise UsageError(f"{flag(name)} {value} is too small; the least is {least}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"{flag(name)} {value} is outside {low:g} to {high:g}")
