"""What the commands show on a terminal: progress of both stages, results as small tables. No logic.

Progress goes to stderr, results to stdout, so that a pipe gets results alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from twdpo.pipeline.train.launch import is_main
from twdpo.pipeline.train.progress import Pace, TrainProgress
from twdpo.results import rates

if TYPE_CHECKING:
    from twdpo.evaluate.compare import Watch
    from twdpo.pipeline.annotate.progress import AnnotateProgress

#: Seconds between two lines of progress where stderr is no terminal (a log file).
_LOG_SECONDS = 30.0
#: What a bar's remaining time is told by: the pace over so many seconds.
_PACE_SECONDS = 1800.0


def stdout() -> Console:
    """The console for results."""
    return Console(file=sys.stdout, highlight=False)


def stderr() -> Console:
    """The console for progress and messages."""
    return Console(file=sys.stderr, highlight=False)


def has_color(console: Console) -> bool:
    """Whether styles will show on this console."""
    return console.is_terminal and console.color_system is not None and not console.no_color


def progress_bar(console: Console, *, tells_left: bool = True) -> Progress:
    """A bar with count, elapsed and (where it can tell) remaining time, and a field for rates and metrics."""
    left = (TextColumn("left"), TimeRemainingColumn()) if tells_left else ()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *left,
        TextColumn("{task.fields[note]}", style="dim"),
        console=console,
        transient=False,
        # Long enough for steps of minutes; with rich's 30 seconds their remaining time would not be known.
        speed_estimate_period=_PACE_SECONDS,
    )


@contextmanager
def annotate_progress() -> Iterator[Callable[[AnnotateProgress], None]]:
    """Show a run of stage one while the block lasts: a bar on a terminal, now and then a line in a log."""
    console = stderr()
    if not console.is_terminal:
        yield _AnnotateLog(console)
        return
    # Rows that need no judging go by at once: the bar's own guess of the remaining time would be far off.
    with progress_bar(console, tells_left=False) as bar:
        task = bar.add_task("loading the judge", total=None, note="")

        def show(progress: AnnotateProgress) -> None:
            note = _pace(progress)
            bar.update(task, description="judging", total=progress.total, completed=progress.seen, note=note)

        yield show


class _AnnotateLog:
    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock, self._last = console, clock, -_LOG_SECONDS

    def __call__(self, progress: AnnotateProgress) -> None:
        now = self._clock()
        if now - self._last >= _LOG_SECONDS:
            self._last = now
            of = f" of {progress.total}" if progress.total is not None else ""
            self._console.print(f"{progress.seen}{of} pairs  {_pace(progress)}".rstrip(), soft_wrap=True, markup=False)


@contextmanager
def pacing(waiting: str, doing: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show done, total and a note while the block lasts: a bar on a terminal, now and then a line in a log."""
    console = stderr()
    if console.is_terminal:
        with progress_bar(console) as bar:
            task = bar.add_task(waiting, total=None, note="")
            yield lambda done, total, note: bar.update(task, description=doing, total=total, completed=done, note=note)
        return
    last = -_LOG_SECONDS

    def show(done: int, total: int, note: str) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _LOG_SECONDS:
            last = now
            console.print(f"{doing} {done:,} of {total:,}  {note}".rstrip(), soft_wrap=True, markup=False)

    yield show


def _pace(progress: AnnotateProgress) -> str:
    """The rates, and how long it will take where there is more to do."""
    left = f"{duration(progress.left)} left" if progress.left else ""
    return "  ".join(part for part in (rates(progress), left) if part)


@contextmanager
def train_progress() -> Iterator[TrainProgress]:
    """Show a run of stage two while the block lasts: a bar a task on a terminal, now and then a line in a log."""
    if not is_main():
        yield TrainProgress()
        return
    console = stderr()
    if not console.is_terminal:
        yield _TrainLog(console)
        return
    with progress_bar(console) as bar:
        yield _TrainBars(bar)


@contextmanager
def compare_progress() -> Iterator[Watch]:
    """Show a comparison while the block lasts: a line a run, and on a terminal bars of the runs and of their steps."""
    from twdpo.console_compare import CompareBars, CompareLog

    console = stderr()
    if not console.is_terminal:
        yield CompareLog(console)
        return
    with progress_bar(console) as bar:
        yield CompareBars(bar)


@contextmanager
def counting(description: str, unit: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show something that is counted, as done and total, while the block lasts: a bar on a terminal, else nothing."""
    console = stderr()
    if not console.is_terminal:
        yield lambda _done, _total: None
        return
    count: ProgressColumn = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    label = description if unit == "bytes" else f"{description} {unit}"
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), count, TimeRemainingColumn())
    with Progress(SpinnerColumn(), *columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


_TASKS = {"pairs": "reading pairs", "reference": "reference log-probs", "evaluation": "evaluating"}


class _TrainBars(TrainProgress):
    def __init__(self, bar: Progress) -> None:
        self._bar, self._tasks = bar, dict[str, TaskID]()
        self._waiting: TaskID | None = bar.add_task("loading the policy", total=None, note="")

    def start(self, task: str, total: int | None) -> None:
        """Add the task's bar; evaluations come and go."""
        if self._waiting is not None:
            self._bar.remove_task(self._waiting)
            self._waiting = None
        self._tasks[task] = self._bar.add_task(_TASKS.get(task, task), total=total, note="")

    def advance(self, task: str, items: int = 1) -> None:
        """Move the task's bar."""
        self._bar.advance(self._tasks[task], items)

    def finish(self, task: str) -> None:
        """Stop the task's clock; an evaluation's bar goes."""
        if task == "evaluation":
            self._bar.remove_task(self._tasks[task])
        else:
            self._bar.stop_task(self._tasks[task])

    def record(self, metrics: Mapping[str, float]) -> None:
        """Show the latest metrics beside the training bar."""
        if "training" in self._tasks and "loss" in metrics:
            self._bar.update(self._tasks["training"], note=_metrics(metrics))

    def note(self, text: str) -> None:
        """Print above the bars."""
        self._bar.console.print(text, soft_wrap=True, markup=False)


class _TrainLog(TrainProgress):
    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock, self._last = console, clock, -_LOG_SECONDS
        self._pace: Pace | None = None

    def start(self, task: str, total: int | None) -> None:
        """One line a task."""
        if task != "evaluation":
            self.note(f"{_TASKS.get(task, task)}{f': {total:,}' if total is not None else ''}")
        if task == "training" and total is not None:
            self._pace = Pace(total, self._clock)

    def advance(self, task: str, items: int = 1) -> None:
        """Keep the pace."""
        if task == "training" and self._pace is not None:
            self._pace.advance(items)

    def record(self, metrics: Mapping[str, float]) -> None:
        """A line of metrics, not too often; evaluations always."""
        now = self._clock()
        is_last = self._pace is not None and metrics["step"] == self._pace.total
        if "eval_loss" in metrics or is_last or now - self._last >= _LOG_SECONDS:
            self._last = now if "loss" in metrics else self._last
            of = f"/{self._pace.total}" if self._pace else ""
            left = self._pace.left() if self._pace else None
            time_left = f"  {duration(left)} left" if left and "loss" in metrics else ""
            self.note(f"step {metrics['step']:.0f}{of}  {_metrics(metrics)}{time_left}")

    def note(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, soft_wrap=True, markup=False)


def duration(seconds: float) -> str:
    """A span of time in its largest unit or two: 40 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _metrics(metrics: Mapping[str, float]) -> str:
    prefix = "eval_" if "eval_loss" in metrics else ""
    parts = [
        f"{prefix}loss {metrics[f'{prefix}loss']:.4f}",
        f"margin {metrics[f'{prefix}rewards/weighted_margins']:+.4f}",
        f"accuracy {metrics[f'{prefix}rewards/weighted_accuracies']:.0%}",
    ]
    if rate := metrics.get("tokens_per_second"):
        parts.append(f"{rate:,.0f} tokens/s")
    return "  ".join(parts)
