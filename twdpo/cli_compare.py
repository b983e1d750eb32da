"""The command `twdpo compare`: parse arguments, call one function of the library, print what it returns. No logic."""

from __future__ import annotations

from typing import Annotated

import typer


def compare(
    file: Annotated[str, typer.Argument(metavar="FILE", help="YAML file with the arms, betas and seeds.")],
    out: Annotated[
        str | None, typer.Option(help="Folder for runs and report; as the file says unless given.", show_default=False)
    ] = None,
) -> None:
    """Train and evaluate several ways of weighting tokens on the same pairs, and report how they differ.

    Every arm is trained at every beta and seed, in the same order and with the same summed weight, and measured on the
    same held-out pairs. Run the same command again to go on after an interruption: finished runs are kept. Several
    processes with the same command share the work, such as one on each GPU: CUDA_VISIBLE_DEVICES=1 twdpo compare FILE.
    """
    from twdpo import console, results
    from twdpo.evaluate.compare import compare as run
    from twdpo.evaluate.compare import load_config

    config = load_config(file, out)
    with console.compare_progress() as watch:
        done = run(config, watch)
    shown = console.stdout()
    shown.print(results.table(results.compare_rows(done)))
    for path in done.files:
        shown.print(str(path), soft_wrap=True, markup=False)
