"""Where pairs come from: the named sources, and what a name given by the user stands for.

Not for: reading rows (`files.py`, `hub.py`); nothing is opened or downloaded here.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from twdpo.errors import DataError, UsageError

#: Endings of the files that can be read; `files.py` holds a reader for each.
SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz", ".arrow", ".feather")

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_SUFFIXED = re.compile(r"(?P<base>.+?)(?::(?P<config>[\w.-]+))?(?:\[(?P<split>[^\[\]]*)\])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A data set as the user named it, and where it is.

    `location` is a path for "file", a repository id for "hub", "demo" for "demo". `split` and `revision`
    are None where the user left them open; `load` fills them in (`PairStream.source`).
    """

    name: str
    kind: Literal["demo", "file", "hub"]
    location: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    licence: str | None = None


def _hub(name: str, location: str, split: str, licence: str | None) -> Source:
    return Source(name=name, kind="hub", location=location, split=split, licence=licence)


#: Sources that have a name of their own, with the split that is read unless another is asked for.
NAMED: Mapping[str, Source] = MappingProxyType(
    {
        source.name: source
        for source in (
            _hub("ultrafeedback", "HuggingFaceH4/ultrafeedback_binarized", "train_prefs", "MIT"),
            _hub("ultrafeedback-llama3", "princeton-nlp/llama3-ultrafeedback", "train", None),
            _hub("hh-rlhf", "Anthropic/hh-rlhf", "train", "MIT"),
            _hub("orca-dpo-pairs", "Intel/orca_dpo_pairs", "train", "Apache-2.0"),
            Source(name="demo", kind="demo", location="demo", split="train", licence="Apache-2.0"),
        )
    }
)


def resolve(name: str, split: str | None = None, revision: str | None = None) -> Source:
    """What `name` stands for: a named source, else a local file or folder, else a hub id.

    `name` may end in `:config` (hub) and `[split]`; `split` is the same as the latter. Raises DataError where `name` is
    none of the three, and UsageError where its endings are malformed, contradict `split`, or do not apply.
    """
    base, config, bracket = _take_apart(name)
    if bracket is not None and split is not None and bracket != split:
        raise UsageError(f"--dataset {name} and --split {split} name two different splits: give one of them")
    source = _locate(name, base, config)
    wanted = bracket if split is None else split
    if wanted is not None and not re.fullmatch(r"\w+([.-]\w+)*", wanted):
        raise UsageError(f"{wanted!r} is not the name of a split; for fewer rows use --limit")
    if source.kind != "hub" and (config or revision):
        raise UsageError(f"{name} is not on the hub: a configuration or a revision does not apply to it")
    return replace(source, name=name, config=config, split=wanted or source.split, revision=revision)


def pick_split(available: Iterable[str], wanted: str | None, name: str) -> str:
    """The split to read: the one asked for, else the only one, else "train", else "train_prefs".

    Raises DataError, naming those there are.
    """
    splits = list(available)
    listed = ", ".join(splits)
    if wanted is not None:
        if wanted not in splits:
            raise DataError(f"{name} has no split {wanted!r}; it has: {listed}")
        return wanted
    if len(splits) == 1:
        return splits[0]
    for usual in ("train", "train_prefs"):
        if usual in splits:
            return usual
    raise DataError(f"{name} has several splits: choose one with --split, out of: {listed}")


def _take_apart(name: str) -> tuple[str, str | None, str | None]:
    """`name` without its endings, the configuration, the split."""
    if name in NAMED or os.path.exists(os.path.expanduser(name)):
        return name, None, None
    match = _SUFFIXED.fullmatch(name)
    return (match["base"], match["config"], match["split"]) if match else (name, None, None)


def _locate(name: str, base: str, config: str | None) -> Source:
    if base in NAMED:
        return NAMED[base]
    path = os.path.expanduser(base)
    if base and os.path.exists(path):
        return Source(name=name, kind="file", location=path)
    if base.startswith(("/", "./", "../", "~")) or base.endswith((*SUFFIXES, "/", ".csv", ".txt")):
        raise DataError(f"no such file or folder: {base}")
    if _HUB_ID.fullmatch(base):
        return Source(name=name, kind="hub", location=base)
    near = difflib.get_close_matches(base, NAMED, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise DataError(
        f"no data set {name!r}: {hint}give one of {', '.join(NAMED)}, a file, a folder or a hub id (org/name)"
    )
