"""The command `twdpo inspect`: parse arguments, call functions of the library, print what they return. No logic."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
        _check_pictures(html, example=example, layer=layer, as_json=as_json, orders=orders or sink_fix)
        _pictures(cache, html, compare, plots, examples, seed, dataset, split)
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


def _check_pictures(html: Path | None, *, example: str | None, layer: str | None, as_json: bool, orders: bool) -> None:
    if example is not None or layer is not None or as_json or orders:
        raise UsageError(
            "--html and --plots show many pairs and all layers; leave out --example, --layer, --orders, --sink-fix "
            "and --json"
        )
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--html {html}: give a file that ends in .html")
    if html is not None and html.is_dir():
        raise UsageError(f"--html {html} is a folder; give a file in it")


def _pictures(
    folder: Path,
    html: Path | None,
    compare: Path | None,
    plots: Path | None,
    count: int,
    seed: int,
    dataset: str | None,
    split: str | None,
) -> None:
    from twdpo import console, results
    from twdpo.inspect.drawn import left_out
    from twdpo.inspect.figures import gather_figures
    from twdpo.inspect.gather import draw
    from twdpo.inspect.plots import write_plots
    from twdpo.inspect.report.payload import default_layer
    from twdpo.inspect.report.write import report_layers, write_report
    from twdpo.weights_cache import WeightsCache, read_rejects
    from twdpo.weights_cache.manifest import Manifest
    from twdpo.weights_cache.statistics import summarize

    if compare is not None and html is None:
        raise UsageError("--compare needs --html FILE, the report in which the two caches are compared")
    out = console.stdout()
    with ExitStack() as stack:
        layers = report_layers(Manifest.load(folder))
        cache = stack.enter_context(WeightsCache.open(folder, layers=layers))
        other = None
        if compare is not None:
            layers = report_layers(Manifest.load(compare))
            other = stack.enter_context(WeightsCache.open(compare, layers=layers, text=False))
        drawn = draw(cache, count, seed=seed, dataset=dataset, split=split)
        if html is not None:
            with WeightsCache.open(folder, layers=[default_layer(cache)], text=False) as one:
                summary = results.summary_rows(summarize(one, one.layers), one.manifest, len(read_rejects(folder)))
            result = write_report(cache, drawn, html, summary=summary, compare=other)
            out.print(results.table(results.report_rows(result)))
            out.print(f"report: {result.out}", soft_wrap=True, markup=False)
        if plots is not None:
            figures = gather_figures(drawn.examples, cache.layers, default_layer(cache))
            title = f"{folder.absolute().name}, {len(drawn.examples):,} of {len(cache):,} pairs"
            for path in write_plots(figures, plots, title):
                out.print(str(path), soft_wrap=True, markup=False)
            for name, reason in left_out(figures).items():
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
