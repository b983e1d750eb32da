"""Checkpoints: parameters, optimizer, random state and position, whole or not there at all.

Each is a folder written under a temporary name and renamed when it is complete. Tensors are in safetensors files, the
rest in JSON: nothing is unpickled. Of a model with frozen parameters only the others are kept. Not for: which
checkpoints are kept (`retention.py`), the finished model (`output.py`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from twdpo.errors import TrainingError
from twdpo.pipeline.train.config import FREE_ON_RESUME, flag
from twdpo.pipeline.train.sharding import Whole, divided, is_sharded, put_parameters
from twdpo.weights_cache.durable import TEMPORARY_PREFIX, fsync_folder, storing

FOLDER = "checkpoints"
_FORMAT = 1
_MODEL, _OPTIMIZER, _SETTINGS, _STATE = "model.safetensors", "optimizer.safetensors", "optimizer.json", "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a run stands, and what it must still be to go on.

    step: optimizer steps done. window: sums and pairs of the log line in progress. config: the resolved
    configuration. data: a digest of the training examples and their weights. feed: where the feed of pairs stands.
    """

    step: int
    window: Mapping[str, Any]
    config: Mapping[str, Any]
    data: str
    feed: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(
    out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, position: Position, whole: Whole | None = None
) -> Path:
    """Write a checkpoint; `whole` is what is divided among processes, gathered. Raises StorageError.

    One of the same step is of this very run, since a run that starts over removes them all: it stays as it is, as to
    replace it would leave a moment without.
    """
    folder = out / FOLDER
    target = folder / f"step-{position.step:08d}"
    if (target / _STATE).is_file():
        return target
    with storing_tensors(target):
        folder.mkdir(exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=folder))
        try:
            _write(temporary, model, optimizer, position, whole)
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        fsync_folder(folder)
    return target


def last_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint; what a crash left half-written is removed."""
    for stray in (out / FOLDER).glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(stray, ignore_errors=True)
    found = complete_checkpoints(out)
    return found[max(found)] if found else None


def complete_checkpoints(out: Path) -> dict[int, Path]:
    """Every complete checkpoint by its step."""
    folders = (path for path in (out / FOLDER).glob("step-*") if (path / _STATE).is_file())
    return {int(path.name.removeprefix("step-")): path for path in folders}


def read_position(checkpoint: Path) -> Position:
    """A checkpoint's position. Raises TrainingError where it is damaged or of another format."""
    try:
        content = json.loads((checkpoint / _STATE).read_text("utf-8"))
        if content.pop("format") != _FORMAT:
            raise TrainingError(f"{checkpoint} was written by another version; pass --no-resume to start over")
        return Position(**content)
    except (OSError, ValueError, KeyError, TypeError):
        raise TrainingError(f"{checkpoint} is damaged; delete that folder to go on from the one before") from None


def refuse_changes(checkpoint: Path, found: Position, config: Mapping[str, Any], data: str) -> None:
    """Raise TrainingError naming what differs between a checkpoint's run and this one."""
    names = [name for name in config if name not in FREE_ON_RESUME and found.config.get(name) != config[name]]
    differences = [f"{flag(name)} {found.config.get(name)} there, {config[name]} asked for" for name in names]
    if not differences and found.data != data:
        differences = ["the pairs or their weights have changed"]
    if differences:
        raise TrainingError(
            f"{checkpoint} is of another run ({'; '.join(differences)}); "
            "pass --no-resume to start over, or another --out"
        )


def load_checkpoint(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's parameters, optimizer state and random state in place. Raises TrainingError."""
    load_parameters(checkpoint, model)
    with _reading(checkpoint):
        tensors = load_file(checkpoint / _OPTIMIZER)
        content = json.loads((checkpoint / _SETTINGS).read_text("utf-8"))
        state = content["state"]
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            if kind == "optimizer":
                number, *outer, field = name.split("/")
                entry = state.setdefault(number, {})
                for part in outer:
                    entry = entry.setdefault(part, {})
                entry[field] = tensor
        groups = content["param_groups"]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        entries = {
            int(n): {
                name: divided(v, parameters[int(n)]) if isinstance(v, torch.Tensor) else v for name, v in s.items()
            }
            for n, s in state.items()
        }
        optimizer.load_state_dict({"state": entries, "param_groups": groups})
    torch.set_rng_state(tensors["rng/cpu"])
    if torch.cuda.is_available() and "rng/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng/cuda"])


def load_parameters(checkpoint: Path, model: nn.Module) -> None:
    """Put a checkpoint's parameters in place. Raises TrainingError."""
    with _reading(checkpoint):
        if is_sharded(model):
            put_parameters(model, load_file(checkpoint / _MODEL))
        else:
            _load_parameters(model, checkpoint / _MODEL)


def whole_parameters(checkpoint: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's parameters by themselves. Raises TrainingError."""
    with _reading(checkpoint):
        return load_file(checkpoint / _MODEL)


@contextmanager
def _reading(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise TrainingError(
            f"{checkpoint} is damaged ({str(error).splitlines()[0][:200]}); "
            "delete that folder to go on from the one before"
        ) from None


@contextmanager
def storing_tensors(path: Path) -> Iterator[None]:
    """As `storing`, also for what safetensors raises when a write fails."""
    with storing(path):
        try:
            yield
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _write(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, position: Position, whole: Whole | None
) -> None:
    if whole is None:
        _save_parameters(model, folder / _MODEL)
    else:
        save_file(dict(whole.parameters), str(folder / _MODEL))
    state = optimizer.state_dict() if whole is None else whole.optimizer
    tensors = {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    plain = {str(number): _split(entry, f"optimizer/{number}", tensors) for number, entry in state["state"].items()}
    save_file(tensors, str(folder / _OPTIMIZER))
    _write_json(folder / _SETTINGS, {"state": plain, "param_groups": state["param_groups"]})
    content = {name: getattr(position, name) for name in ("step", "window", "config", "data", "feed")}
    _write_json(folder / _STATE, {"format": _FORMAT, **content})
    for file in folder.iterdir():
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())
    fsync_folder(folder)


def _split(entry: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What of an optimizer's entry is no tensor; its tensors go to `tensors`. bitsandbytes nests entries."""
    plain: dict[str, Any] = {}
    for name, value in entry.items():
        if isinstance(value, Tensor):
            # bitsandbytes' entries share their quantization maps, which safetensors refuses.
            value = value.clone() if name.startswith("qmap") else value
            tensors[f"{prefix}/{name}"] = value.detach().contiguous()
        elif isinstance(value, Mapping):
            plain[name] = _split(value, f"{prefix}/{name}", tensors)
        else:
            plain[name] = value
    return plain


def _trained(model: nn.Module) -> dict[str, Tensor] | None:
    """The parameters that are trained, or None where none is frozen."""
    parameters = dict(model.named_parameters())
    trained = {name: parameter.detach() for name, parameter in parameters.items() if parameter.requires_grad}
    return trained if len(trained) < len(parameters) else None


def _save_parameters(model: nn.Module, path: Path) -> None:
    trained = _trained(model)
    if trained is None:
        save_model(model, str(path))
    else:
        save_file(trained, str(path))


def _load_parameters(model: nn.Module, path: Path) -> None:
    """Put them in place. Raises RuntimeError where names or shapes differ, as safetensors' own `load_model` does."""
    trained = _trained(model)
    if trained is None:
        load_model(model, path)
        return
    found = load_file(path)
    if found.keys() != trained.keys():
        raise RuntimeError("other parameters are trained")
    for name, parameter in trained.items():
        parameter.copy_(found[name])


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), "utf-8")
