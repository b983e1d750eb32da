"""The command `twdpo inspect`: parse arguments, call one function of the library, print what it returns. No logic."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from twdpo.cli_cache import CachePath


def inspect(
    cache: CachePath,
    example: Annotated[
        str | None, typer.Option(help="Show one pair: a hash (or its beginning), a number, or `random`.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Stored layer to look at.  [default: the deepest]")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Where the texts are, if not in the cache.  [default: as annotated]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON.")] = False,
) -> None:
    """Look at a cache: a summary, or one pair with every token shaded by its weight."""
    from twdpo import console, results
    from twdpo.inspect.examples import example_view, find_example
    from twdpo.weights_cache import WeightsCache
    from twdpo.weights_cache.statistics import summarize

    out = console.stdout()
    with WeightsCache.open(cache) as opened:
        if example is None:
            summary = summarize(opened, layer)
            out.print_json(json.dumps(results.summary_json(summary))) if as_json else out.print(
                results.table(results.summary_rows(summary))
            )
        else:
            found = find_example(opened, example, dataset=dataset)
            out.print(
                example_view(found, layer if layer is not None else opened.layers[-1], color=console.has_color(out))
            )
