"""A comparison's report: comparison.json for programs, comparison.md for people, and the picture of the frontiers.

Not for: the figures themselves (`frontier.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twdpo import __version__
from twdpo.evaluate.compare.config import CompareConfig
from twdpo.evaluate.compare.frontier import KL, REWARD, Frontier
from twdpo.evaluate.compare.plot import write_picture
from twdpo.evaluate.compare.prepared import Prepared
from twdpo.evaluate.compare.runs import RunResult
from twdpo.evaluate.statistics import Estimate
from twdpo.weights_cache.durable import write_file

JSON, MARKDOWN = "comparison.json", "comparison.md"

#: Metric → its heading, what it is multiplied by, and its decimals.
_SHOWN: Mapping[str, tuple[str, float, int]] = {
    KL: ("KL, nats a token", 1.0, 4),
    "accuracy": ("accuracy, %", 100.0, 1),
    "length_controlled_accuracy": ("length-controlled, %", 100.0, 1),
    "margin": ("margin, nats", 1.0, 2),
    REWARD: ("reward", 1.0, 3),
}

#: Sources whose weights are read at a layer.
_LAYERED = frozenset({"attention", "rollout", "shuffled", "random"})

_HOW_TO_READ = """\
Brackets hold 95 % of {resamples:,} bootstrap resamples of {drawn}; * marks a
difference whose interval leaves out 0. No correction is made for the number of comparisons: of twenty differences that
are nothing, one is marked on average. Accuracy: how often the policy has raised the chosen answer's log-prob over the
reference's more than the rejected one's. Length-controlled: the mean of the accuracies where the chosen answer is the
longer and where it is the shorter one. Margin: the difference of these log-ratios, no weights and no beta in it. KL:
exact over the vocabulary, at the prefixes of the held-out answers, not of the policy's own.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What does not change from one writing of the report to the next."""

    config: CompareConfig
    arms: Sequence[Prepared]
    scale: Mapping[str, float]


def write_report(report: Report, found: Frontier, runs: Sequence[RunResult], seeds: Sequence[int]) -> tuple[Path, ...]:
    """Write the report of complete `seeds` and their `runs`; returns its files. Raises StorageError."""
    out = Path(report.config.out)
    pictures = write_picture(out, found, report.config.baseline, title=_about(report, seeds))
    files = [out / JSON, out / MARKDOWN]
    write_file(files[0], json.dumps(_plain(report, found, runs, seeds), indent=1, allow_nan=False).encode())
    write_file(files[1], "\n".join(_markdown(report, found, runs, seeds, bool(pictures))).encode())
    return (*files, *pictures)


def _about(report: Report, seeds: Sequence[int]) -> str:
    first = report.arms[0]
    named = Path(report.config.model).name
    return (
        f"{named}, {len(first.train)} pairs trained on, {len(first.heldout)} held out, "
        f"{len(seeds)} seed{'s' * (len(seeds) != 1)}"
    )


def _plain(report: Report, found: Frontier, runs: Sequence[RunResult], seeds: Sequence[int]) -> dict[str, Any]:
    config = report.config

    def points(of: Mapping[tuple[str, float], Mapping[str, Estimate]]) -> list[dict[str, Any]]:
        return [
            {"arm": arm, "beta": beta} | {name: each.plain() for name, each in metrics.items()}
            for (arm, beta), metrics in of.items()
        ]

    return {
        "twdpo_version": __version__,
        "model": config.model,
        "dataset": config.dataset,
        "baseline": config.baseline,
        "seeds": list(seeds),
        "planned_seeds": list(config.seeds),
        "train": config.train,
        "arms": [
            {**arm.arm.training, "name": arm.arm.name, "source": arm.arm.source}
            | {"source_options": arm.arm.source_options, "scale": report.scale[arm.arm.name]}
            for arm in report.arms
        ],
        "pairs": len(report.arms[0].train),
        "heldout": len(report.arms[0].heldout),
        "skipped": dict(report.arms[0].skipped),
        "points": points(found.points),
        "differences": points(found.differences),
        "at_equal_kl": [
            {"arm": arm} | {name: each.plain() for name, each in metrics.items()}
            for arm, metrics in found.at_equal_kl.items()
        ],
        "less_controls": [
            {"arm": arm, "control": control} | {name: each.plain() for name, each in metrics.items()}
            for (arm, control), metrics in found.less_controls.items()
        ],
        "runs": [
            {"arm": run.arm, "beta": run.beta, "trained_beta": run.trained_beta, "seed": run.seed}
            | {"steps": run.steps, "seconds": dict(run.seconds)}
            | ({} if run.rewarded is None else {"cut": run.rewarded.cut, "empty": run.rewarded.empty})
            for run in runs
        ],
    }


def _markdown(
    report: Report, found: Frontier, runs: Sequence[RunResult], seeds: Sequence[int], pictures: bool
) -> Iterator[str]:
    config, first = report.config, report.arms[0]
    yield "# Comparison of token weights\n"
    yield f"{_about(report, seeds)}. Data: {Path(config.dataset).name}. Baseline: {config.baseline}."
    if len(seeds) < len(config.seeds):
        yield f"Seeds {', '.join(map(str, seeds))} of {', '.join(map(str, config.seeds))}: the others are not finished."
    steps = sorted({run.steps for run in runs})
    yield (
        f"Every run: {' or '.join(map(str, steps))} steps on the same pairs, in the same order at the same seed. "
        + (
            "Weights are scaled, by beta, to the summed weight of the baseline."
            if config.match
            else "Weights are as stored."
        )
    )
    if first.skipped:
        skipped = "; ".join(f"{count:,} {reason}" for reason, count in sorted(first.skipped.items()))
        yield f"Left out of all arms alike: {skipped}."
    yield ""
    yield from _table(
        ("arm", "weights", "end of turn and other unseen tokens", "beta is multiplied by"),
        [
            (arm.arm.name, _weights(arm), "weight " + arm.arm.uncovered, f"{report.scale[arm.arm.name]:.3f}")
            for arm in report.arms
        ],
    )
    if pictures:
        yield "![Accuracy and margin against the KL from the reference](frontier.png)\n"
    yield "## Where each arm stands\n"
    names = [name for name in _SHOWN if name in next(iter(found.points.values()))]
    headings = tuple(_SHOWN[name][0] for name in names)
    yield from _table(
        ("arm", "beta", *headings),
        [(arm, f"{beta:g}", *(shown(name, m[name]) for name in names)) for (arm, beta), m in found.points.items()],
    )
    if found.differences:
        yield f"## Difference from {config.baseline} at the same beta\n"
        yield from _table(
            ("arm", "beta", *headings),
            [
                (arm, f"{beta:g}", *(shown(name, m[name], signed=True) for name in names))
                for (arm, beta), m in found.differences.items()
            ],
        )
    yield f"## Difference from {config.baseline} at equal KL\n"
    yield (
        "Between the frontiers, over the KL that both reach: what an arm gains where it is as far from the reference "
        "as the baseline. A dash stands where they reach none in common: more betas may mend that.\n"
    )
    yield from _table(
        ("arm", *headings[1:]),
        [(arm, *(shown(name, m[name], signed=True) for name in names[1:])) for arm, m in found.at_equal_kl.items()],
    )
    if found.less_controls:
        yield "## Difference from the controls at equal KL\n"
        yield "What the place of the weights adds to their being uneven.\n"
        yield from _table(
            ("arm", "less", *headings[1:]),
            [
                (arm, control, *(shown(name, m[name], signed=True) for name in names[1:]))
                for (arm, control), m in found.less_controls.items()
            ],
        )
    yield "## How to read this\n"
    prompts = len(set(first.prompts))
    of_pairs = f"the {prompts} held-out prompts" if prompts < len(first.heldout) else f"the {prompts} held-out pairs"
    of_seeds = f" and the {len(seeds)} seeds" if len(seeds) > 1 else ": what another seed would change is not in them"
    yield _HOW_TO_READ.format(resamples=config.resamples, drawn=of_pairs + of_seeds)
    if REWARD in names:
        yield (
            f"Reward: of {config.reward_model} for the policy's own answers to the held-out prompts, of at most "
            f"{config.max_new_tokens} tokens, temperature {config.temperature:g}. {_incomplete(runs)}\n"
        )


def _incomplete(runs: Sequence[RunResult]) -> str:
    """How many answers were scored that are none, or not all of one."""
    told = [run.rewarded for run in runs if run.rewarded is not None]
    cut, empty, answers = (sum(getattr(each, name) for each in told) for name in ("cut", "empty", "answers"))
    return f"Of {answers:,} answers of all runs {cut:,} were cut there, and {empty:,} are empty."


def _weights(arm: Prepared) -> str:
    source = arm.arm.source + (f" ({arm.arm.source_options})" if arm.arm.source_options else "")
    parts = [
        source,
        *([f"layer {arm.arm.attn_source}"] if arm.arm.source in _LAYERED else []),
    ]
    if not arm.arm.sink_fix:
        parts.append("no sink fix")
    if arm.arm.uniform_mix:
        parts.append(f"{arm.arm.uniform_mix:g} even")
    if arm.arm.loss != "twdpo":
        parts.append(f"loss {arm.arm.loss}")
    if arm.arm.simpo_gamma is not None:
        parts.append(f"γ {arm.arm.simpo_gamma:g}")
    if arm.arm.ipo_mean:
        parts.append("means")
    return ", ".join(parts)


def shown(name: str, estimate: Estimate, *, signed: bool = False) -> str:
    """A metric's figure with its interval, in its heading's unit; signed: of a difference, * where 0 is left out."""
    _, factor, decimals = _SHOWN[name]
    if not math.isfinite(estimate.value):
        return "–"
    sign = "+" if signed else ""
    value, low, high = (f"{x * factor:{sign}.{decimals}f}" for x in (estimate.value, estimate.low, estimate.high))
    mark = " *" if signed and (estimate.low > 0 or estimate.high < 0) else ""
    return f"{value} [{low}, {high}]{mark}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
    yield ""
