"""The report and the plots of a cache in one call, as the command line and scripts ask for them.

Not for: which pairs (`gather.py`), the report (`report/`), the plots (`plots.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from twdpo import results
from twdpo.errors import UsageError
from twdpo.inspect.drawn import left_out
from twdpo.inspect.figures import gather_figures
from twdpo.inspect.gather import draw
from twdpo.inspect.plots import write_plots
from twdpo.inspect.report.payload import default_layer
from twdpo.inspect.report.write import ReportResult, report_layers, write_page
from twdpo.weights_cache import WeightsCache, read_rejects
from twdpo.weights_cache.manifest import Manifest
from twdpo.weights_cache.statistics import summarize


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """What was written: the report, the plots' files, and the plots that could not be drawn with the reason."""

    html: ReportResult | None = None
    plots: tuple[Path, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


def write_report(
    cache: Path | str,
    html: Path | str | None = None,
    *,
    plots: Path | str | None = None,
    compare: Path | str | None = None,
    examples: int = 1000,
    seed: int = 0,
    dataset: str | None = None,
    split: str | None = None,
) -> Pictures:
    """Write the report of `cache` to the file `html`, and its plots into the folder `plots`.

    `examples` pairs are drawn at random with `seed`; the summary in the report is of all. `compare`: another cache,
    whose weights of the same pairs the report shows beside. Texts: see `dataset` and `split` of `show`. Raises
    UsageError, CacheError, CacheCorrupt, DataError where `dataset` cannot be read, or StorageError.
    """
    file = _file(html)
    if compare is not None and file is None:
        raise UsageError("--compare needs --html FILE, the report in which the two caches are compared")
    folder, done = Path(cache), Pictures()
    with ExitStack() as stack:
        opened = stack.enter_context(WeightsCache.open(folder, layers=report_layers(Manifest.load(folder))))
        other = stack.enter_context(_other(Path(compare))) if compare is not None else None
        drawn = draw(opened, examples, seed=seed, dataset=dataset, split=split)
        figures = gather_figures(drawn.examples, opened.layers, default_layer(opened))
        if plots is not None:
            title = f"{folder.absolute().name}, {len(drawn.examples):,} of {len(opened):,} pairs"
            done = Pictures(plots=tuple(write_plots(figures, Path(plots), title)), left_out=left_out(figures))
        if file is None:
            return done
        layer = default_layer(opened)
        one = stack.enter_context(WeightsCache.open(folder, layers=[layer], text=False))
        # Without the little bars, which are for terminals.
        rows = results.summary_rows(summarize(one, one.layers), one.manifest, len(read_rejects(folder)))
        summary = {name: str(value).partition("\n")[0] for name, value in rows.items()}
        written = write_page(opened, drawn, file, summary=summary, figures=figures, compare=other)
    return Pictures(html=written, plots=done.plots, left_out=done.left_out)


def _file(html: Path | str | None) -> Path | None:
    if html is None:
        return None
    path = Path(html)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--html {path}: give a file that ends in .html")
    if path.is_dir():
        raise UsageError(f"--html {path} is a folder; give a file in it")
    return path


def _other(folder: Path) -> WeightsCache:
    return WeightsCache.open(folder, layers=report_layers(Manifest.load(folder)), text=False)
