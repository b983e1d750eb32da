"""What stage one costs from sixty thousand pairs to a billion, on one GPU to a thousand: a model with measured rates.

    python benchmarks/scale.py measure PAIRS.parquet    the rates of one core, half a minute
    python benchmarks/scale.py table                    the tables of docs/scale.md
    python benchmarks/scale.py failures                 lost machines, simulated and by formula

The model is `scale_model.py`, with all that it takes for given.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace

import numpy as np
from scale_failures import Losses, Machines, expected, simulate
from scale_model import ASSUMED, DAY, GPUS, JUDGES, PAIRS, PASS_TOKENS, RATES, SHARD_ROWS, TOKENS, Run, Way

#: Of what `twdpo cache compact` makes.
_COMPACTED = 256 << 20
_MIDDLE = ASSUMED.mfu[1]
_PAIRS = {60_000: "60 thousand", 10_000_000: "10 million", 1_000_000_000: "1 billion"}


def span(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 1:
        return "under 1 s"
    for unit, length, until in (("s", 1.0, 100.0), ("min", 60.0, 6000.0), ("h", 3600.0, 96 * 3600.0)):
        if seconds < until:
            return f"{number(seconds / length)} {unit}"
    return f"{number(seconds / DAY)} days"


def number(value: float) -> str:
    """A count for people, to two or three digits."""
    if value < 0.01:
        return "under 0.01"
    if value < 10:
        return f"{value:.2g}"
    digits = 10 ** max(math.floor(math.log10(value)) - 2, 0)
    return f"{round(value / digits) * digits:,.0f}"


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    unit = next((u for u in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if count >= u[0]), (1e3, "kB"))
    return f"{count / unit[0]:.3g} {unit[1]}"


def _table(title: str, rows: Iterable[Sequence[str]]) -> str:
    names = title.split("|")
    lines = ["| " + " | ".join(cells) + " |" for cells in (names, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(names), *lines[1:]])


def _runs(gpus: Sequence[int], pairs: Sequence[int] = PAIRS, *, way: Way = "parts") -> Iterator[Run]:
    """What fits: a judge needs its GPUs."""
    for judge in JUDGES:
        for many in pairs:
            for each in gpus:
                if each >= judge.gpus:
                    yield Run(judge=judge, pairs=many, gpus=each, mfu=_MIDDLE, way=way)


def _who(run: Run) -> list[str]:
    return [run.judge.name, _PAIRS[run.pairs], number(run.gpus)]


def judges() -> str:
    """What a GPU holds and does, as far as the judge is concerned."""
    rows = []
    for judge in JUDGES:
        paces = [1 / Run(judge=judge, pairs=1, gpus=judge.gpus, mfu=mfu).judging / judge.gpus for mfu in ASSUMED.mfu]
        flops = f"{judge.pair_flops(TOKENS) / 1e12:.3g}"
        rows.append([judge.name, str(judge.gpus), size(judge.memory(PASS_TOKENS)), flops, *map(number, paces)])
    title = "judge|GPUs a copy|memory a GPU|TFLOP a pair|pairs/s a GPU at 30 %|at 40 %|at 50 %"
    return _table(title, rows)


def times() -> str:
    """The plain way: `--shard i/n`, all into one folder."""
    rows = []
    for run in _runs(GPUS):
        walls = [span(replace(run, mfu=mfu).wall) for mfu in ASSUMED.mfu]
        hours = number(run.wall * run.gpus / 3600)
        rows.append([*_who(run), *walls, hours, number(run.files), run.limit])
    return _table("judge|pairs|GPUs|at 30 %|at 40 %|at 50 %|GPU hours at 40 %|files|longest", rows)


def parts() -> str:
    """What each part of a run takes by itself, the plain way."""
    rows = []
    for run in _runs(GPUS[1:], PAIRS[1:]):
        seconds = (run.judging, run.prompts, run.reading, run.writing, run.disk, run.counting)
        rows.append([*_who(run), *map(span, seconds)])
    return _table("judge|pairs|GPUs|GPU|prompts|reading|writing|file system|counting", rows)


def divided() -> str:
    """On the most GPUs: Ray, a file and a folder for each worker, and for the smallest judge several workers a GPU."""
    rows = []
    for plain in _runs(GPUS[-1:]):
        ray, files = replace(plain, way="ray"), replace(plain, way="files")
        more = replace(files, a_gpu=4) if files.judge is JUDGES[0] else files
        cells = [f"{span(each.wall)}, {each.limit}" for each in (plain, ray, files)]
        last = f"{span(more.wall)}, {more.limit}" if more is not files else "—"
        rows.append([*_who(plain)[:2], *cells, last, number(more.wall * plain.gpus / 3600)])
    return _table("judge|pairs|parts in one folder|Ray|a file and a folder each|and four workers a GPU|GPU hours", rows)


def sizes() -> str:
    """What the cache takes, whoever wrote it."""
    rows = []
    for pairs in PAIRS:
        whole = pairs * RATES.row
        rows.append(
            [
                _PAIRS[pairs],
                size(pairs * RATES.source),
                size(whole),
                number(math.ceil(pairs / SHARD_ROWS)),
                number(math.ceil(whole / _COMPACTED)),
                span(pairs / RATES.compacted),
                span(whole / RATES.merged),
                size(pairs * RATES.index),
                size(pairs * RATES.index_peak),
                size(pairs * RATES.hash_set),
            ]
        )
    title = (
        "pairs|data set|cache|shards of 512 rows|compacted|compacting, one process|merging, one process"
        "|index|while it is made|hashes in a run"
    )
    return _table(title, rows)


def lost() -> str:
    """What machines that fail cost, with a file and a folder for each worker."""
    rows = []
    for run in _runs(GPUS[1:], PAIRS[1:], way="files"):
        losses = run.losses
        again = run.pairs_of(losses.redone)
        a_day = ASSUMED.interruptions * run.gpus
        rows.append(
            [
                *_who(run),
                span(run.stream),
                number(a_day),
                number(losses.lost),
                number(again),
                span(losses.mean),
                span(losses.slowest),
            ]
        )
    title = "judge|pairs|GPUs|time|lost a day|lost in all|pairs again|added, mean machine|added, slowest"
    return _table(title, rows)


TABLES: dict[str, Callable[[], str]] = {each.__name__: each for each in (judges, times, parts, divided, sizes, lost)}


def fail(rounds: int, faster: Sequence[float]) -> None:
    """Print the formula beside the mean of simulated runs, at the assumed rate of losses and at higher ones."""
    rows = []
    for judge in JUDGES[1:]:
        run = Run(judge=judge, pairs=PAIRS[-1], gpus=GPUS[-1], mfu=_MIDDLE, way="files")
        for factor in faster:
            machines: Machines = replace(run.machines, rate=run.machines.rate * factor)
            runs = [simulate(machines, seed=seed) for seed in range(rounds)]
            mean = Losses(**{f.name: float(np.mean([getattr(each, f.name) for each in runs])) for f in fields(Losses)})
            for name, losses in (("formula", expected(machines)), ("simulated", mean)):
                again = number(run.pairs_of(losses.redone))
                times = span(losses.mean), span(losses.slowest)
                rows.append([judge.name, f"{factor:g}", name, number(losses.lost), again, *times])
    print(_table("judge|rate of losses|by|machines lost|pairs again|added, mean machine|added, slowest", rows))


def main() -> None:
    """Measure, count or simulate, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("dataset")
    commands.add_parser("table")
    failing = commands.add_parser("failures")
    failing.add_argument("--rounds", type=int, default=200)
    failing.add_argument("--faster", type=float, nargs="+", default=[1.0, 100.0])
    options = parser.parse_args()
    if options.command == "measure":
        from scale_rates import measure

        measure(options.dataset)
    elif options.command == "table":
        for name, make in TABLES.items():
            print(f"{name}\n\n{make()}\n")
    else:
        from machine import describe

        fail(options.rounds, options.faster)
        print(describe())


if __name__ == "__main__":
    main()
