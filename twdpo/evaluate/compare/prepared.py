"""What all runs of an arm have in common: its pairs with their weights, and how these are scaled.

Not for: training (`runs.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twdpo.errors import DataError, UsageError
from twdpo.evaluate.compare.arms import Arm
from twdpo.evaluate.compare.config import CompareConfig
from twdpo.pipeline.train.data import Example
from twdpo.pipeline.train.feed import open_feed
from twdpo.pipeline.train.processes import Alone
from twdpo.pipeline.train.progress import TrainProgress
from twdpo.pipeline.train.render import Renderer
from twdpo.pipeline.train.resident import ResidentFeed
from twdpo.weights_cache import Manifest
from twdpo.weights_cache.transforms import parse_attn_source


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """An arm, ready to be trained.

    train: hashes of the pairs, in their order. heldout: the pairs that every run is measured on, with this arm's
    weights. prompts: of each of them a number, the same for pairs of one prompt. summed: the training pairs' weights.
    digest: of all that is trained on, or measured.
    """

    arm: Arm
    weights: Path
    train: tuple[str, ...]
    heldout: tuple[Example, ...]
    prompts: tuple[int, ...]
    summed: float
    digest: str
    skipped: Mapping[str, int]


def prepare(config: CompareConfig, arm: Arm, weights: Path, renderer: Renderer) -> Prepared:
    """Join the pairs with an arm's weights. Raises what joining raises, DataError where nothing is held out."""
    asked = config.train_config(arm, weights=str(weights), out="")
    layers = parse_attn_source(arm.attn_source, Manifest.load(weights).recipe.layers)
    with open_feed(asked, layers, renderer, Alone(), TrainProgress()) as feed:
        assert isinstance(feed, ResidentFeed)
        train, heldout = feed.train, feed.held_out
        digest, skipped = feed.digest, dict(feed.counts.skipped)
    if not heldout:
        raise DataError(
            f"{len(train)} pairs are too few to hold some out unasked; say how many with train: {{eval_split: 20}}"
        )
    weights_of = [side.weights for example in train for side in (example.chosen, example.rejected)]
    held = hashlib.sha256(b"".join(example.digest for example in heldout)).hexdigest()[:16]
    return Prepared(
        arm=arm,
        weights=weights,
        train=tuple(example.example_hash for example in train),
        heldout=tuple(heldout),
        prompts=_prompts(heldout),
        summed=float(sum(np.sum(w, dtype=np.float64) for w in weights_of)),
        digest=f"{digest}{held}",
        skipped=skipped,
    )


def check_same_pairs(arms: Sequence[Prepared]) -> None:
    """Raise UsageError where an arm has other pairs than the baseline, or no weight at all."""
    first = arms[0]
    for other in arms:
        for what, ours, theirs in (
            ("trained on", first.train, other.train),
            ("held out", _hashes(first.heldout), _hashes(other.heldout)),
        ):
            if ours != theirs:
                differing = len(set(ours) ^ set(theirs))
                raise UsageError(
                    f"arm {other.arm.name} has other pairs {what} than {first.arm.name} ({differing} differ): are "
                    f"{first.weights} and {other.weights} of the same pairs?"
                )
        if other.summed <= 0:
            raise UsageError(f"arm {other.arm.name} gives no token any weight: nothing could be trained")


def scales(arms: Sequence[Prepared], *, match: bool) -> dict[str, float]:
    """By how much each arm's weights are multiplied: with `match` so that all arms sum to what the first one's do.

    Since the loss of (beta, c·w) is that of (c·beta, w), it is beta that is multiplied; with IPO it is so but for a
    factor of the whole loss, which AdamW takes out. Losses of weighted means know no scale of the weights: theirs is 1.
    """
    return {arm.arm.name: arms[0].summed / arm.summed if match and arm.arm.has_scale else 1.0 for arm in arms}


def _prompts(examples: Sequence[Example]) -> tuple[int, ...]:
    known: dict[bytes, int] = {}
    prompts = (example.chosen.ids[: example.chosen.prompt_length].tobytes() for example in examples)
    return tuple(known.setdefault(prompt, len(known)) for prompt in prompts)


def _hashes(examples: Sequence[Example]) -> tuple[str, ...]:
    return tuple(example.example_hash for example in examples)
