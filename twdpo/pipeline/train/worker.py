"""One of the processes that `launch.py` starts: `python -m twdpo.pipeline.train.worker FOLDER`.

What it has to say goes into the folder: the course of the run (rank 0), the result (rank 0), or why it failed. Nothing
is printed. Not for: processes that `accelerate launch` or torchrun started; these run the command itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from twdpo.config import resolve
from twdpo.errors import TwdpoError
from twdpo.pipeline.train import TrainConfig, TrainProgress, TrainResult, train_here

CONFIGURATION, COURSE, RESULT, FAILURE = "train.yaml", "course.jsonl", "result.json", "failure-{rank}.json"
#: What a process prints, but for the first one's stderr, which is shown.
OUTPUT = "output-{rank}"

#: For the step in progress and the checkpoint after it, once nobody is there to hear of them.
_PATIENCE_SECONDS = 900.0
#: Seconds between two reports of how far a task is.
_REPORT_SECONDS = 0.1


class Course(TrainProgress):
    """Writes the course of a run, one call a line, for `replay`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: dict[str, int] = {}
        self._reported = 0.0

    def start(self, task: str, total: int | None) -> None:
        """Write."""
        self._write("start", task, total)

    def advance(self, task: str, items: int = 1) -> None:
        """Write, with others of its kind."""
        self._done[task] = self._done.get(task, 0) + items
        if time.monotonic() - self._reported > _REPORT_SECONDS:
            self._report()

    def finish(self, task: str) -> None:
        """Write."""
        self._write("finish", task)

    def record(self, metrics: Mapping[str, float]) -> None:
        """Write."""
        self._write("record", dict(metrics))

    def note(self, text: str) -> None:
        """Write."""
        self._write("note", text)

    def _write(self, *call: Any) -> None:
        self._report()
        self._lines([call])

    def _report(self) -> None:
        self._lines(("advance", task, items) for task, items in self._done.items())
        self._done, self._reported = {}, time.monotonic()

    def _lines(self, calls: Iterable[tuple[Any, ...]]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(call) + "\n" for call in calls)


def replay(course: TextIO, progress: TrainProgress) -> None:
    """Make the calls that were written since the last time."""
    while True:
        place = course.tell()
        line = course.readline()
        if not line.endswith("\n"):  # not there yet, or not yet whole
            course.seek(place)
            return
        name, *arguments = json.loads(line)
        getattr(progress, name)(*arguments)


def write_result(path: Path, result: TrainResult) -> None:
    """For `read_result`."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(result) | {"out": str(result.out)}), "utf-8")
    part.replace(path)


def read_result(path: Path) -> TrainResult:
    """What rank 0 handed back."""
    content = json.loads(path.read_text("utf-8"))
    return TrainResult(**content | {"out": Path(content["out"])})


def main(folder: Path) -> int:
    """Train as the folder's configuration says; the exit code."""
    rank = int(os.environ["RANK"])
    # Whoever started this process gets a scheduler's SIGTERM too, and hands on one Ctrl-C.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_stop_without, args=(os.getppid(),), daemon=True).start()
    try:
        config = resolve(TrainConfig, str(folder / CONFIGURATION), {})
        result = train_here(config, Course(folder / COURSE) if rank == 0 else TrainProgress())
        if rank == 0:
            write_result(folder / RESULT, result)
    except TwdpoError as error:
        failure = {"error": type(error).__name__, "message": str(error)}
        code = error.exit_code
    except BaseException as error:
        failure = {"bug": "".join(traceback.format_exception(error))}
        code = 1
    else:
        return 0
    path = folder / FAILURE.format(rank=rank)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(failure), "utf-8")
    part.replace(path)
    return code


def _stop_without(parent: int) -> None:
    """Press Ctrl-C when the process that started this one is gone, and end this one where that has no effect.

    A process that waits for one that will never answer hears no signal.
    """
    while os.getppid() == parent:
        time.sleep(1.0)
    signal.raise_signal(signal.SIGINT)
    time.sleep(_PATIENCE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Without a word from libraries that would first wait for the other processes, or complain that these are gone.
    os._exit(code)
