"""What the commands print of their results: names and values in two columns. No logic.

Not for: progress (`console.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from twdpo.pipeline.train.objectives import OBJECTIVES

if TYPE_CHECKING:
    from twdpo.evaluate.compare import Comparison
    from twdpo.inspect.report.write import ReportResult
    from twdpo.pipeline.annotate.progress import AnnotateProgress
    from twdpo.pipeline.annotate.run import AnnotateResult
    from twdpo.pipeline.importing import ImportProgress, ImportResult
    from twdpo.pipeline.train.result import TrainResult
    from twdpo.weights_cache import (
        CacheSummary,
        CompactResult,
        ExportResult,
        Manifest,
        MergeResult,
        PullResult,
        PushResult,
    )


#: Weight sources that show pairs to a judge.
_JUDGING = ("attention", "rollout")
#: Of the manifest, what a summary for machines repeats.
_ABOUT = ("recipe", "fingerprint", "sources", "defaults", "include_text", "schema_version", "twdpo_version")


def table(rows: Mapping[str, Any]) -> Table:
    """Names and values in two columns; nothing in a value steers the terminal or is markup."""
    from twdpo.weights_cache.picture import visible

    grid = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        grid.add_row(Text(name), Text(visible(str(value))))
    return grid


def rates(progress: AnnotateProgress) -> str:
    """How fast judging goes; nothing where nothing was judged."""
    # Without a model there is nothing to be fast or slow at.
    if progress.pairs_per_second is None or not progress.tokens:
        return ""
    parts = [f"{progress.pairs_per_second:.2f} pairs/s", f"{progress.tokens_per_second:,.0f} tokens/s"]
    if progress.utilisation is not None:
        parts.append(f"{progress.utilisation:.0%} of peak FLOP/s")
    return "  ".join(parts)


def annotate_rows(result: AnnotateResult) -> dict[str, Any]:
    """The summary of a run of stage one."""
    done = "judged now" if result.source in _JUDGING else "weighed now"
    rows = _counted(done, result.counts, result.reasons)
    if result.shard is not None:
        rows = {"part": f"{result.shard}; {result.counts.elsewhere:,} pairs are of the others"} | rows
    if speed := rates(result.counts):
        rows["speed"] = speed
    if result.judge_accuracy is not None:
        rows["judge prefers chosen"] = f"{result.judge_accuracy:.1%}"
    return rows | _made(result)


def import_rows(result: ImportResult) -> dict[str, Any]:
    """The summary of an import."""
    return _counted("imported now", result.counts, result.reasons) | {"format": result.format} | _made(result)


def _counted(done: str, counts: AnnotateProgress | ImportProgress, reasons: Mapping[str, int]) -> dict[str, Any]:
    """What became of the pairs; `done` is what those written now are called."""
    rows: dict[str, Any] = {
        "pairs seen": f"{counts.seen:,}",
        done: f"{counts.written:,}" + (f" ({counts.truncated:,} truncated)" if counts.truncated else ""),
    }
    for name in ("cached", "duplicates", "rejected"):
        if value := getattr(counts, name):
            rows[{"cached": "in the cache before"}.get(name, name)] = f"{value:,}"
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:5]:
        rows[f"  {count:,} ×"] = reason
    return rows


def _made(result: AnnotateResult | ImportResult) -> dict[str, Any]:
    return {"layers": ", ".join(map(str, result.layers)), "cache": f"{result.out}/"}


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
            hidden = "accuracies" in name and OBJECTIVES[result.loss].reference
            before = "–" if hidden else form.format(result.before[name])
            rows[label] = f"{before} → {form.format(result.after[name])}"
    rows["seconds"] = ", ".join(f"{name} {value:.0f}" for name, value in result.seconds.items())
    rows["model"] = f"{result.out}/"
    if result.best_step is not None:
        rows["best held-out loss"] = f"after step {result.best_step}: {result.out}/best/"
    if result.pushed is not None:
        rows["on the hub"] = result.pushed
    return rows


def compare_rows(result: Comparison) -> dict[str, Any]:
    """The summary of a comparison: every arm's difference from the baseline where both are equally far from it."""
    from twdpo.evaluate.compare.report import shown

    rows: dict[str, Any] = {
        "runs": f"{result.runs:,}"
        + (
            f" ({result.executed:,} of them now)"
            if result.executed
            else ""
            if result.elsewhere
            else ", all done before"
        ),
        **({"elsewhere": f"{result.elsewhere:,} runs; the last process writes the report"} if result.elsewhere else {}),
        "seeds": ", ".join(map(str, result.seeds)) or "none is complete",
    }
    if result.frontier is not None:
        for arm, metrics in result.frontier.at_equal_kl.items():
            rows[f"{arm}, at equal KL"] = "  ".join(
                f"{name} {shown(metric, metrics[metric], signed=True)}"
                for metric, name in (("accuracy", "accuracy, %:"), ("margin", "margin, nats:"))
            )
    return rows


def compact_rows(result: CompactResult) -> dict[str, Any]:
    """The summary of a compaction."""
    return {
        "shards": f"{result.shards_before:,} → {result.shards_after:,}",
        "rows": f"{result.rows:,}"
        + (f" ({result.duplicates:,} duplicates dropped)" if result.duplicates else ", no duplicates"),
        "size": f"{decimal(result.bytes_before)} → {decimal(result.bytes_after)}",
    }


def merge_rows(result: MergeResult) -> dict[str, Any]:
    """The summary of a merge."""
    return {
        "shards": f"{result.copied:,} copied" + (f", {result.present:,} were there already" if result.present else ""),
        "pairs": f"{result.pairs:,}"
        + (f" ({result.duplicates:,} rows are duplicates; compact drops them)" if result.duplicates else ""),
        "rejected": f"{result.rejected:,}",
    }


def export_rows(result: ExportResult) -> dict[str, Any]:
    """The summary of an export."""
    return {
        "pairs": f"{result.rows:,}" + (", without their texts" if result.without_text else ""),
        "size": decimal(result.size),
        "written to": result.out,
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


def summary_rows(
    summary: CacheSummary, manifest: Manifest | None = None, rejected: int | None = None
) -> dict[str, Any]:
    """The summary of a cache; a figure that its weight source does not have is a dash."""

    def show(value: float, form: str = ".1%") -> str:
        return "–" if math.isnan(value) else format(value, form)

    rows: dict[str, Any] = {
        "pairs": f"{summary.pairs:,}" + (f", {rejected:,} left out" if rejected is not None else ""),
        "judged tokens": f"{summary.tokens:,}, {summary.tokens / summary.pairs:,.0f} a pair",
        "truncated": f"{summary.truncated:,} ({summary.truncated / summary.pairs:.1%})",
    }
    if manifest is not None:
        rows |= _made_of(manifest)
    return rows | {
        "shown": summary.attn_source,
        "judge prefers chosen": f"{show(summary.judge_accuracy)} (chosen first "
        f"{show(summary.judge_accuracy_cr)}, rejected first {show(summary.judge_accuracy_rc)})",
        "in both orders": f"right {show(summary.both_right)}, wrong {show(summary.both_wrong)}, "
        f"verdict flips {show(summary.verdict_flips)}",
        "position bias to A": show(summary.position_bias, "+.3f"),
        "orders agree": f"{show(summary.order_agreement)} of the weight",
        "effective tokens": f"{summary.effective_share:.1%} of the length "
        f"(p10 {summary.effective_share_p10:.0%}, median {summary.effective_share_p50:.0%}, "
        f"p90 {summary.effective_share_p90:.0%})",
        "first token": f"weight {summary.first_weight:.2f}"
        + (f", after the sink fix {summary.first_weight_fixed:.2f}" if manifest is None or manifest.has_sink else ""),
        "weight by tenth": f"{' '.join(f'{value:.2f}' for value in summary.deciles)}\n{_bars(summary.deciles)}",
    }


def _made_of(manifest: Manifest) -> dict[str, Any]:
    """How a cache was made and of what, in two lines."""
    recipe = manifest.recipe
    layers = ", ".join(map(str, recipe.layers))
    if recipe.judge_model:
        revision = f" at {recipe.judge_revision[:12]}" if recipe.judge_revision else ""
        dtype = "" if recipe.dtype == "none" else f", {recipe.dtype}"
        made = f"{recipe.judge_model}{revision}{dtype}, up to {recipe.max_length:,} tokens, layers {layers}"
        made += "" if recipe.source == "attention" else f", weights by {recipe.source}"
        made += _options(recipe.source_options)
    else:
        made = f"weights by {recipe.source}, no judge, layers {layers}"
    sources = [
        f"{source.get('name') or source.get('location')}" + (f" [{source['split']}]" if source.get("split") else "")
        for source in manifest.sources
    ]
    more = f" and {len(sources) - 3} more" if len(sources) > 3 else ""
    return {"recipe": made, "sources": f"{', '.join(sources[:3])}{more}" if sources else "not stated"}


def _options(options: Mapping[str, Any]) -> str:
    """A source's options in brackets; long texts are left out."""
    shown = [f"{name} {value}" for name, value in options.items() if len(str(value)) < 20]
    return f" ({', '.join(shown)})" if shown else ""


def _bars(values: Sequence[float]) -> str:
    """Values from 0 up as blocks; the highest is a whole one."""
    top = max(*values, 1e-9)
    # Each as wide as its number, "1.07 ".
    return " ".join("▁▂▃▄▅▆▇█"[min(7, int(8 * value / top))] * 4 for value in values)


def summary_json(
    summary: CacheSummary, manifest: Manifest | None = None, rejected: int | None = None
) -> dict[str, Any]:
    """The same for machines: what is not there is null."""
    figures: dict[str, Any] = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(summary).items()
    }
    if manifest is None:
        return figures
    about = {name: value for name, value in manifest.to_json().items() if name in _ABOUT}
    return figures | {"rejected": rejected} | about


def report_rows(result: ReportResult) -> dict[str, Any]:
    """The summary of a report."""
    rows: dict[str, Any] = {
        "pairs": f"{result.shown:,} of {result.pairs:,}",
        "layers": ", ".join(map(str, result.layers)),
    }
    if result.without_text:
        rows["without texts"] = f"{result.without_text:,}; pass their data set with --dataset to see them"
    if result.not_in_other:
        rows["not compared"] = f"{result.not_in_other:,}, which the other cache lacks"
    rows["size"] = decimal(result.size)
    return rows
