"""What `twdpo compare` shows while it runs. Not for: results (`results.py`)."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import Progress, TaskID

from twdpo.console import duration
from twdpo.evaluate.compare.run import Watch
from twdpo.evaluate.compare.runs import RunResult
from twdpo.pipeline.annotate import AnnotateProgress
from twdpo.pipeline.train.progress import TrainProgress


class CompareLog(Watch):
    """A line a run, with the time that is left by the pace of those before."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.training = TrainProgress()
        self._console, self._clock = console, clock
        self._total = self._done = self._ran = 0
        self._began = clock()

    def judging(self, source: str) -> Callable[[AnnotateProgress], None]:
        """A line at the beginning."""
        self.line(f"weights: {source}")
        return super().judging(source)

    def began(self, total: int, done: int) -> None:
        """How much there is to do."""
        self._total, self._done, self._began = total, done, self._clock()
        self.line(f"{total - done:,} of {total:,} runs to do")

    def ran(self, result: RunResult) -> None:
        """What a run gave."""
        self._ran += 1
        self._done += 1
        left = (self._clock() - self._began) / self._ran * (self._total - self._done)
        time_left = f"  {duration(left)} left" if self._done < self._total else ""
        self.line(f"{self._done}/{self._total}  {run_line(result)}{time_left}")

    def line(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, soft_wrap=True, markup=False)


class CompareBars(CompareLog):
    """The same above two bars: of the runs, and of the steps of the one that is running."""

    def __init__(self, bar: Progress) -> None:
        super().__init__(bar.console)
        self._bar, self._runs = bar, bar.add_task("reading pairs", total=None, note="")
        self.training = _Steps(bar)

    def judging(self, source: str) -> Callable[[AnnotateProgress], None]:
        """A bar for the judge."""
        task = self._bar.add_task(f"weights: {source}", total=None, note="")

        def show(progress: AnnotateProgress) -> None:
            self._bar.update(task, total=progress.total, completed=progress.seen)

        return show

    def began(self, total: int, done: int) -> None:
        """Start the bar of the runs."""
        super().began(total, done)
        self._bar.update(self._runs, description="runs", total=total, completed=done)

    def ran(self, result: RunResult) -> None:
        """Move it."""
        super().ran(result)
        self._bar.advance(self._runs)


class _Steps(TrainProgress):
    """One bar for the training of one run after another."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def start(self, task: str, total: int | None) -> None:
        """Begin anew with every run."""
        if task == "training":
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task("  steps", total=total, note="")

    def advance(self, task: str, items: int = 1) -> None:
        """Move the bar."""
        if task == "training" and self._task is not None:
            self._bar.advance(self._task, items)


def run_line(result: RunResult) -> str:
    """A run in a line: what was learned, how far it moved, how long it took."""
    figures = result.figures
    kl = "" if figures.kl is None else f"  KL {figures.kl.sum() / figures.tokens.sum():.4f}"
    right = (figures.margins > 0).mean()
    seconds = sum(result.seconds.values())
    name = f"{result.arm}, beta {result.beta:g}, seed {result.seed}"
    return f"{name}: accuracy {right:.1%}  margin {figures.margins.mean():+.2f}{kl}  {seconds:.0f} s"
