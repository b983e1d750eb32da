"""Publishing a finished run as a model on the hub: the way is tried before training, the files are sent after it.

Not for: what is in the files (`output.py`, `card.py`), or the words for what goes wrong (`weights_cache/hub.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twdpo.errors import CacheError, HubUnavailable, TwdpoError, UsageError
from twdpo.weights_cache.hub import asking, check_name, connect

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_KIND = "model"
#: Seconds for the first request, which finds out whether the hub answers at all.
_TIMEOUT = 10.0
#: What an earlier run may have left in the repository and a loader would take for a part of this one.
_REPLACED = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "best/*",
    "curves.png",
    "curves.svg",
)


def open_repository(repository: str, *, private: bool) -> None:
    """Make sure that `repository` is there and may be written to; it is made if there is none.

    Raises UsageError where it has no possible name, or is public and should be `private`; and HubUnavailable.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        check_name(repository, _KIND)
    except CacheError as error:
        raise UsageError(f"--push {error}") from None
    api = connect()
    with asking(repository, kind=_KIND):
        try:
            info = api.model_info(repository, timeout=_TIMEOUT)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            # Where no one asks for a private one, the owner's own setting holds.
            api.create_repo(repository, private=private or None, exist_ok=True)
            info = api.model_info(repository, timeout=_TIMEOUT)
        _check_rights(api, repository)
    if private and not info.private:
        raise UsageError(
            f"--private: {repository} is there already and everyone can read it; "
            "make it private on its settings page first"
        )


def _check_rights(api: HfApi, repository: str) -> None:
    """Raise what the library raises where the user may not write to the repository."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

    # `HfApi.auth_check` asks the same, but older releases of it know of reading only.
    url = f"{api.endpoint}/api/models/{repository}/auth-check/write"
    hf_raise_for_status(get_session().get(url, headers=build_hf_headers(token=api.token), timeout=_TIMEOUT))


def publish(out: Path, repository: str, files: Sequence[str], message: str) -> str:
    """Send `files`, paths below `out`, to the repository in one commit, and return its address.

    Model files that only the repository has are deleted there; what else it holds is left, and every earlier state
    stays in its history. Raises HubUnavailable saying how to send them by hand.
    """
    api = connect()
    try:
        with asking(repository, kind=_KIND):
            api.upload_folder(
                repo_id=repository,
                folder_path=out,
                allow_patterns=list(files),
                delete_patterns=list(_REPLACED),
                commit_message=message,
            )
    except TwdpoError as error:
        # The trainer would refuse to run again into a finished folder.
        why = re.sub(r"[:;] (wait a while; )?run the same command again.*$", "", str(error))
        raise HubUnavailable(
            f"the model is finished and kept in {out}, but was not pushed: {why}; by hand: "
            f"hf upload {repository} {out} . --exclude 'checkpoints/*' 'trackers/*'"
        ) from error
    return f"{api.endpoint}/{repository}"
