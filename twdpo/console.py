"""What the commands show on a terminal: progress of both stages, results as small tables. No logic.

Progress goes to stderr, results to stdout, so that a pipe gets results alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from twdpo.inspect.statistics import CacheSummary
    from twdpo.pipeline.annotate.run import AnnotateProgress, AnnotateResult

#: Rows between two lines of progress where stderr is no terminal (a log file).
_LOG_SECONDS = 30.0


def stdout() -> Console:
    """The console for results."""
    return Console(file=sys.stdout, highlight=False)


def stderr() -> Console:
    """The console for progress and messages."""
    return Console(file=sys.stderr, highlight=False)


def progress_bar(console: Console) -> Progress:
    """A bar with count, elapsed and remaining time, and a field for rates and metrics."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
        console=console,
        transient=False,
    )


@contextmanager
def annotate_progress() -> Iterator[Callable[[AnnotateProgress], None]]:
    """Show a run of stage one while the block lasts: a bar on a terminal, now and then a line in a log."""
    console = stderr()
    if not console.is_terminal:
        yield _AnnotateLog(console)
        return
    with progress_bar(console) as bar:
        task = bar.add_task("loading the judge", total=None, note="")

        def show(progress: AnnotateProgress) -> None:
            bar.update(
                task, description="judging", total=progress.total, completed=progress.seen, note=_rates(progress)
            )

        yield show


class _AnnotateLog:
    def __init__(self, console: Console) -> None:
        self._console, self._last = console, 0.0

    def __call__(self, progress: AnnotateProgress) -> None:
        now = time.monotonic()
        if now - self._last >= _LOG_SECONDS:
            self._last = now
            of = f" of {progress.total}" if progress.total is not None else ""
            self._console.print(f"judged {progress.seen}{of} pairs  {_rates(progress)}", soft_wrap=True)


def _rates(progress: AnnotateProgress) -> str:
    if progress.seconds <= 0 or not progress.written:
        return ""
    return f"{progress.written / progress.seconds:.2f} pairs/s  {progress.tokens / progress.seconds:,.0f} tokens/s"


@contextmanager
def bar(description: str) -> Iterator[Callable[[int, int | None, str], None]]:
    """A single bar: call with (done, total, note). Where stderr is no terminal, nothing is shown."""
    console = stderr()
    if not console.is_terminal:
        yield lambda _done, _total, _note: None
        return
    with progress_bar(console) as shown:
        task: TaskID = shown.add_task(description, total=None, note="")
        yield lambda done, total, note: shown.update(task, completed=done, total=total, note=note)


def table(rows: Mapping[str, Any]) -> Table:
    """Names and values in two columns."""
    grid = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        grid.add_row(name, str(value))
    return grid


def annotate_rows(result: AnnotateResult) -> dict[str, Any]:
    """The summary of a run of stage one."""
    counts = result.counts
    rows: dict[str, Any] = {
        "pairs seen": f"{counts.seen:,}",
        "judged now": f"{counts.written:,}" + (f" ({counts.truncated:,} truncated)" if counts.truncated else ""),
    }
    for name in ("cached", "duplicates", "rejected"):
        if value := getattr(counts, name):
            rows[{"cached": "in the cache before"}.get(name, name)] = f"{value:,}"
    for reason, count in sorted(result.reasons.items(), key=lambda item: -item[1])[:5]:
        rows[f"  {count:,} ×"] = reason
    if counts.written:
        rows["speed"] = _rates(counts)
    if result.judge_accuracy is not None:
        rows["judge prefers chosen"] = f"{result.judge_accuracy:.1%}"
    rows["layers"] = ", ".join(map(str, result.layers))
    rows["cache"] = f"{result.out}/"
    return rows


def summary_rows(summary: CacheSummary) -> dict[str, Any]:
    """The summary of a cache."""
    return {
        "pairs": f"{summary.pairs:,}",
        "judged tokens": f"{summary.tokens:,}",
        "truncated": f"{summary.truncated:,}",
        "layer": summary.layer,
        "judge prefers chosen": f"{summary.judge_accuracy:.1%} (chosen first {summary.judge_accuracy_cr:.1%}, "
        f"rejected first {summary.judge_accuracy_rc:.1%})",
        "position bias to A": f"{summary.position_bias:+.3f}",
        "orders agree": f"{summary.order_agreement:.1%} of the weight",
        "effective tokens": f"{summary.effective_share:.1%} of the length",
        "first token": f"weight {summary.first_weight:.2f}, after the sink fix {summary.first_weight_fixed:.2f}",
        "weight by tenth": " ".join(f"{value:.2f}" for value in summary.deciles),
    }
