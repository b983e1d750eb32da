"""The folder that a run writes: claiming it, and the finished model with its card.

    trained/  config.json, model.safetensors, tokenizer files   what from_pretrained loads; only of a finished run
              adapter_config.json, adapter_model.safetensors     instead, of a run that trained an adapter
              train.yaml  README.md  metrics.jsonl               the resolved configuration, a card, the curves
              checkpoints/                                       while a run goes on

Not for: checkpoints (`checkpoint.py`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twdpo import __version__
from twdpo.config import to_yaml
from twdpo.errors import UsageError
from twdpo.pipeline.models import ADAPTER_CONFIGURATION
from twdpo.pipeline.train.adapters import Policy
from twdpo.pipeline.train.checkpoint import FOLDER, last_checkpoint, storing_tensors
from twdpo.pipeline.train.config import TrainConfig
from twdpo.pipeline.train.data import Examples
from twdpo.pipeline.train.metrics import NAMES, Record
from twdpo.weights_cache import Manifest
from twdpo.weights_cache.durable import TEMPORARY_PREFIX, fsync_folder, make_folder, write_file

CONFIGURATION = "train.yaml"
METRICS = "metrics.jsonl"
#: A folder with one of these is complete.
_FINISHED = ("config.json", ADAPTER_CONFIGURATION)
_OWN = (
    *_FINISHED,
    "generation_config.json",
    "model*.safetensors*",
    "adapter_model.safetensors",
    "README.md",
    METRICS,
)


def claim(config: TrainConfig) -> Path | None:
    """Make or take the output folder, and return the checkpoint to go on from, None for a fresh start.

    Raises UsageError where the folder holds a finished run or something else, and StorageError.
    """
    out = Path(config.out)
    make_folder(out)
    if any(out.iterdir()) and not (out / CONFIGURATION).is_file():
        raise UsageError(f"--out {out} is not empty and holds no training run; choose another folder")
    if not config.resume:
        shutil.rmtree(out / FOLDER, ignore_errors=True)
        for pattern in _OWN:
            for path in out.glob(pattern):
                path.unlink()
    if any((out / name).is_file() for name in _FINISHED):
        raise UsageError(f"--out {out} holds a finished run; choose another folder, or pass --no-resume to replace it")
    for stray in out.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(stray, ignore_errors=True)
    return last_checkpoint(out)


def save_configuration(config: TrainConfig) -> None:
    """Write the resolved configuration. Raises StorageError."""
    write_file(Path(config.out) / CONFIGURATION, to_yaml(config).encode())


def save_model(config: TrainConfig, policy: Policy, card: str) -> None:
    """Write the finished model, its tokenizer and card, and drop the checkpoints. Raises StorageError.

    The files are written aside and moved in, the configuration last: a folder that has it is complete.
    """
    out = Path(config.out)
    with storing_tensors(out):
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=out))
        try:
            policy.save(temporary, merge=config.merge_adapter)
            (temporary / "README.md").write_text(card, "utf-8")
            # Some writers make files that only their owner can read; a model is shared like its configuration.
            mode = (out / CONFIGURATION).stat().st_mode
            for path in sorted(temporary.iterdir(), key=lambda path: path.name in _FINISHED):
                path.chmod(mode)
                with path.open("rb+") as stream:
                    os.fsync(stream.fileno())
                path.replace(out / path.name)
            fsync_folder(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(out / FOLDER, ignore_errors=True)


def model_card(
    config: TrainConfig,
    manifest: Manifest,
    examples: Examples,
    steps: int,
    before: Mapping[str, float],
    after: Mapping[str, float],
    last: Record,
) -> str:
    """The README of a trained model: what it is, data, weights, settings, figures."""
    import yaml

    header: dict[str, Any] = {
        "library_name": "peft" if config.lora_rank and not config.merge_adapter else "transformers",
        "base_model": config.model,
        "tags": ["twdpo", "dpo", "preference-optimization"],
    }
    recipe = manifest.recipe
    data = config.dataset or ", ".join(sorted({str(source.get("name")) for source in manifest.sources})) or "the cache"
    lines = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
        f"# {Path(config.out).name}",
        f"{config.model}, trained by token-weighted DPO (twdpo {__version__}).",
        f"- data: {data}; {len(examples.train)} pairs trained on, {len(examples.heldout)} held out",
        f"- token weights: {recipe.source}, judge {recipe.judge_model}, recipe {manifest.fingerprint}, "
        f"source {config.attn_source}, sink fix {'on' if config.sink_fix else 'off'}, "
        f"uncovered tokens {config.uncovered}, uniform mix {config.uniform_mix:g}",
        f"- {steps} steps of {config.batch_size} pairs, beta {config.beta:g}, learning rate {config.learning_rate:g} "
        f"({config.scheduler}, warm-up {config.warmup_ratio:g}), {config.dtype}, max length {config.max_length}; "
        f"all settings in {CONFIGURATION}, all figures in {METRICS}",
        "## Figures",
        _table(before, after, last),
    ]
    return "\n\n".join(lines[:3]) + "\n\n" + "\n".join(lines[3:6]) + "\n\n" + "\n\n".join(lines[6:]) + "\n"


def _table(before: Mapping[str, float], after: Mapping[str, float], last: Record) -> str:
    rows = ["| metric | last training step | held out, before | held out, after |", "|---|---|---|---|"]
    for name in NAMES:
        cells = (last.get(name), before.get(f"eval_{name}"), after.get(f"eval_{name}"))
        rows.append(f"| {name} | " + " | ".join("–" if cell is None else f"{cell:.4g}" for cell in cells) + " |")
    return "\n".join(rows)
