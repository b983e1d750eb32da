"""Talking to the Hugging Face hub: what a data-set repository holds, files that arrive whole, errors as one line.

Files are fetched through the session of huggingface_hub, piece by piece into a file of their own, so that a broken
transfer goes on where it stopped, also in another run: `hf_hub_download` throws away what it has when it fails.
Not for: what a cache consists of (`sharing.py`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twdpo import __version__
from twdpo.errors import CacheCorrupt, CacheError, HubUnavailable, TwdpoError, first_line, storage_error
from twdpo.weights_cache.durable import storing

if TYPE_CHECKING:
    from huggingface_hub import HfApi

#: Seconds for the first request of each kind, which finds out whether the hub answers at all.
_TIMEOUT = 10.0
#: How often a transfer is tried that brings nothing new, and seconds between the tries.
_TRIES, _PAUSE = 3, 1.0

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")

_AGAIN = "run the same command again, it goes on where it stopped"
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


class NoAnswer(HubUnavailable):
    """The hub does not answer, or breaks off; it may answer if asked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file that a repository lists. `oid`: SHA-256 of a large file's content, the git blob id of another's."""

    path: str
    size: int
    oid: str

    def is_content_of(self, path: Path) -> bool:
        """Whether the local file `path` holds the same bytes."""
        return path.stat().st_size == self.size and _content_id(path, large=len(self.oid) == 64) == self.oid


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A repository's files at one commit, by path as the hub gives it: nothing about it can be trusted."""

    repository: str
    commit: str
    private: bool
    files: dict[str, RemoteFile]


def connect() -> HfApi:
    """The client of huggingface_hub: where to and as whom is its own business (HF_ENDPOINT, HF_TOKEN)."""
    from huggingface_hub import HfApi

    return HfApi(library_name="twdpo", library_version=__version__)


def check_name(repository: str, kind: str = "data set") -> None:
    """Raise CacheError where `repository` cannot be the name of a data set, or another `kind`, on the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
        valid = _NAME.fullmatch(repository) is not None
    except HFValidationError:
        valid = False
    if not valid:
        raise CacheError(f"{repository!r} is no name of a {kind} on the hub; write owner/name")


def snapshot(api: HfApi, repository: str, revision: str | None) -> Snapshot:
    """What the data set `repository` holds at `revision` (default: main). Call within `asking`."""
    from huggingface_hub.hf_api import RepoFile

    info = api.dataset_info(repository, revision=revision, timeout=_TIMEOUT)
    if info.sha is None or not _SHA1.fullmatch(info.sha):
        raise HubUnavailable(f"the hub names no commit of {repository}: is HF_ENDPOINT the address of a hub?")
    listed = api.list_repo_tree(repository, repo_type="dataset", revision=info.sha, recursive=True)
    files = [_remote_file(repository, entry) for entry in listed if isinstance(entry, RepoFile)]
    return Snapshot(
        repository=repository,
        commit=info.sha,
        private=bool(info.private),
        files={file.path: file for file in files},
    )


def _remote_file(repository: str, entry: Any) -> RemoteFile:
    oid, pattern = (entry.lfs.sha256, _SHA256) if entry.lfs else (entry.blob_id, _SHA1)
    if not isinstance(entry.size, int) or entry.size < 0 or not isinstance(oid, str) or not pattern.fullmatch(oid):
        raise HubUnavailable(f"the hub lists {entry.path!r} of {repository} without a size and a checksum")
    return RemoteFile(path=str(entry.path), size=entry.size, oid=oid)


def fetch(api: HfApi, at: Snapshot, file: RemoteFile, part: Path, on_bytes: Callable[[int], None]) -> None:
    """Bring `file` into the local file `part`, going on after what that holds already, and make it durable.

    `on_bytes` is called with the bytes that `part` holds. Raises CacheCorrupt where the content is not what was
    listed, and then `part` is gone; StorageError; and, with `part` kept, what `asking` raises.
    """
    resumed = part.exists() and part.stat().st_size > 0
    for last in (not resumed, True):
        _fill(api, at, file, part, on_bytes)
        if file.is_content_of(part):
            return
        part.unlink()
        # What an earlier run left may itself have been damaged: once more, from the beginning.
        if last:
            raise CacheCorrupt(
                f"{file.path} of {at.repository} did not arrive as the hub lists it: its checksum is wrong; "
                "run the same command again, and if it stays so, tell the repository's owner"
            )


def _fill(api: HfApi, at: Snapshot, file: RemoteFile, part: Path, on_bytes: Callable[[int], None]) -> None:
    tries = 0
    with storing(part), part.open("ab") as target:
        if target.tell() > file.size:
            target.truncate(0)
            target.seek(0)
        while target.tell() < file.size:
            before = target.tell()
            try:
                with asking(at.repository, part):
                    _stream(api, at, file, target, on_bytes)
            except NoAnswer:
                tries = 1 if target.tell() > before else tries + 1
                if tries > _TRIES:
                    raise
                time.sleep(_PAUSE)
        target.flush()
        os.fsync(target.fileno())


def _stream(api: HfApi, at: Snapshot, file: RemoteFile, target: Any, on_bytes: Callable[[int], None]) -> None:
    """One request for what `target` does not hold yet; never more than the listed size is written."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff  # type: ignore[attr-defined]

    url = hf_hub_url(at.repository, file.path, repo_type="dataset", revision=at.commit, endpoint=api.endpoint)
    # Compressed content has no ranges.
    headers = {**build_hf_headers(token=api.token), "Accept-Encoding": "identity"}
    if have := target.tell():
        headers["Range"] = f"bytes={have}-"
    with http_stream_backoff(
        "GET",
        url,
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        retry_on_exceptions=(),
        retry_on_status_codes=(429,),
    ) as response:
        hf_raise_for_status(response)
        if have and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            target.truncate(0)
            target.seek(0)
        for piece in response.iter_bytes():
            target.write(piece[: file.size - target.tell()])
            on_bytes(target.tell())
            if target.tell() == file.size:
                return
    raise NoAnswer(f"the hub sends less of {file.path} than it lists: {_AGAIN}")


def _content_id(path: Path, *, large: bool) -> str:
    """SHA-256 of a file's content, or the id that git gives to it."""
    with path.open("rb") as file:
        if large:
            return hashlib.file_digest(file, "sha256").hexdigest()
        header = b"blob %d\0" % path.stat().st_size
        return hashlib.file_digest(file, lambda: hashlib.sha1(header, usedforsecurity=False)).hexdigest()


@contextmanager
def asking(repository: str, path: Path | None = None, kind: str = "data set") -> Iterator[None]:
    """Keep huggingface_hub quiet, and report whatever goes wrong as one line; `path` is what the body writes, if any.
    `kind`: what the repository is, in words.

    Raises HubUnavailable, CacheError where the hub does not take what it is given, or StorageError. The body should
    hold nothing but calls of the library.
    """
    try:
        with _quiet():
            yield
    except TwdpoError:
        raise
    except Exception as error:
        causes = [error, *_causes(error)]
        found = next((known for cause in causes if (known := _explained(cause, repository, path, kind))), None)
        raise found or _unknown(error, repository) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    while (cause := error.__cause__) is not None:
        yield cause
        error = cause


def _explained(error: BaseException, repository: str, path: Path | None, kind: str) -> TwdpoError | None:
    """What huggingface_hub raised, where it is one of those that a person can act on."""
    from huggingface_hub import errors

    if isinstance(error, OSError) and (failure := storage_error(error, error.filename or path or "a file")):
        return failure

    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubUnavailable(f"the hub is not asked for {repository}: HF_HUB_OFFLINE is set; unset it")
    if isinstance(error, errors.GatedRepoError):
        return HubUnavailable(f"{repository} is gated on the hub: ask for access on its page, then {_LOG_IN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubUnavailable(f"{repository} has no such revision on the hub: check --revision")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubUnavailable(
            f"no {kind} {repository} on the hub that you may read: check the name; if it is private, {_LOG_IN}"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(error.response.status_code, repository)
    if isinstance(error, ValueError) and "README.md" in str(error):
        why = " ".join(str(error).split())[:200]
        return CacheError(f"the hub does not take the card: {why}; correct README.md and run again")
    return None


def _unknown(error: Exception, repository: str) -> TwdpoError:
    """An error of the transport, whose classes differ between releases, or of a library that got nonsense to read."""
    why = first_line(error, limit=100)
    if isinstance(error, LookupError | TypeError | AttributeError | ValueError):
        return HubUnavailable(
            f"the hub's answer for {repository} is not understood ({why}): is HF_ENDPOINT the address of a hub?"
        )
    return NoAnswer(f"the hub cannot be reached for {repository} ({why}): {_AGAIN}")


def _refusal(status: int, repository: str) -> TwdpoError:
    if status == 401:
        return HubUnavailable(f"the hub does not know you, as {repository} needs it: {_LOG_IN}")
    if status == 403:
        return HubUnavailable(f"you may not do this to {repository} on the hub: {_LOG_IN} with a token that may")
    if status in (409, 412):
        return HubUnavailable(f"{repository} was changed by someone else meanwhile: run the same command again")
    if status in (408, 416, 429) or status >= 500:
        return NoAnswer(f"the hub answers {status} for {repository}: wait a while; {_AGAIN}")
    return HubUnavailable(f"the hub answers {status} for {repository}: check the name and the revision")


@contextmanager
def _quiet() -> Iterator[None]:
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(hub_logging.set_verbosity, hub_logging.get_verbosity())
        hub_logging.set_verbosity(logging.CRITICAL)
        if not are_progress_bars_disabled():
            stack.callback(enable_progress_bars)
            disable_progress_bars()
        yield
