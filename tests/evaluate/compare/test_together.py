"""Processes that share a comparison: none does what another does, and none is in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.compare.world import attention, settings
from twdpo.errors import UsageError
from twdpo.evaluate.compare import CompareConfig, Comparison, Watch, compare
from twdpo.evaluate.compare.runs import RunResult
from twdpo.evaluate.compare.together import claimed, joined
from twdpo.results import compare_rows
from twdpo.weights_cache.durable import TEMPORARY_PREFIX


def test_several_processes_share_the_runs(world: Path, done: Comparison) -> None:
    """The second one comes while the first is between two runs, and leaves it nothing to do."""
    config = CompareConfig(**settings(world, out=str(world / "shared"), weights=str(attention(world))))
    others: list[Comparison] = []

    class Joined(Watch):
        seen = 0

        def ran(self, result: RunResult) -> None:
            self.seen += 1
            if self.seen == 2:
                others.append(compare(config))

    watch = Joined()
    first = compare(config, watch)
    assert [(each.executed, each.elsewhere) for each in (first, *others)] == [(2, 0), (4, 0)]
    assert watch.seen == 6
    for path in (world / "comparison" / "runs").rglob("run.json"):
        same = RunResult.load(world / "shared" / path.relative_to(world / "comparison"))
        np.testing.assert_array_equal(same.figures.margins, RunResult.load(path).figures.margins)


def test_a_run_that_another_process_is_at_is_left_to_it(world: Path, done: Comparison) -> None:
    config = CompareConfig(**settings(world, out=str(world / "held"), weights=str(attention(world)), betas=(0.1,)))
    folder = world / "held" / "runs" / "attention" / "beta-0.1" / "seed-1"
    with claimed(folder) as mine:
        assert mine
        (world / "held" / "settings.yaml").touch()
        left = compare(config)
        assert (left.executed, left.elsewhere, left.seeds, left.files) == (2, 1, (), ())
        assert "1 runs; the last process writes the report" in compare_rows(left)["elsewhere"]
    assert (compare(config).executed, compare(config).elsewhere) == (1, 0)
    assert (world / "held" / "comparison.md").is_file()


def test_another_comparison_in_the_same_folder_has_to_wait(world: Path, done: Comparison) -> None:
    with joined(CompareConfig(**settings(world))), pytest.raises(UsageError, match="with other settings is writing to"):
        compare(CompareConfig(**settings(world, resamples=300)))


def test_processes_that_start_together_do_not_take_each_others_beginnings_for_something_else(
    world: Path, tmp_path: Path
) -> None:
    config = CompareConfig(**settings(world, out=str(tmp_path / "out")))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{TEMPORARY_PREFIX}0123-1-4567").touch()
    with joined(config), joined(config):
        assert (tmp_path / "out" / "settings.yaml").is_file()
