"""The files of questions on the hub, as their authors put them there, through the hub's own cache.

Not for: what stands in them (`questions.py`).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from twdpo.errors import HubUnavailable, first_line, storage_error
from twdpo.preferences.hub import quiet

#: Benchmark and release → repository, kind of repository, file. MT-Bench's lie in a space.
PLACES = {
    ("alpaca_eval", ""): ("tatsu-lab/alpaca_eval", "dataset", "alpaca_eval_gpt4_baseline.json"),
    ("mt_bench", ""): ("lmsys/mt-bench", "space", "data/mt_bench/question.jsonl"),
    ("arena_hard", "v0.1"): ("lmarena-ai/arena-hard-auto", "dataset", "data/arena-hard-v0.1/question.jsonl"),
    ("arena_hard", "v2.0"): ("lmarena-ai/arena-hard-auto", "dataset", "data/arena-hard-v2.0/question.jsonl"),
}
#: Seconds for the request that finds out whether the hub answers.
_TIMEOUT = 10.0


def find_questions(benchmark: str, version: str) -> Path:
    """The file of questions: of an installed FastChat, else of the hub or its cache. Raises HubUnavailable."""
    if benchmark == "mt_bench" and (own := _of_fastchat()) is not None:
        return own
    import huggingface_hub
    from huggingface_hub import errors

    if (benchmark, version) not in PLACES:
        raise HubUnavailable(
            "the legacy questions of Arena-Hard are not fetched from the hub: check out its tool before "
            "`reformat v0.1`, and pass data/arena-hard-v0.1/question.jsonl of it with --questions"
        )
    repository, kind, name = PLACES[benchmark, version]
    with quiet():
        try:
            # One short request finds out whether the hub answers; a download would try for half a minute.
            huggingface_hub.HfApi().repo_info(repository, repo_type=kind, timeout=_TIMEOUT)
            return Path(huggingface_hub.hf_hub_download(repository, name, repo_type=kind))
        except (errors.RepositoryNotFoundError, errors.RemoteEntryNotFoundError) as error:
            raise HubUnavailable(
                f"the {kind} {repository} on the hub has no {name} that you may read; pass a file with --questions"
            ) from error
        except Exception as error:  # the classes of the transport differ between releases of huggingface_hub
            known = storage_error(error, "the hub's cache") if isinstance(error, OSError) else None
            if known is not None:
                raise known from error
            kept = huggingface_hub.try_to_load_from_cache(repository, name, repo_type=kind)
            if isinstance(kept, str):
                return Path(kept)
            raise _unreachable(repository, kind, name, error) from error


def _unreachable(repository: str, kind: str, name: str, error: Exception) -> HubUnavailable:
    return HubUnavailable(
        f"cannot get {name} of the {kind} {repository} from the hub ({first_line(error, 100)}): download it where the "
        "hub can be reached and pass it with --questions"
    )


def _of_fastchat() -> Path | None:
    """The questions in a checkout of FastChat that is installed; its wheels leave them out."""
    specification = importlib.util.find_spec("fastchat")
    for folder in (specification.submodule_search_locations or []) if specification else []:
        file = Path(folder) / "llm_judge/data/mt_bench/question.jsonl"
        if file.is_file():
            return file
    return None
