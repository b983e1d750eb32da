"""How much one order alone differs from both: the weights and the verdict of a judge, on real pairs.

    python benchmarks/position_bias.py ultrafeedback.parquet [--plot docs/images/position-bias]

The pairs are drawn at random from those whose judge prompts have at most `--max-tokens` tokens in both orders. Each is
judged in both; p is an answer's weights as a distribution over its tokens. Prints Markdown tables: by layer, by the
answer's place, by its length, and the verdict. Not for: whether weighting helps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from numpy.typing import NDArray
from position_bias_figures import Answer, Array, Shape, Verdicts, compare, interval

from twdpo.plotting import BLUE, GREEN, INK, QUIET, VERMILION, picture_bytes, plain_style, settle
from twdpo.preferences import Pair, load, resolve
from twdpo.weights_cache import SideWeights

#: Upper ends of the buckets of an answer's judged tokens.
LENGTHS = (64, 192, 1 << 30)
WINDOW = 8


def judge_pairs(options: argparse.Namespace) -> tuple[list[Answer], Verdicts, int]:
    """Judge so many pairs, drawn with seed 0; also how many were short enough to be drawn."""
    from twdpo.pipeline.annotate.config import AnnotateConfig
    from twdpo.pipeline.annotate.judge import Judge
    from twdpo.pipeline.annotate.prompt import load_template
    from twdpo.pipeline.annotate.rows import order_weights

    config = AnnotateConfig(dataset=options.dataset, model=options.model, dtype=options.dtype)
    judge = Judge.load(config, load_template(options.judge_template), None, None)
    prompts = {}
    for pair in (item for item in load(resolve(options.dataset)) if isinstance(item, Pair)):
        both = judge.builder.build(pair, "cr"), judge.builder.build(pair, "rc")
        if max(len(prompt.ids) for prompt in both) <= options.max_tokens:
            prompts[pair.example_hash] = both
    rng = np.random.default_rng(0)
    keys = sorted(prompts)
    drawn = [keys[i] for i in sorted(rng.permutation(len(keys))[: options.pairs])]
    answers: list[Answer] = []
    verdicts: list[tuple[float, float]] = []
    for start in range(0, len(drawn), WINDOW):
        window = [prompts[key] for key in drawn[start : start + WINDOW]]
        read = judge.engine.read([p for both in window for p in both], judge.layers, judge.verdict_ids)
        for number, both in enumerate(window):
            cr, rc = readings = read[2 * number], read[2 * number + 1]
            sides = order_weights(both, readings, judge.layers)
            answers += compare_pair(start + number, sides, (cr.attention, rc.attention), rng)
            verdicts.append((_prefers_a(cr.verdict_logits), _prefers_a(rc.verdict_logits)))
    of_cr, of_rc = np.array(verdicts).T
    return answers, Verdicts(cr=of_cr, rc=of_rc), len(prompts)


def compare_pair(
    pair: int,
    sides: Mapping[str, tuple[SideWeights, SideWeights]],
    rows: Sequence[Mapping[int, tuple[NDArray[np.float32], NDArray[np.float32]]]],
    rng: np.random.Generator,
) -> Iterator[Answer]:
    """Both answers at every layer. The chosen one is answer A in the first order, the rejected one in the second."""
    for side, at_a in (("chosen", 0), ("rejected", 1)):
        orders = sides[side]
        for layer in orders[0].weights:
            weights = orders[at_a].weights[layer], orders[1 - at_a].weights[layer]
            shares = float(rows[at_a][layer][0].sum()), float(rows[1 - at_a][layer][1].sum())
            yield compare(pair, layer, weights, shares, rng)


def _prefers_a(logits: tuple[float, float] | None) -> float:
    assert logits is not None
    return float(1.0 / (1.0 + np.exp(logits[1] - logits[0])))


def kept(answers: Sequence[Answer], verdicts: Verdicts, eligible: int, machine: str) -> dict[str, Any]:
    """All that was read, as JSON has it."""
    both = {"cr": verdicts.cr.tolist(), "rc": verdicts.rc.tolist()}
    return {"answers": [asdict(a) for a in answers], "verdicts": both, "eligible": eligible, "machine": machine}


def restored(content: Mapping[str, Any]) -> tuple[list[Answer], Verdicts, int, str]:
    """The reverse of `kept`."""
    answers = [
        Answer(**(each | {"places": tuple(Shape(**place) for place in each["places"])})) for each in content["answers"]
    ]
    verdicts = Verdicts(**{name: np.array(values) for name, values in content["verdicts"].items()})
    return answers, verdicts, content["eligible"], content["machine"]


def column(answers: Iterable[Answer], name: str) -> Array:
    """One figure of each answer; those that are not defined are left out."""
    values = np.array([getattr(answer, name) for answer in answers], dtype=np.float64)
    return np.asarray(values[~np.isnan(values)])


def quartiles(values: Array) -> str:
    """Median and quartiles, as the tables have them."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def by_layer(answers: Sequence[Answer]) -> str:
    """How much the two orders share, at each layer."""
    lines = [
        "| layer | orders share | mean, 95 % interval | one order shares with the mean | after the sink fix "
        "| rank correlation | shuffled orders share | the mean shares with even weights |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for layer in sorted({answer.layer for answer in answers}):
        those = [answer for answer in answers if answer.layer == layer]
        shared = column(those, "agreement")
        low, high = interval(shared.tolist(), [answer.pair for answer in those])
        lines.append(
            f"| {layer} | {quartiles(shared)} | {shared.mean():.3f}, {low:.3f} to {high:.3f} "
            f"| {np.median((1 + shared) / 2):.2f} | {np.median(column(those, 'fixed')):.2f} "
            f"| {quartiles(column(those, 'rank'))} | {np.median(column(those, 'unrelated')):.2f} "
            f"| {np.median(column(those, 'even')):.2f} |"
        )
    return "\n".join(lines)


def by_place(answers: Sequence[Answer]) -> str:
    """How an answer's weights lie where it stands first, and where it stands second; medians."""
    lines = [
        "| layer | of the row on the answer, A / B | on its first token | effective tokens | mean place "
        "| rank correlation with the mean |",
        "|---|---|---|---|---|---|",
    ]
    for layer in sorted({answer.layer for answer in answers}):
        those = [answer for answer in answers if answer.layer == layer]
        cells = []
        for name in ("share", "first", "effective", "centre", "mean_rank"):
            a, b = (np.nanmedian([getattr(answer.places[place], name) for answer in those]) for place in (0, 1))
            cells.append(f"{a:.3f} / {b:.3f}" if name in ("share", "first") else f"{a:.2f} / {b:.2f}")
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by_length(answers: Sequence[Answer], layer: int) -> str:
    """The deepest layer by the answer's judged tokens."""
    lines = [
        "| tokens of the answer | answers | orders share | after the sink fix | rank correlation | shuffled |",
        "|---|---|---|---|---|---|",
    ]
    least = 1
    for most in LENGTHS:
        those = [a for a in answers if a.layer == layer and least <= a.tokens <= most]
        name = f"{least} to {most}" if most < LENGTHS[-1] else f"{least} and more"
        least = most + 1
        if those:
            lines.append(
                f"| {name} | {len(those)} | {quartiles(column(those, 'agreement'))} "
                f"| {np.median(column(those, 'fixed')):.2f} | {quartiles(column(those, 'rank'))} "
                f"| {np.median(column(those, 'unrelated')):.2f} |"
            )
    return "\n".join(lines)


def verdict_table(verdicts: Verdicts) -> str:
    """The verdict's figures."""
    lines = ["| | |", "|---|---|"]
    for name, value in verdicts.figures.items():
        plain = name.startswith(("mean", "correlation"))
        lines.append(f"| {name} | {value:.2f} |" if plain else f"| {name} | {100 * value:.0f} % |")
    return "\n".join(lines)


def draw(answers: Sequence[Answer], verdicts: Verdicts, path: Path) -> None:
    """Three panels: what the orders share by layer and by length, and the verdict in both orders."""
    from matplotlib.figure import Figure

    layers = sorted({answer.layer for answer in answers})
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, middle, right = (axis for axis in figure.subplots(1, 3))
    kinds = (
        ("agreement", BLUE, "as stored"),
        ("fixed", GREEN, "after the sink fix"),
        ("unrelated", QUIET, "one of them shuffled"),
    )
    for shift, (name, colour, label) in zip((-0.2, 0.0, 0.2), kinds, strict=True):
        places = np.arange(len(layers)) + shift
        spread = [
            np.quantile(column((a for a in answers if a.layer == layer), name), (0.1, 0.25, 0.5, 0.75, 0.9))
            for layer in layers
        ]
        lowest, low, median, high, highest = np.array(spread).T
        left.vlines(places, lowest, highest, color=colour, linewidth=1)
        left.vlines(places, low, high, color=colour, linewidth=5, alpha=0.5)
        left.plot(places, median, "o", color=colour, markersize=5, label=label)
    left.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    left.set(xlabel="layer", ylabel="weight that the two orders share", ylim=(0, 1))
    legend = left.legend(
        frameon=False,
        fontsize=8,
        ncols=3,
        loc="lower left",
        bbox_to_anchor=(-0.04, 0.99),
        handletextpad=0.1,
        columnspacing=0.9,
    )
    legend.set_in_layout(False)  # it may stand over the next panel, which has no title
    deepest = [answer for answer in answers if answer.layer == layers[-1]]
    middle.plot([a.tokens for a in deepest], [a.agreement for a in deepest], ".", color=BLUE, alpha=0.6)
    middle.set_xscale("log", base=2)
    middle.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    middle.set(xlabel="tokens of the answer", ylabel=f"shared, layer {layers[-1]}", ylim=(0, 1))
    right.axhspan(0.5, 1, xmin=0, xmax=0.5, color=VERMILION, alpha=0.07, linewidth=0)
    right.axhspan(0, 0.5, xmin=0.5, xmax=1, color=VERMILION, alpha=0.07, linewidth=0)
    right.plot(verdicts.cr, 1 - verdicts.rc, ".", color=VERMILION, alpha=0.7)
    right.plot([0, 1], [0, 1], color=INK, linewidth=0.7)
    right.set(
        xlabel="P(chosen), chosen is answer A",
        ylabel="P(chosen), chosen is answer B",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    right.set_title("shaded: the order decides", fontsize=9)
    settle(figure)
    for kind in ("png", "svg"):
        path.with_suffix(f".{kind}").write_bytes(picture_bytes(figure, kind))


def main() -> None:
    """Judge, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--max-tokens", type=int, default=1024, help="of a judge prompt")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--judge-template", default=None)
    parser.add_argument("--json", type=Path, default=None, help="keep what was read here; drawn and printed from it")
    parser.add_argument("--plot", type=Path, default=None, help="files to draw to, without the ending")
    options = parser.parse_args()
    if options.json and options.json.exists():
        answers, verdicts, eligible, machine = restored(json.loads(options.json.read_text()))
    else:
        started = time.perf_counter()
        answers, verdicts, eligible = judge_pairs(options)
        machine = f"{describe()}; {time.perf_counter() - started:.0f} s"
        if options.json:
            options.json.write_text(json.dumps(kept(answers, verdicts, eligible, machine)))
    layer = max(answer.layer for answer in answers)
    print(machine)
    print(f"{len(verdicts.cr)} pairs of {eligible:,} with at most {options.max_tokens:,} tokens a judge prompt\n")
    for table in (by_layer(answers), by_place(answers), by_length(answers, layer), verdict_table(verdicts)):
        print(table, end="\n\n")
    if options.plot:
        with plain_style():
            draw(answers, verdicts, options.plot)


if __name__ == "__main__":
    main()
