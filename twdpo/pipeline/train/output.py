"""The folder that a run writes: claiming it, and putting the finished model in place.

    trained/  config.json, model.safetensors, tokenizer files   what from_pretrained loads; only of a finished run
              best/                                              the same of the best step, where that is not the last
              train.yaml  README.md  metrics.jsonl  curves.*     the resolved configuration, a card, figures, a plot
              trackers/                                          what trackers such as TensorBoard keep on disk
              checkpoints/                                       while a run goes on

Not for: checkpoints (`checkpoint.py`), the words of the card (`card.py`), the order of the last steps (`finish.py`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from twdpo.config import to_yaml
from twdpo.errors import UsageError
from twdpo.pipeline.models import LoadedModel, quiet_progress
from twdpo.pipeline.train.checkpoint import FOLDER, last_checkpoint, load_parameters, storing_tensors, whole_parameters
from twdpo.pipeline.train.config import TrainConfig
from twdpo.pipeline.train.curves import PICTURES
from twdpo.pipeline.train.trackers import FOLDER as TRACKERS
from twdpo.weights_cache.durable import TEMPORARY_PREFIX, fsync_folder, make_folder, write_file

CONFIGURATION = "train.yaml"
METRICS = "metrics.jsonl"
_FINISHED = "config.json"
BEST = "best"
_OWN = ("config.json", "generation_config.json", "model*.safetensors*", "README.md", METRICS, CONFIGURATION, *PICTURES)


def claim(config: TrainConfig) -> Path | None:
    """Make or take the output folder, and return the checkpoint to go on from, None for a fresh start.

    Raises UsageError where the folder holds a finished run or something else, and StorageError.
    """
    out = Path(config.out)
    make_folder(out)
    if any(out.iterdir()) and not (out / CONFIGURATION).is_file():
        raise UsageError(f"--out {out} is not empty and holds no training run; choose another folder")
    if not config.resume:
        for folder in (FOLDER, BEST, TRACKERS):
            shutil.rmtree(out / folder, ignore_errors=True)
        for pattern in _OWN:
            for path in out.glob(pattern):
                path.unlink()
    if (out / _FINISHED).is_file():
        raise UsageError(f"--out {out} holds a finished run; choose another folder, or pass --no-resume to replace it")
    for stray in out.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(stray, ignore_errors=True)
    return last_checkpoint(out)


def save_configuration(config: TrainConfig) -> None:
    """Write the resolved configuration. Raises StorageError."""
    write_file(Path(config.out) / CONFIGURATION, to_yaml(config).encode())


def save_models(
    config: TrainConfig,
    loaded: LoadedModel,
    card: str,
    best_card: str,
    best: Path | None,
    whole: Mapping[str, Tensor] | None = None,
) -> tuple[str, ...]:
    """Write the finished model, its tokenizer and card, then drop the checkpoints; returns the files, below `out`.

    best: the checkpoint whose model goes into `best/` with `best_card`, and whose parameters `loaded` then has, unless
    these are divided among processes: then `whole` has them gathered. The files are written aside and moved in,
    `config.json` last: a folder that has it is complete. Raises StorageError.
    """
    out = Path(config.out)
    with storing_tensors(out):
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=out))
        try:
            _write_model(temporary, loaded, card, whole)
            if best is not None:
                if whole is None:
                    load_parameters(best, loaded.model)
                else:
                    whole = whole_parameters(best)
                (temporary / BEST).mkdir()
                _write_model(temporary / BEST, loaded, best_card, whole)
            # Some writers make files that only their owner can read; a model is shared like its configuration.
            mode = (out / CONFIGURATION).stat().st_mode
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            for path in files:
                path.chmod(mode)
                with path.open("rb+") as stream:
                    os.fsync(stream.fileno())
            written = tuple(path.relative_to(temporary).as_posix() for path in files)
            shutil.rmtree(out / BEST, ignore_errors=True)
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == _FINISHED):
                if path.is_dir():
                    path.chmod(out.stat().st_mode)
                    fsync_folder(path)
                path.replace(out / path.name)
            fsync_folder(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(out / FOLDER, ignore_errors=True)
    return written


def _write_model(folder: Path, loaded: LoadedModel, card: str, whole: Mapping[str, Tensor] | None) -> None:
    with quiet_progress():
        loaded.model.save_pretrained(folder, state_dict=whole)
    loaded.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, "utf-8")
