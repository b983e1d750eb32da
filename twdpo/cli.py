"""The commands: parse arguments, call one function of the library, print what it returns. No logic.

Heavy imports stand inside the commands, so that `twdpo --help` answers at once.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from twdpo import __version__, cli_benchmarks, cli_cache, cli_compare, cli_evaluate, cli_inspect, recipes
from twdpo.errors import Interrupted, TwdpoError
from twdpo.options import configured, json_object
from twdpo.pipeline.annotate.config import HELP as ANNOTATE_HELP
from twdpo.pipeline.annotate.config import AnnotateConfig
from twdpo.pipeline.train.config import HELP as TRAIN_HELP
from twdpo.pipeline.train.config import TrainConfig
from twdpo.pipeline.train.launch import is_main, reports

if TYPE_CHECKING:
    from types import FrameType

app = typer.Typer(
    name="twdpo",
    help="Token-weighted DPO: read token weights off a language model's attention, cache them, train with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_cache.app, name="cache")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"twdpo {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
@configured(AnnotateConfig, ANNOTATE_HELP, {"chat_template_kwargs": json_object})
def annotate(config: AnnotateConfig) -> None:
    """Stage one: judge preference pairs and write token weights into a cache.

    Each pair is shown to the judge twice, in both orders, and its attention at the moment of the verdict becomes one
    weight per token. Run the same command again to go on after an interruption: what is judged is kept.
    """
    from twdpo import console, results
    from twdpo.pipeline.annotate import annotate as run

    with console.annotate_progress() as show:
        result = run(config, on_progress=show)
    out = console.stdout()
    out.print(results.table(results.annotate_rows(result)))
    others = "" if result.shard is None else "the other parts, then "
    out.print(f"\nnext: {others}twdpo train --weights {result.out}/", soft_wrap=True)


@app.command()
@configured(TrainConfig, TRAIN_HELP, find=recipes.find)
def train(config: TrainConfig) -> None:
    """Stage two: train a policy on the pairs with their cached token weights.

    Data set and model are those that the cache names, unless others are given. Run the same command again to go on
    after an interruption, from the last checkpoint.
    """
    from twdpo import console, results
    from twdpo.pipeline.train import train as run

    with console.train_progress() as show:
        result = run(config, show)
    if is_main():
        console.stdout().print(results.table(results.train_rows(result)))


app.command()(cli_inspect.inspect)
app.command("eval")(cli_evaluate.evaluate)
app.command()(cli_compare.compare)
app.command()(cli_benchmarks.generate)
app.command()(cli_benchmarks.judge)


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="Folder for everything the demo makes.")] = "twdpo-demo",
    steps: Annotated[int, typer.Option(help="Optimizer steps of the training run.")] = 12,
) -> None:
    """See the whole method on 108 embedded pairs and a real 135M model: annotate, inspect, train, evaluate."""
    from twdpo.demo import run

    run(out, steps=steps)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(args=arguments, standalone_mode=False)
    except TwdpoError as error:
        return _complain(str(error), error.exit_code) if reports(error) else error.exit_code
    except KeyboardInterrupt:
        return _complain("stopped", Interrupted.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except Exception as error:
        # Typer carries its own copy of click, in a place that depends on its version: known by its two attributes.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _complain(f"{error.format_message()} (--help shows what there is)", error.exit_code)
        raise
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int) -> int:
    print(f"twdpo: {' '.join(message.split())}", file=sys.stderr)
    return code


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    """Let a scheduler's SIGTERM stop a run as cleanly as Ctrl-C does."""
    raise KeyboardInterrupt
