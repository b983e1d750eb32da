"""The commands `twdpo cache …`: parse arguments, call one function of the library, print what it returns. No logic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from twdpo.errors import UsageError
from twdpo.options import configured
from twdpo.pipeline.importing.config import HELP as IMPORT_HELP
from twdpo.pipeline.importing.config import ImportConfig

app = typer.Typer(help="Look after a weights cache, share it, import one.", no_args_is_help=True, rich_markup_mode=None)

CachePath = Annotated[Path, typer.Argument(metavar="CACHE", help="Folder of the weights cache.", show_default=False)]
Repository = Annotated[str, typer.Argument(metavar="REPOSITORY", help="Data set on the hub: owner/name.")]


def _layers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--layers {text!r} is not understood; write numbers such as 7,29") from None


@app.command()
def info(cache: CachePath) -> None:
    """Show a cache's recipe, sources and counts."""
    from twdpo import console
    from twdpo.weights_cache import WeightsCache

    with WeightsCache.open(cache) as opened:
        console.stdout().print_json(json.dumps(opened.manifest.to_json()))


@app.command()
def verify(cache: CachePath) -> None:
    """Read every page of a cache, checksums on, and check every invariant."""
    from twdpo import console
    from twdpo.weights_cache import verify as run

    with console.counting("verifying", "shards") as show:
        report = run(cache, progress=show)
    out = console.stdout()
    for problem in report.problems:
        out.print(problem, soft_wrap=True, markup=False)
    if report.problems:
        raise typer.Exit(1)
    out.print(f"{cache}: {report.rows:,} rows in {report.shards} shards, all sound", soft_wrap=True, markup=False)


@app.command()
def compact(
    cache: CachePath,
    shard_mb: Annotated[int, typer.Option(help="Size of a shard in megabytes, about.")] = 256,
) -> None:
    """Rewrite many small shards into few of publishing size, and drop duplicates; no value changes."""
    from twdpo import console, results
    from twdpo.weights_cache import compact as run

    with console.counting("rewriting", "rows") as show:
        result = run(cache, shard_bytes=shard_mb << 20, progress=show)
    console.stdout().print(results.table(results.compact_rows(result)))


@app.command()
def merge(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Cache to merge into; made if it is not there.")],
    caches: Annotated[list[Path], typer.Argument(metavar="CACHE...", help="Caches of the same recipe.")],
) -> None:
    """Put caches of one recipe together: other workers' parts, other data sets."""
    from twdpo import console, results
    from twdpo.weights_cache import merge as run

    with console.counting("copying", "shards") as show:
        result = run(out, caches, progress=show)
    console.stdout().print(results.table(results.merge_rows(result)))


@app.command()
def export(
    cache: CachePath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New file (.jsonl, .jsonl.gz, .jsonl.zst) or folder.")],
    layers: Annotated[
        str | None, typer.Option(help="Layers, such as 7,29.  [default: all]", show_default=False)
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Where the texts are, if not in the cache.", show_default=False)
    ] = None,
    split: Annotated[str | None, typer.Option(help="Its split.", show_default=False)] = None,
    text: Annotated[
        bool | None,
        typer.Option(
            "--text/--no-text",
            help="Write prompts and answers, from the data sets that the cache names if need be.  "
            "[default: where the cache holds them or --dataset is given]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a cache as JSON lines, or as a folder for `datasets`, with the texts."""
    from twdpo import console, results
    from twdpo.weights_cache import export as run

    with console.counting("writing", "pairs") as show:
        result = run(cache, out, layers=_layers(layers), dataset=dataset, split=split, text=text, progress=show)
    console.stdout().print(results.table(results.export_rows(result)))


@app.command("import")
@configured(ImportConfig, IMPORT_HELP, positional=("dataset", "out"))
def import_(config: ImportConfig) -> None:
    """Make a cache of weights that others published: AttentionPO's data sets, or files as TIS-DPO has them.

    Run the same command again to go on after an interruption.
    """
    from twdpo import console, results
    from twdpo.pipeline.importing import import_weights

    with console.counting("importing", "pairs") as show:
        result = import_weights(config, on_progress=lambda progress: show(progress.seen, progress.total))
    console.stdout().print(results.table(results.import_rows(result)))


@app.command()
def push(
    cache: CachePath,
    repository: Repository,
    private: Annotated[bool, typer.Option("--private", help="Of a data set that is made now: for you alone.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch.  [default: main]", show_default=False)] = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence for the card.  [default: the source data set's]", show_default=False)
    ] = None,
    message: Annotated[str | None, typer.Option(help="Commit message.", show_default=False)] = None,
) -> None:
    """Publish a cache as a data set on the hub, with its card, statistics and a picture; only what is new is sent.

    The cache is verified first. Log in with `hf auth login`.
    """
    from twdpo import console, results
    from twdpo.inspect.examples import card_example
    from twdpo.weights_cache import push as run

    with console.counting("sending", "bytes") as show:
        result = run(
            cache,
            repository,
            private=private,
            revision=revision,
            licence=licence,
            example=card_example(cache),
            message=message,
            progress=show,
        )
    console.stdout().print(results.table(results.push_rows(result)))


@app.command()
def pull(
    repository: Repository,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder.")] = Path("weights_cache"),
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit.  [default: the newest]", show_default=False)
    ] = None,
) -> None:
    """Fetch a cache from the hub, check every byte of it, and only then put it in place.

    Run the same command again to go on after a broken transfer.
    """
    from twdpo import console, results
    from twdpo.weights_cache import pull as run

    with console.counting("fetching", "bytes") as show:
        result = run(repository, out, revision=revision, progress=show)
    console.stdout().print(results.table(results.pull_rows(result)))
