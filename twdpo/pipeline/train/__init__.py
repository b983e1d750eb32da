"""Stage two: train a policy on preference pairs with the token weights of a cache.

    result = train(TrainConfig(weights="weights_cache", out="trained"))

Not for: making weights (`pipeline/annotate`). Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twdpo.errors import Interrupted, UsageError
from twdpo.pipeline.train.config import TrainConfig
from twdpo.pipeline.train.progress import TrainProgress
from twdpo.pipeline.train.result import TrainResult

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker  # type: ignore[import-untyped,unused-ignore]

__all__ = ["TrainConfig", "TrainProgress", "TrainResult", "train"]


def train(
    config: TrainConfig, progress: TrainProgress | None = None, *, trackers: Sequence[GeneralTracker] = ()
) -> TrainResult:
    """Train as `config` says, telling `progress` about it. `trackers`: of accelerate's kind, besides `config.tracker`.

    Where `config` asks for several processes, these are started.

    Raises UsageError, DataError, ModelError, CacheError (MissingRows where pairs have no weights), TrainingError (the
    loss is not finite; a checkpoint of another run; a tracker that cannot start), StorageError,
    HubUnavailable, and Interrupted on Ctrl-C.
    """
    from twdpo.pipeline.train.launch import launch, needed

    progress = progress or TrainProgress()
    workers = needed(config)
    if workers is None:
        return train_here(config, progress, trackers)
    if trackers:
        raise UsageError("trackers cannot be handed to other processes; name them in config.tracker")
    return launch(workers, config, progress)


def train_here(config: TrainConfig, progress: TrainProgress, trackers: Sequence[GeneralTracker] = ()) -> TrainResult:
    """As `train`, in this process, which may be one of several that a launcher started."""
    from twdpo.pipeline.train.loop import run
    from twdpo.pipeline.train.output import release

    try:
        return run(config, progress, trackers)
    except KeyboardInterrupt:
        raise Interrupted("stopped; run the same command again, and what is finished is used") from None
    finally:
        release(config)
