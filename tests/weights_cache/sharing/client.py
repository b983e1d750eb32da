"""A process of its own that pushes, pulls and trains, as the libraries read the hub's address when imported.

    python -m tests.weights_cache.sharing.client

reads calls as JSON lines, and answers each with a JSON line: its result, or the error that a person would see. Not
for: the hub itself (`tests/fixtures/hub.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.preferences.processes import environment
from twdpo.errors import TwdpoError


class Client:
    """The process, from the test's side."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, name: str, *arguments: object, token: str | None = "hf_of_me", **options: object) -> Any:
        """The result of a call; an error of twdpo comes as {"error", "kinds"}."""
        call = {"name": name, "arguments": arguments, "options": options, "token": token}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(call, default=str) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline() or f'{{"died": {self._process.wait(5)}}}')


@contextmanager
def client(home: Path, **settings: str) -> Iterator[Client]:
    """A process with these environment variables; it must print nothing of its own."""
    errors = home / "stderr"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.weights_cache.sharing.client"],
            env=environment(HF_HOME=str(home), HF_HUB_DISABLE_XET="1", **settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        with process:
            yield Client(process)
    assert errors.read_text() == ""


def _push(folder: str, repository: str, **options: Any) -> Mapping[str, Any]:
    from twdpo.preferences import Message, Pair
    from twdpo.weights_cache.sharing import push

    if example := options.get("example"):
        prompt = tuple(Message(**message) for message in example["prompt"])
        options["example"] = Pair(prompt=prompt, chosen=example["chosen"], rejected=example["rejected"])
    steps: list[tuple[int, int]] = []
    result = push(folder, repository, progress=lambda done, total: steps.append((done, total)), **options)
    return {**asdict(result), "steps": steps}


def _pull(repository: str, out: str, **options: Any) -> Mapping[str, Any]:
    from twdpo.weights_cache.pulling import pull

    steps: list[tuple[int, int]] = []
    result = pull(repository, out, progress=lambda done, total: steps.append((done, total)), **options)
    return {**asdict(result), "steps": steps}


def _load(repository: str, *, streaming: bool = False) -> list[Mapping[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(repository, split="train", streaming=streaming)
    return [dict(row) for row in loaded]


def _open_model(repository: str, *, private: bool = False) -> str:
    from twdpo.pipeline.train.publish import open_repository

    open_repository(repository, private=private)
    return "open"


def _publish(folder: str, repository: str, files: list[str]) -> str:
    from twdpo.pipeline.train.publish import publish

    return publish(Path(folder), repository, files, "A model")


def _train(**options: Any) -> Mapping[str, Any]:
    from twdpo.pipeline.train import TrainConfig, train

    return asdict(train(TrainConfig(**options)))


def _limit(size: int) -> None:
    """Let no file grow larger than `size` bytes; -1 for any size."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def main() -> None:
    """Answer calls until there are no more."""
    from twdpo.weights_cache import hub

    hub._PAUSE = 0.01
    calls = {"push": _push, "pull": _pull, "load": _load, "limit": _limit}
    calls |= {"open_model": _open_model, "publish": _publish, "train": _train}
    for line in sys.stdin:
        call = json.loads(line)
        os.environ.pop("HF_TOKEN", None)
        if call["token"]:
            os.environ["HF_TOKEN"] = call["token"]
        try:
            answer: Any = calls[call["name"]](*call["arguments"], **call["options"])
        except TwdpoError as error:
            answer = {"error": str(error), "kinds": [kind.__name__ for kind in type(error).__mro__]}
        print(json.dumps(answer, default=str), flush=True)


if __name__ == "__main__":
    main()
