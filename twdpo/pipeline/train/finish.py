"""The end of a run, in its order: curves, cards, the last model and the best one, the hub.

Not for: how each is made; every part has a file of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from twdpo import __version__
from twdpo.pipeline.train.adapters import Policy
from twdpo.pipeline.train.card import RunFacts, model_card
from twdpo.pipeline.train.config import TrainConfig
from twdpo.pipeline.train.curves import INSTALL, PICTURES, write_curves
from twdpo.pipeline.train.metrics import MetricsFile
from twdpo.pipeline.train.output import CONFIGURATION, METRICS, save_models
from twdpo.pipeline.train.progress import TrainProgress
from twdpo.pipeline.train.publish import publish


def finish(
    facts: RunFacts, policy: Policy, progress: TrainProgress, whole: Mapping[str, Tensor] | None = None
) -> str | None:
    """Write all that a finished run leaves, and push it where that is asked for; returns its address on the hub.

    `policy` has the parameters of the best step afterwards; `whole` are its parameters where they are divided.
    Raises StorageError, and HubUnavailable, all being written.
    """
    config, best = facts.config, facts.best
    out = Path(config.out)
    title = f"{config.name}: {config.objective.title} of {Path(str(config.model)).name}"
    records = MetricsFile(out / METRICS).read()
    has_curves = write_curves(out, records, title=title, best=best.step if best else None, untrained=_untrained(config))
    if not has_curves:
        progress.note(INSTALL)
    facts = replace(facts, has_curves=has_curves)
    best_card = model_card(facts, is_best=True) if best else ""
    files = save_models(config, policy, model_card(facts), best_card, best.checkpoint if best else None, whole)
    if config.push is None:
        return None
    progress.note(f"sending the model to {config.push}")
    beside = (CONFIGURATION, METRICS, *(PICTURES if has_curves else ()))
    message = f"{facts.steps} steps of {config.objective.title} (twdpo {__version__})"
    return publish(out, config.push, (*files, *beside), message)


def _untrained(config: TrainConfig) -> float | None:
    """The loss where policy and reference are the same."""
    losses = {"twdpo": math.log(2), "ipo": 1.0 / (2.0 * float(config.settled().beta or 1.0)) ** 2}
    return losses.get(config.loss)
