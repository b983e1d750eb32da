"""Runs of stage one that are disturbed, as a test asks for them; `faults.py` is the program that runs them.

    with Server() as server:
        (outcome,) = server.run(Job(dataset=..., out=..., events=((0.1, "kill"),)))

A run is `annotate` with a fake engine, small windows and small shards: many instants to be hit at. Not for: what must
hold afterwards (`test_faults.py`, `test_storage.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.preferences.processes import environment

ROOT = Path(__file__).resolve().parents[2]
#: Seconds after which a run counts as hung.
PATIENCE = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of stage one (or, as `task` "shuffle", the making of a row file for `out`), and what befalls it.

    `events`: (seconds after its start, what): "kill", "interrupt"; "fill" or "freeze" the file system at `mount`.
    `fault` strikes at call number `at` of `faults.CALLS`: "kill" dies inside it, "shut" makes the folders `shut`
    read-only first, "fail" lets it and all later ones fail with `number`; "full" lets `at` bytes in all be written.
    `slow` is how long a sync takes, in seconds. `limit` and `seed` choose pairs, `file_size` is RLIMIT_FSIZE, `user`
    who runs it.
    """

    dataset: str
    out: str
    task: str = "annotate"
    limit: int | None = None
    seed: int | None = None
    events: tuple[tuple[float, str], ...] = ()
    mount: str = ""
    fault: str = ""
    at: int = 0
    number: int = 0
    shut: tuple[str, ...] = ()
    slow: float = 0.0
    file_size: int | None = None
    user: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended: exit status (negative: the signal) and, unless it was killed, what it says of itself.

    `error` is the class of what it raised, `message` the text of a TwdpoError, a traceback of anything else. `calls`
    and `written` (bytes) count what it asked of the disk. `frozen`: whether a "freeze" came through.
    """

    status: int
    seconds: float
    frozen: bool = False
    error: str = ""
    message: str = ""
    calls: int = 0
    written: int = 0


class Server:
    """The program, started and asked; a context manager.

    `mounts`: it gets a name space of its own, in which it may mount. `judge`: the model to judge with, loaded once; a
    fake engine unless given. Asking raises OSError where the system does not let it do what it is asked.
    """

    def __init__(self, *, mounts: bool = False, judge: str = "") -> None:
        alone = ["unshare", "--map-root-user", "--mount"] if mounts else []
        self._process = subprocess.Popen(
            [*alone, sys.executable, "-m", "tests.weights_cache.faults", judge],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._process.communicate(timeout=PATIENCE)

    def run(self, *jobs: Job) -> list[Outcome]:
        """Run `jobs` at the same time, and wait for all."""
        return [Outcome(**outcome) for outcome in self._ask(do="run", jobs=[asdict(job) for job in jobs])]

    def mount(self, folder: Path, options: str) -> None:
        """Mount a tmpfs at `folder`, or with "remount" among `options` change the one there."""
        self._ask(do="mount", folder=str(folder), options=options)

    def unmount(self, folder: Path) -> None:
        """Let go of the tmpfs at `folder`."""
        self._ask(do="unmount", folder=str(folder))

    def copy(self, source: Path, target: Path) -> None:
        """Copy a folder of a tmpfs, which the server alone sees, to where everyone does."""
        self._ask(do="copy", source=str(source), target=str(target))

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise OSError("the server could not start") from None
        answer = json.loads(self._process.stdout.readline() or '{"failed": "the server has gone"}')
        if "failed" in answer:
            raise OSError(answer["failed"])
        return answer["done"]
