"""Questions from the hub through the real huggingface_hub, against a small hub on this machine, and one that is gone.

In processes of their own, since the library reads the hub's address when it is imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.benchmarks.samples import alpaca_rows, arena_rows, mt_bench_rows
from tests.fixtures.hub import Hub
from tests.preferences.processes import environment
from twdpo.errors import HubUnavailable
from twdpo.evaluate.benchmarks.hub import PLACES, find_questions
from twdpo.evaluate.benchmarks.questions import OFFICIAL

SCRIPT = """
import json, sys
from twdpo.errors import HubUnavailable, TwdpoError
from twdpo.evaluate.benchmarks.hub import find_questions
from twdpo.evaluate.benchmarks.questions import read_questions
for benchmark, version in json.loads(sys.argv[1]):
    try:
        found = read_questions(find_questions(benchmark, version), benchmark)
        result = {"version": found.version, "count": len(found.questions), "first": found.questions[4].turns}
    except TwdpoError as error:
        result = {"error": str(error), "unavailable": isinstance(error, HubUnavailable)}
    print(json.dumps(result))
"""
ALL = list(PLACES)


def ask(home: Path, **settings: str) -> list[dict[str, Any]]:
    """What each benchmark's questions give in one new process, which must write nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(ALL)],
        env=environment(HF_HOME=str(home), **settings),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return [json.loads(line) for line in done.stdout.splitlines()]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_questions_come_from_where_their_authors_put_them(tmp_path: Path) -> None:
    hub = Hub()
    hub.add("tatsu-lab/alpaca_eval", {PLACES["alpaca_eval", ""][2]: json.dumps(alpaca_rows()).encode()})
    hub.add("lmsys/mt-bench", {PLACES["mt_bench", ""][2]: lines(mt_bench_rows())})
    arena = {f"data/arena-hard-{v}/question.jsonl": lines(arena_rows(v)) for v in ("v0.1", "v2.0")}
    hub.add("lmarena-ai/arena-hard-auto", arena)
    with hub.serve() as endpoint:
        online = ask(tmp_path, HF_ENDPOINT=endpoint)
    assert [(found["version"], found["count"]) for found in online] == [(key[1], OFFICIAL[key]) for key in ALL]
    assert online[0]["first"] == ["emoji 🦊 and zero\u200dwidth 4"]
    # What was downloaded serves where the hub is gone.
    assert ask(tmp_path, HF_ENDPOINT="http://127.0.0.1:9") == online


def test_a_hub_without_them_and_a_hub_that_is_gone_are_told(tmp_path: Path) -> None:
    hub = Hub()
    hub.add("lmsys/mt-bench", {"README.md": b""})
    with hub.serve() as endpoint:
        missing = ask(tmp_path, HF_ENDPOINT=endpoint)
    started = time.monotonic()
    gone = ask(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert time.monotonic() - started < 100
    for key, there, nowhere in zip(ALL, missing, gone, strict=True):
        assert there["unavailable"]
        assert nowhere["unavailable"]
        assert f"{PLACES[key][0]} on the hub has no {PLACES[key][2]} that you may read" in there["error"]
        assert f"cannot get {PLACES[key][2]} of the {PLACES[key][1]} {PLACES[key][0]}" in nowhere["error"]
        for message in (there["error"], nowhere["error"]):
            assert message.endswith("--questions")
            assert "\n" not in message


def test_a_checkout_of_fastchat_serves_mt_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "fastchat/llm_judge/data/mt_bench/question.jsonl"
    file.parent.mkdir(parents=True)
    (tmp_path / "fastchat/__init__.py").touch()
    file.write_bytes(lines(mt_bench_rows()))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_questions("mt_bench", "") == file


def test_the_legacy_questions_are_not_on_the_hub() -> None:
    with pytest.raises(HubUnavailable, match="pass data/arena-hard-v0.1/question.jsonl of it with --questions"):
        find_questions("arena_hard", "legacy")
