"""Every error that a user can meet, as one tree.

TwdpoError                   exit code 1: something failed
├── UsageError               exit code 2: an option or a combination of options is wrong
├── DataError                a data set or file cannot be read as preference pairs
│   └── HubUnavailable       the hub cannot be reached, or the repository is not there
├── ModelError               a model or tokenizer cannot be loaded, or cannot do what is asked
├── CacheError               a weights cache cannot be used
│   ├── RecipeMismatch       rows of another recipe
│   ├── CacheCorrupt         a shard or the manifest does not hold what it must
│   ├── SchemaTooNew         written by a newer version of this format
│   └── MissingRows          pairs without a row in the cache
├── TrainingError            training cannot go on
├── StorageError             the disk is full, or the folder cannot be written
└── Interrupted              exit code 130: stopped by Ctrl-C, with what to do to go on

The message of each is one line: what is wrong, then what to do. Errors outside this tree are bugs
and keep their traceback. Not for: problems with a single pair, which go to `rejects.jsonl`.
"""

from __future__ import annotations

import errno


class TwdpoError(Exception):
    """Base class: a failure to report as one line, without a traceback.

    together: every process of a run raises it, so that one of them may report it for all.
    """

    exit_code = 1
    together = False


class UsageError(TwdpoError):
    """An option, a configuration key or a combination of them is wrong."""

    exit_code = 2


class DataError(TwdpoError):
    """A data set or file cannot be read as preference pairs."""


class HubUnavailable(DataError):
    """The hub cannot be reached, or the repository is not there."""


class ModelError(TwdpoError):
    """A model or tokenizer cannot be loaded, or cannot do what is asked."""


class CacheError(TwdpoError):
    """A weights cache cannot be used."""


class RecipeMismatch(CacheError):
    """The cache holds rows of another recipe."""


class CacheCorrupt(CacheError):
    """A shard or the manifest does not hold what it must."""


class SchemaTooNew(CacheError):
    """The cache was written by a newer version of the format."""


class MissingRows(CacheError):
    """Pairs have no row in the cache."""


class TrainingError(TwdpoError):
    """Training cannot go on."""


class StorageError(TwdpoError):
    """The disk is full, or the folder cannot be written."""


class Interrupted(TwdpoError):
    """Stopped by Ctrl-C."""

    exit_code = 130


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of what `error` says, cut to `limit` characters; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    line = lines[0].rstrip(" .:") if lines else type(error).__name__
    return line if len(line) <= limit else line[: limit - 3] + "..."


#: What the operating system says when a write cannot be done, each with its remedy.
_WRITE_FAILURES = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again: what is finished is kept",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again: what is finished is kept",
    errno.EFBIG: "the file would exceed the size limit set for this process; raise it (ulimit -f) and run again",
    errno.EIO: "the disk reports an error; look after it and run the same command again: what is finished is kept",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; choose a folder that you may write to",
    errno.EPERM: "permission denied; choose a folder that you may write to",
}


def storage_error(error: OSError, path: object) -> StorageError | None:
    """`error`, met when writing `path`, as one line with its remedy; None where it is no failure to write."""
    remedy = _WRITE_FAILURES.get(error.errno or 0)
    return StorageError(f"cannot write {path}: {remedy}") if remedy else None
