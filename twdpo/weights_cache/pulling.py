"""Fetching a cache that was published as a data set of the Hugging Face hub.

Nothing of what the hub says is trusted: only names that a cache has are taken, every byte is checked against the
listing and the whole against the format, and until then all of it lies in a hidden folder inside the target, where a
broken transfer goes on in the next run. Not for: publishing (`sharing.py`).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from twdpo.errors import CacheCorrupt, CacheError, TwdpoError
from twdpo.weights_cache.durable import fsync_folder, locked, make_folder, storing
from twdpo.weights_cache.hub import RemoteFile, Snapshot, asking, check_name, connect, fetch, snapshot
from twdpo.weights_cache.manifest import DATA, MANIFEST, Manifest
from twdpo.weights_cache.verification import verify

if TYPE_CHECKING:
    from huggingface_hub import HfApi

#: The hidden folder of a pull that has not ended.
STAGING = ".pull"

#: The files that a cache has: nothing else is taken from a repository, or sent to one.
_FILES = re.compile(
    r"README\.md|manifest\.json|rejects\.jsonl|(annotate|import)\.yaml|example\.svg|data/[A-Za-z0-9][\w.-]{0,127}\.parquet",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PullResult:
    """A cache that was fetched: `files` and `bytes` of it, and how many files of the repository are no part of it."""

    folder: Path
    commit: str
    files: int
    bytes: int
    left_out: int


def is_cache_file(path: str) -> bool:
    """Whether `path`, with slashes and from the cache's folder on, is the name of a file that a cache has."""
    return _FILES.fullmatch(path) is not None


def pull(
    repository: str,
    out: Path | str,
    *,
    revision: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PullResult:
    """Fetch the cache in the hub data set `repository` into the new or empty folder `out`.

    `revision`: a branch, tag or commit; None for the newest. `progress` gets the bytes that are there and all of them.
    After a failure the same call goes on where it stopped; `out` holds but a hidden folder until all of it is sound.
    Raises CacheError (`out` is not empty, no cache there, a bad name), CacheCorrupt (a wrong checksum, or a cache that
    is damaged), SchemaTooNew, HubUnavailable or StorageError.
    """
    out = Path(out)
    check_name(repository)
    _refuse_occupied(out)
    api = connect()
    with asking(repository):
        at = snapshot(api, repository, revision)
    wanted = [file for path, file in sorted(at.files.items()) if is_cache_file(path)]
    if MANIFEST not in at.files:
        raise CacheError(f"{repository} holds no weights cache: it has no {MANIFEST}; check the name and the revision")
    make_folder(out)
    with storing(out), locked(out):
        _refuse_occupied(out)
        _Staging(out, at, wanted).pull(api, progress or (lambda _done, _total: None))
    return PullResult(
        folder=out,
        commit=at.commit,
        files=len(wanted),
        bytes=sum(file.size for file in wanted),
        left_out=len(at.files) - len(wanted),
    )


class _Staging:
    """The hidden folder in `out`: parts by the checksum of what they will be, and the cache that grows out of them."""

    def __init__(self, out: Path, at: Snapshot, wanted: Sequence[RemoteFile]) -> None:
        self._out, self._at, self._wanted = out, at, wanted
        self._root = out / STAGING
        self._cache, self._parts = self._root / "cache", self._root / "parts"
        for folder in (self._cache / DATA, self._parts):
            folder.mkdir(parents=True, exist_ok=True)
        # A run that was killed while it moved files into place is taken back: they are checked again.
        for path in _visible_files(out):
            os.replace(path, self._cache / path.relative_to(out))

    def pull(self, api: HfApi, progress: Callable[[int, int], None]) -> None:
        """Bring everything in, check it, and only then move it into place."""
        self._receive(api, progress)
        self._check()
        self._publish()

    def _receive(self, api: HfApi, progress: Callable[[int, int], None]) -> None:
        """Bring in what is not there yet, the manifest first, since a cache that cannot be read need not come."""
        total, done = sum(file.size for file in self._wanted), 0
        for file in sorted(self._wanted, key=lambda file: file.path != MANIFEST):
            path = self._cache / file.path
            if not (path.is_file() and file.is_content_of(path)):
                part = self._parts / file.oid
                fetch(api, self._at, file, part, partial(_report, progress, done, total))
                os.replace(part, path)
            if file.path == MANIFEST:
                with self._named():
                    Manifest.load(self._cache)
            done += file.size
            progress(done, total)

    def _check(self) -> None:
        """Verify the cache as a whole, and throw all of it away where it is not sound."""
        names = {file.path for file in self._wanted}
        for path in _visible_files(self._cache):
            if path.relative_to(self._cache).as_posix() not in names:
                path.unlink()  # of another commit, which an earlier run was asked for
        with self._named():
            report = verify(self._cache)
            if report.problems:
                # It is what the hub lists: asking again would not help.
                shutil.rmtree(self._root)
                raise CacheCorrupt(
                    f"{self._at.repository} is damaged, and nothing of it was kept: "
                    f"{first_of(report.problems)}; tell its owner, or pull an earlier --revision"
                )

    def _publish(self) -> None:
        """Move the files into place, the manifest last: until it is there, `out` is no cache."""
        make_folder(self._out / DATA)
        for file in sorted(self._wanted, key=lambda file: (file.path == MANIFEST, not file.path.startswith(DATA))):
            if file.path == MANIFEST:
                fsync_folder(self._out / DATA)
                fsync_folder(self._out)
            os.replace(self._cache / file.path, self._out / file.path)
        fsync_folder(self._out)
        shutil.rmtree(self._root)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Call the cache by its repository's name in an error, not by the hidden folder."""
        try:
            yield
        except TwdpoError as error:
            raise type(error)(str(error).replace(f"{self._cache}", self._at.repository)) from error


def _report(progress: Callable[[int, int], None], before: int, total: int, have: int) -> None:
    progress(before + have, total)


def first_of(problems: Sequence[str]) -> str:
    """The first of some problems, and how many more there are."""
    return problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _refuse_occupied(out: Path) -> None:
    """Raise CacheError where `out` holds anything but hidden files, or what a killed pull was moving into place."""
    if not out.exists():
        return
    if not out.is_dir():
        raise CacheError(f"{out} is a file; choose another folder")
    if (out / STAGING).is_symlink():
        raise CacheError(f"{out / STAGING} is a link; remove it, or choose another folder")
    if (out / MANIFEST).exists():
        raise CacheError(f"{out} holds a cache already; choose another folder, or remove it first")
    files = {path.relative_to(out).as_posix(): path for path in _visible_files(out)}
    ours = (out / STAGING).is_dir() and all(
        is_cache_file(name) and path.is_file() and not path.is_symlink() for name, path in files.items()
    )
    if files and not ours:
        raise CacheError(f"{out} is not empty; choose another folder, or empty it first")


def _visible_files(folder: Path) -> list[Path]:
    """All below `folder` that is no folder, but for hidden files and folders at its top."""
    tops = [top for top in folder.iterdir() if not top.name.startswith(".")]
    inside = [path for top in tops if top.is_dir() and not top.is_symlink() for path in top.rglob("*")]
    return [path for path in (*tops, *inside) if path.is_symlink() or not path.is_dir()]
