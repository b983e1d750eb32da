"""How good a trained policy is: held-out pairs, benchmark answers, judges, comparisons.

    result = evaluate(EvalConfig(model="trained"))
    result.metrics["accuracy"].value, result.metrics["kl_per_token"].low

Not for: training (`pipeline/train`). Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twdpo.errors import Interrupted
from twdpo.evaluate.config import EvalConfig

if TYPE_CHECKING:
    from twdpo.evaluate.result import EvalResult
    from twdpo.pipeline.train.progress import TrainProgress

__all__ = ["EvalConfig", "evaluate"]


def evaluate(config: EvalConfig, progress: TrainProgress | None = None) -> EvalResult:
    """Evaluate a policy as `config` says, telling `progress` about it.

    Raises UsageError, DataError, ModelError, CacheError (MissingRows where pairs have no weights), StorageError,
    HubUnavailable, and Interrupted on Ctrl-C.
    """
    from twdpo.evaluate.run import run
    from twdpo.pipeline.train.progress import TrainProgress

    try:
        return run(config, progress or TrainProgress())
    except KeyboardInterrupt:
        raise Interrupted("stopped; nothing was written") from None
