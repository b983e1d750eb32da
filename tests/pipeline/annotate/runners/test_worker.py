"""What runs on a cluster's machines, without a cluster: reading, judging blocks, doing them again, errors as data."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from tests.fixtures.tiny_models import save_tiny
from tests.weights_cache.states import assert_weights_agree, state
from twdpo.errors import DataError, RecipeMismatch, UsageError
from twdpo.pipeline.annotate import AnnotateConfig, AnnotateProgress, annotate
from twdpo.pipeline.annotate.blocks import Block
from twdpo.pipeline.annotate.runners.ray import Reduced, block_size
from twdpo.pipeline.annotate.runners.ray_session import Fleet, fleet_of, session
from twdpo.pipeline.annotate.runners.worker import Job, Worker, read_blocks
from twdpo.pipeline.annotate.selection import Selection
from twdpo.weights_cache import WeightsCache, verify
from twdpo.weights_cache.counts import refresh_counts
from twdpo.weights_cache.shards import list_shards


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """20 pairs in blocks of 6, one of them twice, and a reject."""
    rows = [{"prompt": f"question {i}", "chosen": f"good answer {i}", "rejected": "bad"} for i in range(20)]
    rows += [rows[3], {"prompt": "q", "chosen": " ", "rejected": "x"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_tiny(tmp_path / "judge", "llama", layers=2, context=2048)
    config = AnnotateConfig(
        dataset=str(tmp_path / "pairs.jsonl"),
        out=str(tmp_path / "out"),
        model=str(tmp_path / "judge"),
        device="cpu",
    )
    source = Selection.of(config).describe(config)
    return Job(config=config, source=source, folder=os.getcwd(), finished=(), size=6)


def read(job: Job) -> list[bytes]:
    return [row["block"] for row in read_blocks({}, job)]


def ask(worker: Worker, *contents: bytes) -> list[dict[str, Any]]:
    batch = pa.table({"block": pa.array(contents, pa.binary())})
    return [json.loads(said) for said in worker(batch)["said"]]


def test_blocks_through_two_workers_make_what_one_run_makes(job: Job, tmp_path: Path) -> None:
    annotate(replace(job.config, out=str(tmp_path / "whole")))
    workers = [Worker(job), Worker(job)]
    reduced = Reduced(AnnotateProgress(total=22))
    contents = read(job)
    assert len(contents) == 4
    for number, content in enumerate(contents):
        [said] = ask(workers[number % 2], content)
        reduced.add(said, float(number))
        # Durable before the next: what another process sees.
        assert verify(tmp_path / "out").pairs == reduced.counts.written
    refresh_counts(tmp_path / "out")
    assert_weights_agree(tmp_path / "out", tmp_path / "whole")
    ours, whole = state(tmp_path / "out"), state(tmp_path / "whole")
    assert (ours.rejects, ours.counts, ours.names) == (whole.rejects, whole.counts, whole.names)
    counts = reduced.counts
    assert (counts.seen, counts.written, counts.duplicates, counts.rejected, counts.total) == (22, 20, 1, 1, 22)
    assert reduced.reasons == {"the chosen answer is empty": 1}


def test_a_source_without_a_model_runs_there_too(job: Job, tmp_path: Path) -> None:
    config = replace(job.config, source="position", source_options="gamma=0.9")
    annotate(replace(config, out=str(tmp_path / "whole")))
    worker, reduced = Worker(replace(job, config=config)), Reduced(AnnotateProgress(total=22))
    for number, content in enumerate(read(job)):
        [said] = ask(worker, content)
        reduced.add(said, float(number))
    assert_weights_agree(tmp_path / "out", tmp_path / "whole")
    assert (reduced.counts.written, reduced.verdicts) == (20, 0)


def test_a_reading_done_again_gives_the_same_blocks_whatever_was_finished_since(job: Job, tmp_path: Path) -> None:
    first = read(job)
    [said] = ask(Worker(job), first[0])
    assert said["counts"]["written"] == 6
    assert read(job) == first
    later = replace(job, finished=tuple(path.name for path in list_shards(tmp_path / "out" / "data")))
    blocks = [pickle.loads(content) for content in read(later)]
    assert sum(len(block.pairs) for block in blocks) == 14
    assert sum(block.cached for block in blocks) == 6


def test_a_block_done_again_skips_what_was_written_of_it(job: Job, tmp_path: Path) -> None:
    """A worker wrote half of a block and was lost; the one in its place does the rest."""
    whole = pickle.loads(read(job)[0])
    half = Block(pairs=whole.pairs[:3])
    ask(Worker(job), pickle.dumps(half))
    [said] = ask(Worker(job), pickle.dumps(whole))
    assert (said["counts"]["written"], said["counts"]["cached"]) == (3, 3)
    with WeightsCache.open(tmp_path / "out") as cache:
        assert sorted(row.example_hash for row in cache.rows()) == sorted(pair.example_hash for pair in whole.pairs)


def test_errors_travel_and_are_raised_as_themselves(job: Job, tmp_path: Path) -> None:
    contents = read(job)
    ask(Worker(job), contents[0])
    other = replace(job, config=replace(job.config, max_length=1024))
    [said] = ask(Worker(other), contents[1])
    with pytest.raises(RecipeMismatch, match="max_length: 2048 in the cache, 1024 asked for"):
        Reduced(AnnotateProgress(total=None)).add(said, 0.0)
    (tmp_path / "pairs.jsonl").write_text("{\n")
    [said] = ask(Worker(job), *read(job))
    with pytest.raises(DataError, match="line 1"):
        Reduced(AnnotateProgress(total=None)).add(said, 0.0)


def test_rates_of_several_workers_are_over_the_clock_and_peaks_add_up() -> None:
    def said(worker: str, **counts: Any) -> dict[str, Any]:
        full = {"total": None, "seen": counts.get("written", 0) + counts.get("cached", 0), **counts}
        return {"worker": worker, "counts": full, "reasons": {}, "preferred": 0, "verdicts": 0}

    reduced = Reduced(AnnotateProgress(total=100))
    reduced.add(said("a", cached=50, peak_flops=10.0), 1.0)
    reduced.add(said("a", written=8, tokens=80, judging=4.0, flops=40.0, peak_flops=10.0), 10.0)
    reduced.add(said("b", written=8, tokens=80, judging=4.0, flops=40.0, peak_flops=10.0), 14.0)
    counts = reduced.counts
    assert (counts.before, counts.seen, counts.judging, counts.peak_flops) == (50, 66, 8.0, 20.0)
    assert counts.pairs_per_second == 2.0
    assert counts.utilisation == 80.0 / 8.0 / 20.0
    assert counts.left == 34 * 8.0 / 16


def cluster(*nodes: dict[str, float]) -> Any:
    return SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": node} for node in nodes])


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([{"CPU": 8}], {}, (1, 8, 0)),
        ([{"CPU": 8}], {"workers": 2}, (2, 4, 0)),
        ([{"CPU": 3}, {"CPU": 3}], {"workers": 4}, (4, 1, 0)),
        ([{"CPU": 64, "GPU": 8}, {"CPU": 64, "GPU": 8}], {}, (16, 1, 1)),
        ([{"CPU": 64, "GPU": 8}], {"workers": 3}, (3, 1, 1)),
        ([{"CPU": 64, "GPU": 8}], {"device": "cpu", "workers": 4}, (4, 16, 0)),
        # Nothing is run: no GPU is set aside.
        ([{"CPU": 64, "GPU": 1}], {"source": "position", "workers": 8}, (8, 8, 0)),
        ([{"CPU": 64, "GPU": 1}], {"source": "shuffled", "base": "weights", "workers": 8}, (8, 8, 0)),
        ([{"CPU": 64, "GPU": 8}], {"device_map": "auto", "workers": 2}, (2, 1, 4)),
        ([{"CPU": 64, "GPU": 8}, {"CPU": 64, "GPU": 8}], {"device_map": "auto"}, (2, 1, 8)),
    ],
)
def test_workers_and_what_each_gets(
    nodes: list[dict[str, float]], options: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    fleet = fleet_of(cluster(*nodes), AnnotateConfig(dataset="demo", runner="ray", **options))
    assert (fleet.workers, fleet.cpus, fleet.gpus) == expected


@pytest.mark.parametrize(
    ("node", "options", "message"),
    [
        ({"CPU": 2}, {"workers": 3}, "--workers 3: each wants a CPU, and the Ray cluster has 2"),
        ({"CPU": 9, "GPU": 2}, {"workers": 3}, "--workers 3: each wants a GPU, and the Ray cluster has 2"),
        ({"CPU": 9, "GPU": 2}, {"device": "cuda:1"}, "--device cuda:1 names one device"),
    ],
)
def test_what_the_cluster_has_not(node: dict[str, float], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fleet_of(cluster(node), AnnotateConfig(dataset="demo", runner="ray", **options))


def test_a_cluster_that_is_not_there_is_one_line() -> None:
    def init(**_options: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nMore of it.")

    with (
        pytest.raises(UsageError, match=r"no Ray cluster can be joined or started \(Could not find any .* instance\)"),
        session(SimpleNamespace(is_initialized=lambda: False, init=init)),
    ):
        pass


def test_sizes_of_blocks() -> None:
    laptop = Fleet(workers=2, cpus=1, gpus=0, reader_cpus=0)
    gpus = Fleet(workers=8, cpus=1, gpus=1, reader_cpus=0.5)
    assert [block_size(total, laptop) for total in (10, 2177, 10**6, None)] == [8, 34, 512, 32]
    assert [block_size(total, gpus) for total in (10, 60_000, 10**7, None)] == [64, 234, 512, 256]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runner": "slurm"}, "--runner slurm is not known; choose one of local, ray"),
        ({"workers": 2}, "--workers is how many engines --runner ray starts"),
        ({"runner": "ray", "workers": 0}, "--workers 0 is too small"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AnnotateConfig(dataset="demo", **options)


def test_ray_that_is_missing_is_one_line(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"needs the package ray; install it with: pip install 'twdpo\[ray\]'"):
        annotate(replace(job.config, runner="ray"))
