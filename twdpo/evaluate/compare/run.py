"""A comparison from end to end: caches, pairs, runs, report.

Not for: what a run is (`runs.py`), or what follows from the runs (`frontier.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from twdpo.config import to_yaml
from twdpo.errors import Interrupted, UsageError
from twdpo.evaluate.compare.caches import make_caches
from twdpo.evaluate.compare.config import CompareConfig
from twdpo.evaluate.compare.frontier import Frontier, frontier
from twdpo.evaluate.compare.prepared import Prepared, check_same_pairs, prepare, scales
from twdpo.evaluate.compare.report import Report, write_report
from twdpo.evaluate.compare.rewarding import Rewarding
from twdpo.evaluate.compare.runs import Run, RunResult, execute, finished, open_policy, plan
from twdpo.evaluate.heldout import ReferenceStates
from twdpo.pipeline.annotate import AnnotateProgress
from twdpo.pipeline.models import load_tokenizer
from twdpo.pipeline.train import TrainProgress
from twdpo.pipeline.train.render import Renderer
from twdpo.weights_cache.durable import hold, make_folder, write_file

CONFIGURATION = "compare.yaml"


class Watch:
    """Is told how a comparison goes; this one keeps silent. Subclasses override what they show."""

    training = TrainProgress()

    def judging(self, source: str) -> Callable[[AnnotateProgress], None]:
        """The weights of a source are made; what is returned takes the progress."""
        return lambda _progress: None

    def began(self, total: int, done: int) -> None:
        """So many runs are planned, of which so many are finished."""

    def ran(self, result: RunResult) -> None:
        """A run is finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a comparison gave.

    frontier: None as long as no seed is complete. seeds: the complete ones. files: the report's. runs, executed: how
    many there are, and how many of them were run now.
    """

    out: Path
    frontier: Frontier | None
    seeds: tuple[int, ...]
    runs: int
    executed: int
    files: tuple[Path, ...] = field(default=())


def compare(config: CompareConfig, watch: Watch | None = None) -> Comparison:
    """Run what is missing of a comparison, and write its report after every seed.

    Raises UsageError where arms have other pairs, or another comparison writes to `out`, what the two stages raise, and
    Interrupted on Ctrl-C: finished runs are kept.
    """
    watch = watch or Watch()
    with _held(Path(config.out)):
        try:
            return _compare(config, watch)
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped; finished runs are kept in {config.out}: run the same command again to go on"
            ) from None


def _compare(config: CompareConfig, watch: Watch) -> Comparison:
    out = Path(config.out)
    write_file(out / CONFIGURATION, to_yaml(config).encode())
    caches = make_caches(config, watch.judging)
    arms = _prepare(config, caches)
    scale = scales(arms, match=config.match)
    runs = plan(config, arms, scale)
    results = {run: known for run in runs if (known := finished(run)) is not None}
    missing = [run for run in runs if run not in results]
    watch.began(len(runs), len(results))
    report = Report(config=config, arms=arms, scale=scale)
    if missing:
        by_name = {arm.arm.name: arm for arm in arms}
        hashes = [example.example_hash for example in arms[0].heldout]
        rewarding = Rewarding.open(config, hashes, runs[0].training.device)
        reference = _reference(config, arms[0], runs[0])
        for run in missing:
            results[run] = execute(run, by_name[run.arm], reference, config, watch.training, rewarding)
            watch.ran(results[run])
            if any(other not in results for other in runs) and all(r in results for r in runs if r.seed == run.seed):
                _report(report, runs, results)
    found, seeds, files = _report(report, runs, results)
    return Comparison(out=out, frontier=found, seeds=seeds, runs=len(runs), executed=len(missing), files=files)


def _prepare(config: CompareConfig, caches: Mapping[str, Path]) -> list[Prepared]:
    first = config.train_config(config.expanded[0], weights="", out="", beta=config.betas[0], seed=config.seeds[0])
    tokenizer = load_tokenizer(config.model, revision=first.revision, trust_remote_code=first.trust_remote_code)
    renderer = Renderer(tokenizer, max_length=first.max_length)
    arms = [prepare(config, arm, caches[arm.name], renderer) for arm in config.expanded]
    check_same_pairs(arms)
    return arms


def _reference(config: CompareConfig, arm: Prepared, run: Run) -> ReferenceStates:
    """What the untrained policy says of the held-out pairs, once for all runs."""
    return ReferenceStates.of(open_policy(config.model, run.training)[1], arm.heldout)


def _report(
    report: Report, runs: list[Run], results: Mapping[Run, RunResult]
) -> tuple[Frontier | None, tuple[int, ...], tuple[Path, ...]]:
    """Write the report of the seeds that are complete."""
    seeds = tuple(seed for seed in report.config.seeds if all(run in results for run in runs if run.seed == seed))
    figures = {(run.arm, run.beta, run.seed): results[run].figures for run in runs if run.seed in seeds}
    if not figures:
        return None, (), ()
    complete = [results[run] for run in runs if run.seed in seeds]
    rewards = {(run.arm, run.beta, run.seed): run.rewards for run in complete if run.rewards is not None}
    found = frontier(figures, report.config.baseline, rewards=rewards, resamples=report.config.resamples)
    return found, seeds, write_report(report, found, complete, seeds)


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Keep other comparisons out of the folder."""
    make_folder(out)
    if any(out.iterdir()) and not (out / CONFIGURATION).is_file():
        raise UsageError(f"{out} is not empty and holds no comparison; choose another out:")
    holding = hold(out)
    if holding is None:
        raise UsageError(f"another comparison is writing to {out}; wait for it, stop it, or choose another out:")
    try:
        yield
    finally:
        os.close(holding)
