"""A comparison from end to end: caches, pairs, runs, report.

Not for: what a run is (`runs.py`), or what follows from the runs (`frontier.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from twdpo.errors import Interrupted, ModelError, TrainingError, TwdpoError
from twdpo.evaluate.compare.arms import CONTROLS
from twdpo.evaluate.compare.caches import FOLDER as CACHES
from twdpo.evaluate.compare.caches import make_caches
from twdpo.evaluate.compare.config import CompareConfig
from twdpo.evaluate.compare.frontier import Frontier, frontier
from twdpo.evaluate.compare.prepared import Prepared, check_same_pairs, prepare, scales
from twdpo.evaluate.compare.report import Report, write_report
from twdpo.evaluate.compare.rewarding import Rewarding
from twdpo.evaluate.compare.runs import Run, RunResult, execute, finished, open_policy, plan
from twdpo.evaluate.compare.together import claimed, joined
from twdpo.evaluate.heldout import ReferenceStates
from twdpo.pipeline.annotate import AnnotateProgress
from twdpo.pipeline.models import load_tokenizer
from twdpo.pipeline.train import TrainProgress
from twdpo.pipeline.train.render import Renderer
from twdpo.weights_cache.durable import locked, make_folder


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
    many there are, and how many of them were run now, by this process. elsewhere: how many others are at.
    """

    out: Path
    frontier: Frontier | None
    seeds: tuple[int, ...]
    runs: int
    executed: int
    elsewhere: int = 0
    files: tuple[Path, ...] = field(default=())


def compare(config: CompareConfig, watch: Watch | None = None) -> Comparison:
    """Run what is missing of a comparison, and write its report after every seed.

    Several processes may do that at once, each with runs of its own; the last of them writes the last report.

    Raises UsageError where arms have other pairs, or a comparison with other settings writes to `out`, what the two
    stages raise, and Interrupted on Ctrl-C: finished runs are kept.
    """
    watch = watch or Watch()
    with joined(config):
        try:
            return _compare(config, watch)
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped; finished runs are kept in {config.out}: run the same command again to go on"
            ) from None


def _compare(config: CompareConfig, watch: Watch) -> Comparison:
    out = Path(config.out)
    make_folder(out / CACHES)
    with locked(out / CACHES):  # the first process makes them, and others wait for it
        caches = make_caches(config, watch.judging)
    arms = _prepare(config, caches)
    scale = scales(arms, match=config.match)
    state = _State(
        config=config,
        arms={arm.arm.name: arm for arm in arms},
        runs=plan(config, arms, scale),
        report=Report(config=config, arms=arms, scale=scale),
    )
    state.take_over()
    watch.began(len(state.runs), len(state.results))
    executed = state.execute_missing(watch) if state.missing else 0
    found, seeds, files = state.write_report()
    state.raise_broken()
    return Comparison(
        out=out,
        frontier=found,
        seeds=seeds,
        runs=len(state.runs),
        executed=executed,
        elsewhere=len(state.missing),
        files=files,
    )


@dataclass(slots=True, kw_only=True, eq=False)
class _State:
    """The runs of a comparison, and what is known of them."""

    config: CompareConfig
    arms: Mapping[str, Prepared]
    runs: Sequence[Run]
    report: Report
    results: dict[Run, RunResult] = field(default_factory=dict)
    broken: dict[Run, TwdpoError] = field(default_factory=dict)

    @property
    def missing(self) -> list[Run]:
        """Runs that are not finished, or not known to be."""
        return [run for run in self.runs if run not in self.results]

    def take_over(self, watch: Watch | None = None) -> None:
        """Come to know what is finished, and tell of it."""
        for run in self.missing:
            if (known := finished(run)) is not None:
                self.results[run] = known
                if watch is not None:
                    watch.ran(known)

    def execute_missing(self, watch: Watch) -> int:
        """Do one run after another that no other process is at; how many they were."""
        first = self.runs[0]
        baseline = self.arms[first.arm]
        hashes = [example.example_hash for example in baseline.heldout]
        rewarding = Rewarding.open(self.config, hashes, first.training.device)
        reference = ReferenceStates.of(open_policy(self.config.model, first.training)[1], baseline.heldout)
        executed, going = 0, True
        while going:  # until all that is missing is at others: who may be stopped, and leave it
            going = False
            for run in self.missing:
                with claimed(run.folder) as mine:
                    self.take_over(watch)
                    if not mine or run in self.results or run in self.broken:
                        continue
                    going, executed = True, executed + 1
                    try:
                        self.results[run] = execute(
                            run, self.arms[run.arm], reference, self.config, watch.training, rewarding
                        )
                    except (ModelError, TrainingError) as error:
                        self.broken[run] = error
                        continue
                watch.ran(self.results[run])
                if self.missing and self._is_complete(run.seed):
                    self.write_report()
        self.take_over(watch)
        return executed

    def write_report(self) -> tuple[Frontier | None, tuple[int, ...], tuple[Path, ...]]:
        """Write the report of the seeds that are complete."""
        with locked(Path(self.config.out) / CACHES):  # from looking to writing, so that an older one replaces none
            self.take_over()
            seeds = tuple(seed for seed in self.config.seeds if self._is_complete(seed))
            complete = [(run, self.results[run]) for run in self.runs if run.seed in seeds]
            if not complete:
                return None, (), ()
            keyed = {(run.arm, run.beta, run.seed): result for run, result in complete}
            arms = self.report.arms
            found = frontier(
                {key: result.figures for key, result in keyed.items()},
                self.config.baseline,
                prompts=arms[0].prompts,
                rewards={key: result.rewarded.rewards for key, result in keyed.items() if result.rewarded},
                apart=[arm.arm.name for arm in arms if arm.arm.loss != arms[0].arm.loss],
                controls=[arm.arm.name for arm in arms[1:] if arm.arm.source in CONTROLS],
                resamples=self.config.resamples,
            )
            return found, seeds, write_report(self.report, found, list(keyed.values()), seeds)

    def raise_broken(self) -> None:
        """Say of the runs that cannot be done what the first one said."""
        if self.broken:
            run, error = next(iter(self.broken.items()))
            more = f"; nor can {len(self.broken) - 1} more" if len(self.broken) > 1 else ""
            raise TrainingError(
                f"{run.arm} at beta {run.beta:g}, seed {run.seed}, cannot be done ({error}){more}. The other runs are "
                "kept. Where training broke it, leave the beta or the arm out, or give train: a smaller learning_rate"
            )

    def _is_complete(self, seed: int) -> bool:
        return all(run in self.results for run in self.runs if run.seed == seed)


def _prepare(config: CompareConfig, caches: Mapping[str, Path]) -> list[Prepared]:
    first = config.train_config(config.expanded[0], weights="", out="")
    tokenizer = load_tokenizer(config.model, revision=first.revision, trust_remote_code=first.trust_remote_code)
    renderer = Renderer(tokenizer, max_length=first.max_length)
    arms = [prepare(config, arm, caches[arm.name], renderer) for arm in config.expanded]
    check_same_pairs(arms)
    return arms
