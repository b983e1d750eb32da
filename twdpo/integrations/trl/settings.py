"""What TwDPOTrainer refuses: settings and data sets with which TRL would train on other weights than it was given.

Not for: what TRL refuses itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twdpo.errors import UsageError
from twdpo.pipeline.train.weights import WeightRules
from twdpo.weights_cache import Manifest
from twdpo.weights_cache.transforms import parse_attn_source

#: Losses in which more than the two weighted sums counts, and what.
_OTHER_LOSSES = {
    "ipo": "it divides by the number of tokens, whatever they weigh",
    "sigmoid_norm": "it divides by the number of tokens, whatever they weigh",
    "sft": "it is no ratio of policy and reference",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSettings:
    """Where the weights come from and what becomes of pairs without any; as in `TrainConfig`."""

    folder: Path
    rules: WeightRules
    missing: str

    @classmethod
    def of(
        cls,
        folder: str | Path,
        *,
        attn_source: str,
        sink_fix: bool,
        uncovered: str,
        uniform_mix: float,
        missing: str,
    ) -> WeightSettings:
        """The settings, checked against the cache. Raises UsageError, or CacheError where there is no cache."""
        if uncovered not in ("zero", "one"):
            raise UsageError(f"uncovered={uncovered!r} is not understood; give 'zero' or 'one'")
        if missing not in ("error", "drop", "uniform"):
            raise UsageError(f"missing={missing!r} is not understood; give 'error', 'drop' or 'uniform'")
        if not 0.0 <= uniform_mix <= 1.0:
            raise UsageError(f"uniform_mix={uniform_mix} is outside 0 to 1")
        manifest = Manifest.load(Path(folder))
        layers = parse_attn_source(attn_source, manifest.recipe.layers)
        sink_fix = sink_fix and manifest.has_sink
        rules = WeightRules(layers=layers, sink_fix=sink_fix, uniform_mix=uniform_mix, uncovered=uncovered)
        return cls(folder=Path(folder), rules=rules, missing=missing)


def check_arguments(args: Any) -> None:
    """Refuse a DPOConfig under which weights would be wrong or without effect. Raises UsageError."""
    for loss_type in args.loss_type:
        if loss_type in _OTHER_LOSSES:
            raise UsageError(f"loss_type={loss_type!r} has no token-weighted form here: {_OTHER_LOSSES[loss_type]}")
    if args.ld_alpha is not None:
        raise UsageError("ld_alpha weighs tokens by their place, the cache by their meaning; leave ld_alpha out")
    if args.use_weighting:
        raise UsageError("use_weighting (WPO) takes unweighted log-probs for its own weights; leave it off")
    if args.padding_free:
        raise UsageError("padding_free has no place for weights per token; leave it off")
    if args.use_liger_kernel:
        raise UsageError("use_liger_kernel replaces the forward pass whose log-probs are weighted; leave it off")
    parallel = args.parallelism_config
    if parallel is not None and max(parallel.cp_size, getattr(parallel, "sp_size", 1)) > 1:
        raise UsageError("context and sequence parallelism split a sequence apart from its weights; leave them off")


def check_row(row: Mapping[str, Any], name: str) -> None:
    """Refuse a data set that cannot be joined with weights, by one of its rows. Raises UsageError."""
    if "image" in row or "images" in row:
        raise UsageError(f"the {name} data set holds images; token weights are for text")
    if "chosen_weights" in row:
        raise UsageError(f"the {name} data set has been prepared already; pass its rows as they were before")
    kinds = {column: isinstance(row[column], str) for column in ("prompt", "chosen", "rejected") if column in row}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"`{column}` is {'text' if is_text else 'messages'}" for column, is_text in kinds.items())
        raise UsageError(f"trl takes text or messages, not both, but in the {name} data set {told}; use one of the two")
