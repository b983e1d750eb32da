"""The program that forks disturbed runs of stage one: it imports everything once, so that hundreds cost no start.

It answers JSON lines; `fault_server.Server` starts and asks it. Not for: deciding what is to happen to a run.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.weights_cache.fault_server import PATIENCE, Job, Outcome

SHARD_ROWS = 5
WINDOW = 8
#: Judge tokens; some of the pairs are longer.
MAX_LENGTH = 640
#: Calls that change what is on disk.
CALLS = ("open", "mkdir", "write", "ftruncate", "fsync", "replace", "unlink")
#: Those that a full disk still allows.
_FREEING = ("ftruncate", "unlink")
_SIGNALS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT}


class Disk:
    """Stands between a run and its disk: counts the calls, and lets the job's fault strike."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in CALLS}
        self.calls = self.written = 0

    def __enter__(self) -> Self:
        for name in CALLS:
            setattr(os, name, self._standing_in(name))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)

    def _standing_in(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name != "open" or (arguments[1] & os.O_CREAT and not os.path.exists(arguments[0])):
                self.calls += 1
                self._strike(name, arguments)
            if name == "write":
                return self._write(*arguments)
            if name == "fsync":
                time.sleep(self._job.slow)
            return self._real[name](*arguments, **options)

        return call

    def _strike(self, name: str, arguments: Sequence[Any]) -> None:
        job, reached = self._job, self.calls == self._job.at
        if job.fault == "kill" and reached:
            if name == "write":
                self._real["write"](arguments[0], arguments[1][: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        elif job.fault == "shut" and reached:
            for folder in job.shut:
                with suppress(FileNotFoundError):
                    os.chmod(folder, 0o555)
        spared = job.number in (errno.ENOSPC, errno.EDQUOT) and name in _FREEING
        if job.fault == "fail" and self.calls >= job.at and not spared:
            raise OSError(job.number, os.strerror(job.number))

    def _write(self, descriptor: int, content: memoryview) -> int:
        if self._job.fault == "full":
            content = content[: self._job.at - self.written]
            if not len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = int(self._real["write"](descriptor, content))
        self.written += done
        return done


def shrink(shard_rows: int, window: int) -> None:
    """Let every `annotate` of this process judge `window` pairs at a time and write shards of `shard_rows`."""
    from twdpo.pipeline.annotate import opening, run
    from twdpo.weights_cache import CacheWriter

    class SmallShards(CacheWriter):
        @classmethod
        def open(cls, *arguments: Any, **options: Any) -> Self:
            return super().open(*arguments, shard_rows=shard_rows, **options)

    opening.CacheWriter, run.WINDOW = SmallShards, window  # type: ignore[misc]


class _Run:
    """A forked run."""

    def __init__(self, job: Job, pid: int, pipe: int) -> None:
        self._job, self._pid, self._pipe = job, pid, pipe
        self._started = time.monotonic()
        self._events = [*job.events, (PATIENCE, "kill")]
        self._frozen = False
        self.outcome: Outcome | None = None

    def step(self) -> None:
        """Let what is due happen; take the outcome where the run has ended."""
        seconds = time.monotonic() - self._started
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid:
            with open(self._pipe, "rb") as pipe:
                said = json.loads(pipe.read() or "{}")
            code = os.waitstatus_to_exitcode(status)
            self.outcome = Outcome(status=code, seconds=seconds, frozen=self._frozen, **said)
            return
        for event in [event for event in self._events if event[0] <= seconds]:
            if self._happen(event[1]):
                self._events.remove(event)

    def _happen(self, what: str) -> bool:
        if what in _SIGNALS:
            os.kill(self._pid, _SIGNALS[what])
        elif what == "fill":
            _fill(Path(self._job.mount) / "filler")
        else:
            # Refused while a file is open for writing there; tried again at the next step.
            with suppress(OSError):
                _mount(self._job.mount, "remount,ro")
                self._frozen = True
            return self._frozen
        return True


class _Program:
    """What the forked runs share: an engine, a tokenizer, and everything imported."""

    def __init__(self, judge: str) -> None:
        shrink(2, 2) if judge else shrink(SHARD_ROWS, WINDOW)
        self._engine, self._tokenizer = _engine(judge)
        self._import_the_rest()

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        runs = [self._fork(job) for job in jobs]
        while left := [run for run in runs if run.outcome is None]:
            for run in left:
                run.step()
            time.sleep(0.0005)
        return [run.outcome for run in runs if run.outcome]

    def _fork(self, job: Job) -> _Run:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                said, status = self._do(job)
                os.write(writing, json.dumps(said).encode())
            finally:
                os._exit(status)
        os.close(writing)
        return _Run(job, pid, reading)

    def _import_the_rest(self) -> None:
        """Import what a run imports on its way, so that no fork spends time on it, or lacks the right to."""
        reading, writing = os.pipe()
        if os.fork() == 0:
            with tempfile.TemporaryDirectory() as folder:
                self._do(Job(dataset="demo", out=folder, limit=1))
            os.write(writing, " ".join(sys.modules).encode())
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            names = pipe.read().decode().split()
        os.wait()
        for name in names:
            with suppress(ImportError):
                import_module(name)

    def _do(self, job: Job) -> tuple[dict[str, Any], int]:
        from twdpo.errors import TwdpoError

        # Ignored where the tests run in the background of a shell.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if job.user is not None:
            os.setgroups([])
            os.setgid(job.user)
            os.setuid(job.user)
        if job.file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job.file_size, job.file_size))
        error, message, status = "", "", 0
        with Disk(job) as disk:
            try:
                self._task(job)
            except TwdpoError as raised:
                error, message, status = type(raised).__name__, str(raised), 1
            except BaseException as raised:
                error, message, status = type(raised).__name__, traceback.format_exc(), 70
        return {"error": error, "message": message, "calls": disk.calls, "written": disk.written}, status

    def _task(self, job: Job) -> None:
        from twdpo.pipeline.annotate import AnnotateConfig, annotate
        from twdpo.weights_cache import WeightsCache

        if job.task == "shuffle":
            with WeightsCache.open(job.out) as cache:
                cache.prepare_shuffled()
            return
        config = AnnotateConfig(dataset=job.dataset, out=job.out, limit=job.limit, seed=job.seed, max_length=MAX_LENGTH)
        annotate(config, engine=self._engine, tokenizer=self._tokenizer)


def _engine(judge: str) -> tuple[Any, Any]:
    if not judge:
        from tests.fixtures.tiny_models import tiny_tokenizer
        from twdpo.pipeline.annotate.engines.fake import FakeEngine

        return FakeEngine(), tiny_tokenizer()
    import torch

    from twdpo.pipeline.annotate.engines.transformers import TransformersEngine
    from twdpo.pipeline.models import load_model

    # One thread, so that a fork takes no pool of threads along.
    torch.set_num_threads(1)
    loaded = load_model(judge, dtype="float32", device="cpu")
    # One prompt at a time: which prompts share a batch would show in the last bits.
    return TransformersEngine(loaded.model, batch_size=1), loaded.tokenizer


def _fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def _mount(folder: str, options: str) -> None:
    _command("mount", "-t", "tmpfs", "-o", options, "tmpfs", folder)


def _command(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(" ".join(done.stderr.split()))


def _answer(program: _Program, request: Mapping[str, Any]) -> Any:
    match request["do"]:
        case "run":
            return [asdict(outcome) for outcome in program.run([Job(**job) for job in request["jobs"]])]
        case "mount":
            _mount(request["folder"], request["options"])
        case "unmount":
            _command("umount", request["folder"])
        case "copy":
            shutil.copytree(request["source"], request["target"])
    return None


def main() -> None:
    """Answer one JSON request a line with one JSON line, until there is none."""
    program = _Program(sys.argv[1])
    for line in sys.stdin:
        try:
            print(json.dumps({"done": _answer(program, json.loads(line))}), flush=True)
        except OSError as error:
            print(json.dumps({"failed": str(error)}), flush=True)


if __name__ == "__main__":
    main()
