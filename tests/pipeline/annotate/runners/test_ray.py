"""Stage one on a real Ray cluster of this machine: two workers make what one run makes, also when one is killed."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from tests.fixtures.tiny_models import save_tiny
from tests.preferences.processes import environment
from tests.weights_cache.states import assert_weights_agree, strays
from twdpo.pipeline.annotate import AnnotateConfig, AnnotateProgress, AnnotateResult, annotate
from twdpo.weights_cache import Manifest, read_rejects, verify

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'twdpo[ray]'")

ROOT = Path(__file__).resolve().parents[4]
PAIRS = 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of two CPUs, for all tests here."""
    from twdpo.pipeline.annotate.runners.ray_session import import_ray

    ray = import_ray()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ray")
    rows = [{"prompt": f"question {i}", "chosen": f"good answer {i}", "rejected": "bad"} for i in range(PAIRS)]
    rows += [rows[3], {"prompt": "q", "chosen": " ", "rejected": "x"}]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_tiny(folder / "judge", "llama", layers=2, context=2048)
    return {"dataset": str(folder / "pairs.jsonl"), "model": str(folder / "judge"), "device": "cpu"}


@pytest.fixture(scope="module")
def whole(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AnnotateResult]:
    """A run of this process alone."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, annotate(AnnotateConfig(**options, out=str(out)))


def assert_equal(out: Path, expected: Path) -> None:
    """The same pairs, each once, with the same weights, out of the same data set."""
    assert (verify(out).problems, strays(out)) == ((), [])
    keys = Counter(key for path in (out / "data").iterdir() for key in pq.read_table(path)["example_hash"].to_pylist())
    assert (len(keys), set(keys.values())) == (PAIRS, {1})
    assert Manifest.load(out).sources == Manifest.load(expected).sources
    assert [reject.line() for reject in read_rejects(out)] == [reject.line() for reject in read_rejects(expected)]
    assert_weights_agree(out, expected)


def test_two_workers_make_what_one_run_makes(
    cluster: None, options: dict[str, Any], whole: tuple[Path, AnnotateResult], tmp_path: Path
) -> None:
    shown: list[AnnotateProgress] = []
    config = AnnotateConfig(**options, out=str(tmp_path / "out"), runner="ray", workers=2)
    result = annotate(config, on_progress=shown.append)
    expected_out, expected = whole
    assert_equal(tmp_path / "out", expected_out)
    assert Manifest.load(tmp_path / "out").counts["pairs"] == PAIRS
    for name in ("total", "seen", "written", "duplicates", "rejected", "truncated", "tokens"):
        assert getattr(result.counts, name) == getattr(expected.counts, name), name
    assert (result.layers, result.reasons) == (expected.layers, expected.reasons)
    assert result.judge_accuracy == pytest.approx(expected.judge_accuracy)
    assert len(shown) > 4
    assert [p.seen for p in shown] == sorted(p.seen for p in shown)
    assert all(p.seen == p.written + p.cached + p.duplicates + p.rejected for p in shown)


def test_a_killed_worker_loses_nothing_and_doubles_nothing(
    cluster: None, options: dict[str, Any], whole: tuple[Path, AnnotateResult], tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(progress: AnnotateProgress) -> None:
        if not killed:
            worker = workers()[0]
            worker.kill()
            killed.append(worker.pid)

    config = AnnotateConfig(**options, out=str(tmp_path / "out"), runner="ray", workers=2)
    counts = annotate(config, on_progress=kill).counts
    assert killed
    assert counts.written + counts.cached == PAIRS
    assert counts.seen == PAIRS + 2
    assert_equal(tmp_path / "out", whole[0])


def workers() -> list[psutil.Process]:
    """The processes that hold engines, which Ray names after what they do."""
    mine = psutil.Process().children(recursive=True)
    return [process for process in mine if "MapWorker(MapBatches(Worker))" in " ".join(process.cmdline())]


@pytest.mark.slow
def test_the_command_stopped_and_typed_again(options: dict[str, Any], tmp_path: Path) -> None:
    """SIGTERM, which Ray takes for itself unless told otherwise: one line, and what finished blocks hold is kept."""
    rows = [{"prompt": f"question {i}", "chosen": f"good answer {i}", "rejected": "bad"} for i in range(1000)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = options | {"dataset": str(tmp_path / "pairs.jsonl"), "out": str(tmp_path / "out")}
    arguments = [part for name, value in more.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "twdpo", "annotate", *arguments, "--runner", "ray"]

    def start(*added: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *added],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(HF_HUB_OFFLINE="1", RAY_ADDRESS="local"),
        )

    process = start()
    while not list((tmp_path / "out").glob("data/*.parquet")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    said = re.search(r"^twdpo: stopped; (\d+) pairs of this run are kept in .*: run the same", errors, re.MULTILINE)
    assert said, errors
    kept = verify(tmp_path / "out")
    assert kept.problems == ()
    assert int(said[1]) <= kept.pairs < 1000
    process = start("--limit", "200")
    shown, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert re.search(r"in the cache before\s+[1-9]", shown), shown
    # Only lines of progress: Ray keeps quiet.
    assert [line for line in errors.splitlines() if " pairs" not in line] == []
