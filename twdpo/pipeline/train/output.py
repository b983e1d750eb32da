"""The folder that a run writes: claiming it, and putting the finished model in place.

    trained/  config.json, model.safetensors, tokenizer files   what from_pretrained loads; only of a finished run
              adapter_config.json, adapter_model.safetensors     instead, of a run that trained an adapter
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
from twdpo.pipeline.model_files import ADAPTER_CONFIGURATION
from twdpo.pipeline.train.adapters import Policy
from twdpo.pipeline.train.checkpoint import FOLDER, last_checkpoint, load_parameters, storing_tensors, whole_parameters
from twdpo.pipeline.train.config import TrainConfig
from twdpo.pipeline.train.curves import PICTURES
from twdpo.pipeline.train.trackers import FOLDER as TRACKERS
from twdpo.weights_cache.durable import TEMPORARY_PREFIX, fsync_folder, hold, make_folder, write_file

CONFIGURATION = "train.yaml"
METRICS = "metrics.jsonl"
BEST = "best"
#: A folder with one of these is complete.
_FINISHED = ("config.json", ADAPTER_CONFIGURATION)
_OWN = (
    *_FINISHED,
    "generation_config.json",
    "model*.safetensors*",
    "adapter_model.safetensors",
    "README.md",
    METRICS,
    "eval.json",
    *PICTURES,
)


#: The output folder that this process writes to, and what holds it.
_held: dict[Path, int] = {}


def claim(config: TrainConfig) -> Path | None:
    """Make or take the output folder, and return the checkpoint to go on from, None for a fresh start.

    The folder is held until `release`. Raises UsageError where it holds a finished run or something else, or another
    run is writing to it, and StorageError.
    """
    out = Path(config.out)
    make_folder(out)
    holding = hold(out)
    if holding is None:
        raise UsageError(f"another run is writing to --out {out}; wait for it, stop it, or choose another folder")
    _held[out] = holding
    if any(out.iterdir()) and not (out / CONFIGURATION).is_file():
        raise UsageError(f"--out {out} is not empty and holds no training run; choose another folder")
    if not config.resume:
        for folder in (FOLDER, BEST, TRACKERS):
            shutil.rmtree(out / folder, ignore_errors=True)
        for pattern in _OWN:
            for path in out.glob(pattern):
                path.unlink()
    if any((out / name).is_file() for name in _FINISHED):
        raise UsageError(f"--out {out} holds a finished run; choose another folder, or pass --no-resume to replace it")
    for stray in out.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(stray, ignore_errors=True)
    return last_checkpoint(out)


def release(config: TrainConfig) -> None:
    """Let another run have the output folder; harmless where this process does not hold it."""
    if (holding := _held.pop(Path(config.out), None)) is not None:
        os.close(holding)


def save_configuration(config: TrainConfig) -> None:
    """Write the resolved configuration. Raises StorageError."""
    write_file(Path(config.out) / CONFIGURATION, to_yaml(config).encode())


def save_models(
    config: TrainConfig,
    policy: Policy,
    card: str,
    best_card: str,
    best: Path | None,
    whole: Mapping[str, Tensor] | None = None,
) -> tuple[str, ...]:
    """Write the finished model, its tokenizer and card, then drop the checkpoints; returns the files, below `out`.

    best: the checkpoint whose model goes into `best/` with `best_card`, and whose parameters `policy` then has, unless
    these are divided among processes: then `whole` has them gathered. The files are written aside and moved in, the
    configuration last: a folder that has it is complete. Raises StorageError.
    """
    out = Path(config.out)
    with storing_tensors(out):
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=out))
        try:
            policy.save(temporary, merge=config.merge_adapter, last=best is None, whole=whole)
            (temporary / "README.md").write_text(card, "utf-8")
            if best is not None:
                if whole is None:
                    load_parameters(best, policy.loaded.model)
                else:
                    whole = whole_parameters(best)
                policy.save(temporary / BEST, merge=config.merge_adapter, whole=whole)
                (temporary / BEST / "README.md").write_text(best_card, "utf-8")
            # Some writers make files that only their owner can read; a model is shared like its configuration.
            mode = (out / CONFIGURATION).stat().st_mode
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            for path in files:
                path.chmod(mode)
                with path.open("rb+") as stream:
                    os.fsync(stream.fileno())
            written = tuple(path.relative_to(temporary).as_posix() for path in files)
            shutil.rmtree(out / BEST, ignore_errors=True)
            for path in sorted(temporary.iterdir(), key=lambda path: path.name in _FINISHED):
                if path.is_dir():
                    path.chmod(out.stat().st_mode)
                    fsync_folder(path)
                path.replace(out / path.name)
            fsync_folder(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(out / FOLDER, ignore_errors=True)
    return written
