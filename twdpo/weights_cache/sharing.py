"""Publishing a cache as a data set of the Hugging Face hub: verified, with its full card, in one commit.

Not for: fetching one (`pulling.py`), or what the hub says and how (`hub.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from twdpo import __version__
from twdpo.errors import CacheCorrupt, CacheError, RecipeMismatch, SchemaTooNew
from twdpo.preferences.pair import Pair
from twdpo.weights_cache.card import is_generated, write_full_card
from twdpo.weights_cache.hub import Snapshot, asking, check_name, connect, fetch, snapshot
from twdpo.weights_cache.manifest import CARD, DATA, MANIFEST, Manifest
from twdpo.weights_cache.pulling import first_of, is_cache_file
from twdpo.weights_cache.reader import WeightsCache
from twdpo.weights_cache.recipe import Recipe
from twdpo.weights_cache.schema import KEY, SCHEMA_VERSION
from twdpo.weights_cache.shards import list_shards, reading
from twdpo.weights_cache.verification import verify

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

#: Files that are sent together, between two calls of `progress`.
_TOGETHER = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """A cache as it was published.

    `files`, `bytes`: what the repository did not have. `deleted`: shards that it had and the cache has no more.
    `card_kept`: the repository's card is its owner's own text, and was left as it is.
    """

    url: str
    commit: str
    files: int
    bytes: int
    deleted: int
    card_kept: bool


def push(
    folder: Path | str,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    licence: str | None = None,
    example: Pair | None = None,
    message: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PushResult:
    """Publish the cache in `folder` as the hub data set `repository`, which is made if there is none.

    Its card is written first (`card.write_full_card`: `licence`, `example`). `private` holds for a data set that is
    made now; `revision` is a branch. `progress` gets the bytes that were sent and all to send. Shards that only the
    repository has (compacted since) are deleted in the same commit, other files there are left. After a failure the
    same call sends only what is missing.
    Raises CacheCorrupt where the cache is damaged, RecipeMismatch where the repository holds a cache of another
    recipe, CacheError where it holds another data set or pairs that the cache has not, HubUnavailable or StorageError.
    """
    folder = Path(folder)
    check_name(repository)
    _refuse_unfit(folder)
    api = connect()
    at = _open_repository(api, repository, private=private, revision=revision)
    _refuse_another(api, at, Manifest.load(folder))
    write_full_card(folder, repository=repository, licence=licence, example=example)
    files = _cache_files(folder)
    if card_kept := _keeps_card(api, at, folder):
        del files[CARD]
    gone = _outdated(api, at, files, folder)
    new = _additions(at, files)
    if new or gone:
        with asking(repository):
            _upload(api, at, new, revision, progress or (lambda _done, _total: None))
            commit = _commit(api, at, new, gone, revision, message or _message(folder))
            at = snapshot(api, repository, commit)
        _check_arrived(at, files)
    return PushResult(
        url=f"{api.endpoint}/datasets/{repository}",
        commit=at.commit,
        files=len(new),
        bytes=_size(new),
        deleted=len(gone),
        card_kept=card_kept,
    )


def _refuse_unfit(folder: Path) -> None:
    report = verify(folder)
    if report.problems:
        raise CacheCorrupt(f"{folder} is damaged and was not pushed: {first_of(report.problems)}")
    if not report.pairs:
        raise CacheError(f"{folder} holds no pairs yet; run twdpo annotate first")


def _open_repository(api: HfApi, repository: str, *, private: bool, revision: str | None) -> Snapshot:
    """What the repository holds on the branch `revision`; both are made if need be."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    with asking(repository):
        try:
            at = snapshot(api, repository, revision)
        except GatedRepoError:
            raise
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            if not isinstance(error, RevisionNotFoundError):
                # Where no one asks for a private one, the owner's own setting holds.
                api.create_repo(repository, repo_type="dataset", private=private or None, exist_ok=True)
            if revision is not None:
                api.create_branch(repository, repo_type="dataset", branch=revision, exist_ok=True)
            at = snapshot(api, repository, revision)
    if private and not at.private:
        raise CacheError(
            f"{repository} is there already and everyone can read it; make it private on its settings page first"
        )
    return at


def _refuse_another(api: HfApi, at: Snapshot, manifest: Manifest) -> None:
    """Refuse a repository that holds anything but a cache of the same recipe, or nothing yet."""
    if MANIFEST not in at.files:
        others = [path for path in at.files if path.startswith(f"{DATA}/")]
        if others:
            raise CacheError(f"{at.repository} holds another data set ({others[0]}); choose another name")
        return
    try:
        held = json.loads(_content(api, at, MANIFEST))
        version, fingerprint = held["schema_version"], held["fingerprint"]
        is_cache = held["kind"] == "weights" and isinstance(version, int)
    except (ValueError, TypeError, KeyError, RecursionError):
        is_cache = False
    if not is_cache:
        raise CacheError(f"{at.repository} holds something else: its {MANIFEST} is no cache's; choose another name")
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(f"the cache in {at.repository} was written by a newer twdpo; upgrade twdpo")
    if fingerprint != manifest.fingerprint:
        names = _differing(held.get("recipe"), manifest.recipe)
        raise RecipeMismatch(
            f"{at.repository} holds a cache of another recipe, different in {names}; choose another name"
        )


def _differing(held: object, recipe: Recipe) -> str:
    mine = recipe.to_json()
    theirs = held if isinstance(held, Mapping) else {}
    return ", ".join(name for name in mine if theirs.get(name) != mine[name]) or "its fingerprint"


def _content(api: HfApi, at: Snapshot, path: str) -> bytes:
    """A small file of the repository."""
    with TemporaryDirectory(prefix="twdpo-") as scratch:
        part = Path(scratch) / "part"
        fetch(api, at, at.files[path], part, lambda _have: None)
        return part.read_bytes()


def _cache_files(folder: Path) -> dict[str, Path]:
    """The files of the cache by their names in the repository; raises CacheError where a pull would not take one."""
    shards = list_shards(folder / DATA)
    for path in shards:
        if not is_cache_file(f"{DATA}/{path.name}"):
            raise CacheError(f"{path} cannot be published under its name; rename it, in plain letters and digits")
    tops = [path for path in folder.iterdir() if path.is_file() and is_cache_file(path.name)]
    return {path.relative_to(folder).as_posix(): path for path in sorted((*tops, *shards))}


def _keeps_card(api: HfApi, at: Snapshot, folder: Path) -> bool:
    """Whether the card there is a person's own text, edited on the hub, while the cache's is not."""
    if CARD not in at.files or not is_generated((folder / CARD).read_text("utf-8", "replace")):
        return False
    return not is_generated(_content(api, at, CARD).decode("utf-8", "replace"))


def _outdated(api: HfApi, at: Snapshot, files: Mapping[str, Path], folder: Path) -> list[str]:
    """The shards that only the repository has; raises CacheError where their key columns tell of pairs unknown here."""
    from huggingface_hub import HfFileSystem

    gone = [path for path in at.files if path.startswith(f"{DATA}/") and is_cache_file(path) and path not in files]
    if not gone:
        return []
    missing = 0
    with WeightsCache.open(folder, text=False) as cache, asking(at.repository):
        hub = HfFileSystem(endpoint=api.endpoint, token=api.token)
        for path in gone:
            try:
                with hub.open(f"datasets/{at.repository}@{at.commit}/{path}", "rb") as file:
                    keys = pq.ParquetFile(file).read(columns=[KEY]).column(KEY).to_pylist()
                missing += len(cache.missing(keys))
            except (pa.ArrowInvalid, KeyError, TypeError) as error:
                raise CacheError(
                    f"{path} in {at.repository} cannot be read: delete it there, then push again"
                ) from error
    if missing:
        raise CacheError(
            f"{at.repository} holds {missing:,} pairs that {folder} does not; "
            "pull it and merge the two first (twdpo cache pull, twdpo cache merge)"
        )
    return gone


def _additions(at: Snapshot, files: Mapping[str, Path]) -> list[CommitOperationAdd]:
    """Those of `files` that the repository does not hold, or holds with other content."""
    from huggingface_hub import CommitOperationAdd

    found = []
    for path, file in files.items():
        with reading(file):
            if path not in at.files or not at.files[path].is_content_of(file):
                found.append(CommitOperationAdd(path_in_repo=path, path_or_fileobj=file))
    return found


def _size(additions: Sequence[CommitOperationAdd]) -> int:
    return sum(addition.upload_info.size for addition in additions)


def _upload(
    api: HfApi,
    at: Snapshot,
    additions: Sequence[CommitOperationAdd],
    revision: str | None,
    progress: Callable[[int, int], None],
) -> None:
    """Send the large files; the small ones go with the commit."""
    for start in range(0, len(additions), _TOGETHER):
        some = additions[start : start + _TOGETHER]
        api.preupload_lfs_files(
            at.repository, additions=some, repo_type="dataset", revision=revision, free_memory=False
        )
        progress(_size(additions[: start + len(some)]), _size(additions))


def _commit(
    api: HfApi,
    at: Snapshot,
    additions: Sequence[CommitOperationAdd],
    gone: Sequence[str],
    revision: str | None,
    message: str,
) -> str:
    from huggingface_hub import CommitOperationDelete

    deletions = [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in gone]
    done = api.create_commit(
        at.repository,
        [*additions, *deletions],
        commit_message=message,
        repo_type="dataset",
        revision=revision,
        parent_commit=at.commit,
    )
    return done.oid


def _message(folder: Path) -> str:
    pairs = Manifest.load(folder).counts.get("pairs", 0)
    return f"Token weights of {pairs:,} pairs (twdpo {__version__})"


def _check_arrived(at: Snapshot, files: Mapping[str, Path]) -> None:
    """Raise CacheError where the hub took a commit but left out files of it, as a .gitignore there makes it do."""
    missing = [path for path in files if path not in at.files]
    if missing:
        raise CacheError(
            f"{at.repository} left out {len(missing)} files ({missing[0]}, ...): does its .gitignore name them? "
            "remove that there and push again"
        )
