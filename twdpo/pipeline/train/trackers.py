"""Trackers: the lines of metrics.jsonl also go to TensorBoard, wandb or whatever else accelerate has a class for.

None by default: nothing leaves the machine unless a tracker that sends it was asked for. Not for: metrics.jsonl itself
(`metrics.py`) or the plot (`curves.py`).
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.tracking import (  # type: ignore[import-untyped,unused-ignore]
    LOGGER_TYPE_TO_CLASS,
    GeneralTracker,
    get_available_trackers,
)

from twdpo.errors import TrainingError, UsageError, first_line
from twdpo.pipeline.train.metrics import Record
from twdpo.weights_cache.durable import make_folder, write_file

FOLDER = "trackers"
#: What trackers that hold many runs call all of ours together.
PROJECT = "twdpo"
_RUN_ID = "run-id"
#: Packages whose name is not the tracker's.
_PACKAGES = {"comet_ml": "comet-ml"}
#: Columns of a record that are no curve of their own.
_POSITION = ("step", "epoch")


def parse_trackers(text: str) -> tuple[str, ...]:
    """The trackers that `--tracker` names. Raises UsageError where one is unknown or its package is not installed."""
    known = sorted(map(str, LOGGER_TYPE_TO_CLASS))
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip() not in ("", "none")))
    for name in names:
        if name not in known:
            raise UsageError(f"--tracker {name} is not known; choose none, {', '.join(known)}")
        if name not in map(str, get_available_trackers()):
            package = _PACKAGES.get(name, name)
            raise UsageError(f"--tracker {name} needs the package {package}; install it with: pip install {package}")
    return names


class Trackers:
    """The trackers of one run, as a `with` block of the main process: started by `start`, ended whatever happens.

    names: as `parse_trackers` gives them. out: the run's folder, below which they keep what they keep on disk. more:
    trackers made by the caller. note: told, once each, of trackers that fail on the way: the run goes on without them.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        out: Path,
        run_name: str,
        note: Callable[[str], None],
        more: Iterable[GeneralTracker] = (),
    ) -> None:
        self._names, self._folder, self._run_name = names, out / FOLDER, run_name
        self._note, self._more, self._running = note, tuple(more), list[GeneralTracker]()
        self._logged: frozenset[tuple[float, bool]] = frozenset()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self._running[:]:
            self._call(tracker, tracker.finish)
        self._running.clear()

    def start(self, settings: Mapping[str, object], logged: Sequence[Record] | None) -> None:
        """Start them all. logged: the records that an interrupted run had written, None for a run from its beginning.

        Raises TrainingError where a tracker cannot start.
        """
        if logged is None:
            shutil.rmtree(self._folder, ignore_errors=True)
        # What the interrupted run did after its last checkpoint is done again, to the same figures.
        self._logged = frozenset(map(_key, logged or ()))
        if self._names:
            make_folder(self._folder)
        flat = {name: value for name, value in settings.items() if isinstance(value, bool | int | float | str)}
        made = [LOGGER_TYPE_TO_CLASS[name](*self._place(name), **self._arguments(name)) for name in self._names]
        for tracker in (*made, *self._more):
            try:
                tracker.start()
                # TensorBoard makes a run of its own of every table of settings.
                if logged is None or tracker.name != "tensorboard":
                    tracker.store_init_configuration(flat)
            except Exception as error:
                raise TrainingError(
                    f"the tracker {tracker.name} cannot start ({first_line(error)}); mend that, or use --tracker none"
                ) from error
            self._running.append(tracker)

    def log(self, record: Record) -> None:
        """Send a record, unless the run that was interrupted sent it."""
        if self._running and _key(record) not in self._logged:
            values = {_curve(name): value for name, value in record.items() if name not in _POSITION}
            for tracker in self._running[:]:
                self._call(tracker, partial(tracker.log, values, step=int(record["step"])))

    def _call(self, tracker: GeneralTracker, call: Callable[[], object]) -> None:
        """Hours of training are worth more than a curve on a server that is down."""
        try:
            call()
        except Exception as error:
            self._running.remove(tracker)
            self._note(f"the tracker {tracker.name} failed and gets no more ({first_line(error)})")

    def _place(self, name: str) -> tuple[str, ...]:
        """A tracker's positional arguments: with a folder of its own it is named by run, else by project."""
        if name == "tensorboard":
            return self._run_name.replace("/", "-").lstrip(".") or PROJECT, str(self._folder)
        needs_folder = LOGGER_TYPE_TO_CLASS[name].requires_logging_directory
        return (PROJECT, str(self._folder)) if needs_folder else (PROJECT,)

    def _arguments(self, name: str) -> dict[str, Any]:
        if name == "wandb":
            return {"name": self._run_name, "dir": str(self._folder), "id": self._run_id(), "resume": "allow"}
        if name == "trackio":
            return {"name": self._run_name, "resume": "allow"}
        return {"run_name": self._run_name} if name == "mlflow" else {}

    def _run_id(self) -> str:
        """A name for this run that no other has, and that stays when it is gone on with."""
        path = self._folder / _RUN_ID
        if not path.exists():
            write_file(path, secrets.token_hex(8).encode())
        return path.read_text("utf-8")


def _key(record: Record) -> tuple[float, bool]:
    return record.get("step", 0), "eval_loss" in record


def _curve(name: str) -> str:
    """A metric as transformers calls it: `train/loss`, `eval/loss`."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
