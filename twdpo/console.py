"""What the commands show on a terminal: progress of both stages, results as small tables. No logic.

Progress goes to stderr, results to stdout, so that a pipe gets results alone.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.filesize import decimal
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
from rich.table import Table

from twdpo.pipeline.train.progress import TrainProgress

if TYPE_CHECKING:
    from twdpo.pipeline.annotate.run import AnnotateProgress, AnnotateResult
    from twdpo.pipeline.importing import ImportResult
    from twdpo.pipeline.train.result import TrainResult
    from twdpo.weights_cache.compaction import CompactResult
    from twdpo.weights_cache.pulling import PullResult
    from twdpo.weights_cache.sharing import PushResult
    from twdpo.weights_cache.statistics import CacheSummary

#: Rows between two lines of progress where stderr is no terminal (a log file).
_LOG_SECONDS = 30.0


def stdout() -> Console:
    """The console for results."""
    return Console(file=sys.stdout, highlight=False)


def stderr() -> Console:
    """The console for progress and messages."""
    return Console(file=sys.stderr, highlight=False)


def has_color(console: Console) -> bool:
    """Whether styles will show on this console."""
    return console.is_terminal and console.color_system is not None and not console.no_color


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
def train_progress() -> Iterator[TrainProgress]:
    """Show a run of stage two while the block lasts: a bar a task on a terminal, now and then a line in a log."""
    console = stderr()
    if not console.is_terminal:
        yield _TrainLog(console)
        return
    with progress_bar(console) as bar:
        yield _TrainBars(bar)


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
    def __init__(self, console: Console) -> None:
        self._console, self._last = console, 0.0

    def start(self, task: str, total: int | None) -> None:
        """One line a task."""
        if task != "evaluation":
            self.note(f"{_TASKS.get(task, task)}{f': {total:,}' if total is not None else ''}")

    def record(self, metrics: Mapping[str, float]) -> None:
        """A line of metrics, not too often; evaluations always."""
        now = time.monotonic()
        if "eval_loss" in metrics or now - self._last >= _LOG_SECONDS:
            self._last = now if "loss" in metrics else self._last
            self.note(f"step {metrics['step']:.0f}  {_metrics(metrics)}")

    def note(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, soft_wrap=True, markup=False)


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


def train_rows(result: TrainResult) -> dict[str, Any]:
    """The summary of a run of stage two."""
    rows: dict[str, Any] = {
        "trained on": f"{result.pairs:,} pairs"
        + (f" ({result.truncated:,} cut to the maximal length)" if result.truncated else "")
        + (f", {result.uniform:,} with even weights" if result.uniform else ""),
        "steps": f"{result.steps:,}" + (f" (resumed after {result.resumed_at:,})" if result.resumed_at else ""),
    }
    for reason, count in sorted(result.skipped.items(), key=lambda item: -item[1]):
        rows[f"left out {count:,} ×"] = reason
    if result.before and result.after:
        rows[f"{result.heldout:,} held-out pairs"] = "before → after"
        for name, label, form in (
            ("eval_loss", "  loss", "{:.4f}"),
            ("eval_rewards/weighted_margins", "  weighted margin", "{:+.4f}"),
            ("eval_rewards/weighted_accuracies", "  weighted accuracy", "{:.1%}"),
            ("eval_rewards/margins", "  plain margin", "{:+.4f}"),
            ("eval_rewards/accuracies", "  plain accuracy", "{:.1%}"),
        ):
            # Before training the policy is the reference: all rewards are zero, and none is right or wrong.
            before = "–" if "accuracies" in name else form.format(result.before[name])
            rows[label] = f"{before} → {form.format(result.after[name])}"
    rows["seconds"] = ", ".join(f"{name} {value:.0f}" for name, value in result.seconds.items())
    rows["model"] = f"{result.out}/"
    return rows


def import_rows(result: ImportResult) -> dict[str, Any]:
    """The summary of an import."""
    counts = result.counts
    rows: dict[str, Any] = {
        "pairs seen": f"{counts.seen:,}",
        "imported now": f"{counts.written:,}" + (f" ({counts.truncated:,} truncated)" if counts.truncated else ""),
    }
    for name in ("cached", "duplicates", "rejected"):
        if value := getattr(counts, name):
            rows[{"cached": "in the cache before"}.get(name, name)] = f"{value:,}"
    for reason, count in sorted(result.reasons.items(), key=lambda item: -item[1])[:5]:
        rows[f"  {count:,} ×"] = reason
    rows["format"] = result.format
    rows["layers"] = ", ".join(map(str, result.layers))
    rows["cache"] = f"{result.out}/"
    return rows


def compact_rows(result: CompactResult) -> dict[str, Any]:
    """The summary of a compaction."""
    return {
        "shards": f"{result.shards_before:,} → {result.shards_after:,}",
        "rows": f"{result.rows:,}"
        + (f" ({result.duplicates:,} duplicates dropped)" if result.duplicates else ", no duplicates"),
        "size": f"{decimal(result.bytes_before)} → {decimal(result.bytes_after)}",
    }


def push_rows(result: PushResult) -> dict[str, Any]:
    """The summary of an upload."""
    rows: dict[str, Any] = {
        "sent": f"{result.files:,} files, {decimal(result.bytes)}" if result.files else "nothing: it was all there",
    }
    if result.deleted:
        rows["deleted there"] = f"{result.deleted:,} shards that the cache has no more"
    if result.card_kept:
        rows["card"] = "left as its owner wrote it"
    rows["commit"] = result.commit
    rows["data set"] = result.url
    return rows


def pull_rows(result: PullResult) -> dict[str, Any]:
    """The summary of a download."""
    rows: dict[str, Any] = {"fetched": f"{result.files:,} files, {decimal(result.bytes)}, all sound"}
    if result.left_out:
        rows["left there"] = f"{result.left_out:,} files that are no part of a cache"
    rows["commit"] = result.commit
    rows["cache"] = f"{result.folder}/"
    return rows


def summary_rows(summary: CacheSummary) -> dict[str, Any]:
    """The summary of a cache; a figure that its weight source does not have is a dash."""

    def show(value: float, form: str) -> str:
        return "–" if math.isnan(value) else format(value, form)

    return {
        "pairs": f"{summary.pairs:,}",
        "judged tokens": f"{summary.tokens:,}",
        "truncated": f"{summary.truncated:,}",
        "layer": summary.layer,
        "judge prefers chosen": f"{show(summary.judge_accuracy, '.1%')} (chosen first "
        f"{show(summary.judge_accuracy_cr, '.1%')}, rejected first {show(summary.judge_accuracy_rc, '.1%')})",
        "position bias to A": show(summary.position_bias, "+.3f"),
        "orders agree": f"{show(summary.order_agreement, '.1%')} of the weight",
        "effective tokens": f"{summary.effective_share:.1%} of the length",
        "first token": f"weight {summary.first_weight:.2f}, after the sink fix {summary.first_weight_fixed:.2f}",
        "weight by tenth": " ".join(f"{value:.2f}" for value in summary.deciles),
    }


def summary_json(summary: CacheSummary) -> dict[str, Any]:
    """The same for machines: what is not there is null."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(summary).items()
    }
