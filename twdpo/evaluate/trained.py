"""What is known of how a model was trained: its run's train.yaml, its folder, what it began as.

Not for: the pairs of that run (`pairs.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from twdpo.config import resolve
from twdpo.errors import UsageError
from twdpo.pipeline.model_files import ADAPTER_CONFIGURATION, holds_adapter
from twdpo.pipeline.train.config import TrainConfig

#: As in `pipeline/train/output.py`, which needs torch.
_CONFIGURATION, _BEST = "train.yaml", "best"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run of `twdpo train`. file: its train.yaml."""

    file: Path
    config: TrainConfig


def run_of(model: str) -> Run | None:
    """The run that wrote a model's folder, or the one that `best/` is of; None where there is no train.yaml.

    Raises UsageError where it cannot be read.
    """
    folder = Path(model).expanduser()
    places = [folder, *([folder.absolute().parent] if folder.name == _BEST else [])]
    for place in places:
        if (place / _CONFIGURATION).is_file():
            file = place / _CONFIGURATION
            return Run(file=file, config=resolve(TrainConfig, str(file), {}).settled())
    return None


def origin(model: str, run: Run | None) -> tuple[str, str | None]:
    """The model that one was trained from, and its revision. Raises UsageError where nothing says it."""
    if run is not None and run.config.model:
        return run.config.model, run.config.revision
    if holds_adapter(model):
        try:
            settings = json.loads((Path(model).expanduser() / ADAPTER_CONFIGURATION).read_text("utf-8"))
            return str(settings["base_model_name_or_path"]), settings.get("revision")
        except (OSError, ValueError, KeyError, TypeError):
            pass  # loading it will say what is wrong with it
    why = "no train.yaml" if Path(model).expanduser().is_dir() else "no such folder here"
    raise UsageError(f"what {model} was trained from is not known ({why}); pass --reference")
