"""The command `twdpo inspect`: parse arguments, call functions of the library, print what they return. No logic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twdpo.cli_cache import CachePath
from twdpo.errors import UsageError

if TYPE_CHECKING:
    from twdpo.weights_cache import WeightsCache


def inspect(
    cache: CachePath,
    example: Annotated[
        str | None, typer.Option(help="Show one pair: a hash (or its beginning), a number, or `random`.")
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            help="Which weights: a stored layer, `mean`, `mean:7,15` or `last`.  [default: as training takes them]",
            show_default=False,
        ),
    ] = None,
    sink_fix: Annotated[
        bool, typer.Option("--sink-fix/--no-sink-fix", help="Show a pair's weights as training sees them.")
    ] = False,
    orders: Annotated[
        bool, typer.Option("--orders", help="Judge the pair again and show its weights in both orders.")
    ] = False,
    device: Annotated[
        str, typer.Option(help="Where --orders runs the judge: auto, cpu, cuda, cuda:1 or mps.")
    ] = "auto",
    dataset: Annotated[
        str | None,
        typer.Option(help="Where the texts are, if not in the cache.  [default: as annotated]", show_default=False),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of --dataset.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a report to open in a browser to this file.", show_default=False)
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="Another cache, shown beside this one in the report.", show_default=False),
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Draw plots into this folder.", show_default=False)] = None,
    examples: Annotated[int, typer.Option(help="Pairs drawn at random for --html and --plots.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of that draw.")] = 0,
) -> None:
    """Look at a cache: a summary, one pair with every token shaded by its weight, a report, plots."""
    from twdpo.inspect.examples import open_for

    if html is not None or plots is not None:
        if example is not None or layer is not None or as_json or orders or sink_fix:
            raise UsageError(
                "--html and --plots show many pairs and all layers; leave out --example, --layer, --orders, "
                "--sink-fix and --json"
            )
        choices = {"compare": compare, "examples": examples, "seed": seed, "dataset": dataset, "split": split}
        _pictures(cache, html, plots, **choices)
        return
    if compare is not None:
        raise UsageError("--compare needs --html FILE, the report in which the two caches are compared")
    if example is None and (orders or sink_fix):
        raise UsageError(f"{'--orders' if orders else '--sink-fix'} needs --example, which says of which pair")
    with open_for(cache, layer, text=example is not None) as opened:
        if example is None:
            _summary(opened, as_json=as_json)
        else:
            _example(opened, example, dataset, split, sink_fix=sink_fix, device=device if orders else None)


def _pictures(folder: Path, html: Path | None, plots: Path | None, **choices: Any) -> None:
    from twdpo import console, results
    from twdpo.inspect import write_report

    done = write_report(folder, html=html, plots=plots, **choices)
    out = console.stdout()
    if done.html is not None:
        out.print(results.table(results.report_rows(done.html)))
        out.print(f"report: {done.html.out}", soft_wrap=True, markup=False)
    for path in done.plots:
        out.print(str(path), soft_wrap=True, markup=False)
    for name, reason in done.left_out.items():
        out.print(f"no plot {name}: {reason}", soft_wrap=True, markup=False)


def _summary(opened: WeightsCache, *, as_json: bool) -> None:
    from twdpo import console, results
    from twdpo.weights_cache import read_rejects
    from twdpo.weights_cache.statistics import summarize

    summary, rejected = summarize(opened, opened.layers), len(read_rejects(opened.folder))
    out = console.stdout()
    if as_json:
        out.print_json(json.dumps(results.summary_json(summary, opened.manifest, rejected)), ensure_ascii=True)
    else:
        out.print(results.table(results.summary_rows(summary, opened.manifest, rejected)))


def _example(
    opened: WeightsCache,
    which: str,
    dataset: str | None,
    split: str | None,
    *,
    sink_fix: bool,
    device: str | None,
) -> None:
    from twdpo import console
    from twdpo.inspect.examples import find_example
    from twdpo.inspect.views import example_view, orders_view

    found = find_example(opened, which, dataset=dataset, split=split)
    out = console.stdout()
    color = console.has_color(out)
    if device is None:
        out.print(example_view(found, opened.layers, color=color, sink_fixed=sink_fix))
        return
    from twdpo.pipeline.annotate.orders import judge_again

    again = judge_again(opened.recipe, found.pair, opened.layers, device=device)
    out.print(
        orders_view(found, again.row, (again.chosen, again.rejected), opened.layers, color=color, sink_fixed=sink_fix)
    )
