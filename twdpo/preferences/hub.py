"""Data sets of the Hugging Face hub, through `datasets` and its cache.

Not for: streaming (a data set is downloaded once, then memory-mapped), or local files (`files.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from twdpo.errors import DataError, HubUnavailable, first_line, storage_error
from twdpo.preferences.formats import check_columns
from twdpo.preferences.rows import Rows
from twdpo.preferences.sources import Source, pick_split
from twdpo.preferences.tables import DatasetRows

if TYPE_CHECKING:
    import datasets

#: Seconds for the one request that finds out whether the hub answers at all.
_TIMEOUT = 10.0

_INSTEAD = "download it where the hub can be reached and pass its file or folder, or use --dataset demo"


class _NoAnswer(HubUnavailable):
    """The hub itself does not answer, so that it may still have been downloaded before."""


def open_hub(source: Source) -> tuple[Rows, Source]:
    """The rows of a hub data set, and `source` with the split and the commit that were read.

    Where the hub does not answer, a copy in the cache of `datasets` serves if there is one. Raises HubUnavailable where
    there is neither, or no such repository; DataError where it holds no such split or configuration, or no pairs.
    """
    with quiet():
        try:
            pinned = replace(source, revision=_commit(source))
        except _NoAnswer as no_answer:
            with _offline():
                cached = _cached_commit(source)
                if cached is None:
                    raise no_answer from None
                dataset, split = _download(replace(source, revision=None))
            pinned = replace(source, revision=cached)
        else:
            dataset, split = _download(pinned)
    check_columns(dataset.column_names, source.location)
    if len(dataset) == 0:
        raise DataError(f"split {split} of {source.location} holds no rows")
    return DatasetRows(dataset, source.location), replace(pinned, split=split)


def _commit(source: Source) -> str | None:
    """The commit that `source.revision` means now, found with one short request.

    `datasets` alone would try for half a minute to reach a hub that is not there.
    """
    import huggingface_hub
    from huggingface_hub import errors

    where = source.location
    try:
        return huggingface_hub.HfApi().dataset_info(where, revision=source.revision, timeout=_TIMEOUT).sha
    except errors.OfflineModeIsEnabled as error:
        raise _no_answer(source, "HF_HUB_OFFLINE is set") from error
    except errors.RevisionNotFoundError as error:
        raise HubUnavailable(f"{where} has no revision {source.revision!r} on the hub: check the name") from error
    except errors.RepositoryNotFoundError as error:
        raise HubUnavailable(
            f"no data set {where} on the hub that you may read: check the name; "
            "if it is private or gated, log in with `hf auth login`"
        ) from error
    except Exception as error:  # the classes of the transport differ between releases of huggingface_hub
        raise _no_answer(source, first_line(error, limit=100)) from error


def _no_answer(source: Source, why: str) -> _NoAnswer:
    local = f"there is no local {source.location}, and " if source.name.startswith(source.location) else ""
    return _NoAnswer(f"{local}the hub cannot be reached for {source.location} ({why}): {_INSTEAD}")


def _cached_commit(source: Source) -> str | None:
    """The commit of the copy that `datasets` has in its cache; None where it has none, or another revision."""
    import datasets

    try:
        commit = str(datasets.load_dataset_builder(source.location, source.config).hash)
    except Exception:  # whatever is wrong with the cache, the user's trouble is that the hub does not answer
        return None
    return commit if source.revision is None or commit.startswith(source.revision) else None


def _download(source: Source) -> tuple[datasets.Dataset, str]:
    """The data set, out of the cache or downloaded into it, and its split."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    where, config, revision = source.location, source.config, source.revision
    try:
        splits = datasets.get_dataset_split_names(where, config, revision=revision)
        split = pick_split(splits, source.split, where)
        return datasets.load_dataset(where, config, split=split, revision=revision), split
    except DataError:
        raise
    except DatasetNotFoundError as error:
        remedy = "ask for access on its page, then log in with `hf auth login`"
        raise HubUnavailable(f"{where} is gated or private on the hub: {remedy}") from error
    except ConnectionError as error:
        raise _no_answer(source, first_line(error, limit=100)) from error
    except Exception as error:
        raise _explained(error, source) from error


def _explained(error: Exception, source: Source) -> Exception:
    """What `datasets` raised for a repository that is there, as one line."""
    import datasets

    cause: BaseException | None = error
    while cause is not None:
        full = storage_error(cause, datasets.config.HF_DATASETS_CACHE) if isinstance(cause, OSError) else None
        if full is not None:
            return full
        cause = cause.__cause__
    if isinstance(error, ValueError):
        configs = datasets.get_dataset_config_names(source.location, revision=source.revision)
        if (source.config or "default") not in configs:
            problem = f"no configuration {source.config!r}" if source.config else "several configurations"
            how = f"write {source.location}:NAME, NAME out of: {', '.join(configs)}"
            return DataError(f"{source.location} has {problem}: {how}")
    return DataError(f"{source.location} cannot be read as a data set: {first_line(error)}")


@contextmanager
def _offline() -> Iterator[None]:
    """Let `datasets` look into its cache only, as it does where HF_HUB_OFFLINE was set when it was imported."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries from talking to the terminal: what matters comes as an error of one line."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for log in (datasets.logging, hub_logging):
            stack.callback(log.set_verbosity, log.get_verbosity())
            log.set_verbosity(log.CRITICAL)
        for is_off, off, on in (
            (datasets.are_progress_bars_disabled, datasets.disable_progress_bars, datasets.enable_progress_bars),
            (are_progress_bars_disabled, disable_progress_bars, enable_progress_bars),
        ):
            if not is_off():
                stack.callback(on)
                off()
        yield
