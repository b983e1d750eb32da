"""The weights of every arm: one cache for each source, made by stage one where it is not there.

Arms that differ in layer, sink fix or uncovered tokens share one cache, and controls rework the attention that was read
once. Not for: what the sources do (`pipeline/annotate/sources`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from twdpo.config import to_yaml
from twdpo.evaluate.compare.arms import Arm, folder_name
from twdpo.evaluate.compare.config import CompareConfig
from twdpo.pipeline.annotate import AnnotateProgress, annotate
from twdpo.pipeline.annotate.sources import source_class
from twdpo.pipeline.annotate.sources.options import parse_options
from twdpo.pipeline.model_files import content_identity
from twdpo.preferences import resolve
from twdpo.weights_cache import Manifest
from twdpo.weights_cache.durable import make_folder, write_file

FOLDER = "caches"
ATTENTION = "attention"

#: Options about running a model, or about the prompt that a base has decided: of no use to a source without either.
_OF_A_MODEL = frozenset(
    {
        "batch_size",
        "device_map",
        "engine",
        "gpu_memory_utilization",
        "layers",
        "runner",
        "tensor_parallel",
        "verdict",
        "workers",
    }
)
_OF_A_PROMPT = frozenset({"chat_template_kwargs", "judge_template", "max_length", "revision", "trust_remote_code"})

Show = Callable[[str], Callable[[AnnotateProgress], None]]


def make_caches(config: CompareConfig, show: Show) -> dict[str, Path]:
    """The folder of each arm's weights, by the arm's name. `show` is told the source and gives what takes its progress.

    Raises what stage one raises, and CacheError where `weights` is no cache.
    """
    caches: dict[tuple[str, str | None], Path] = {}
    if config.weights is not None:
        Manifest.load(Path(config.weights))
        caches[ATTENTION, None] = Path(config.weights)
    needed = {(arm.source, arm.source_options): arm for arm in config.expanded}
    for arm in needed.values():  # before the first of them takes its hours
        parse_options(arm.source_options, source_class(arm.source).Options, arm.source)
    reworks = {key: source_class(arm.source).takes_base for key, arm in needed.items()}
    if any(reworks.values()):
        needed.setdefault((ATTENTION, None), Arm(name=ATTENTION))
    for key in sorted(needed, key=lambda key: reworks.get(key, False)):
        if key not in caches:
            base = caches[ATTENTION, None] if reworks.get(key, False) else None
            caches[key] = _make(config, needed[key], base, show)
    return {arm.name: caches[arm.source, arm.source_options] for arm in config.expanded}


def _make(config: CompareConfig, arm: Arm, base: Path | None, show: Show) -> Path:
    """Run stage one for the source of `arm`, unless it has run to its end as it is asked for now."""
    name = arm.source if arm.source_options is None else f"{arm.source}-{arm.source_options}"
    folder = Path(config.out) / FOLDER / folder_name(name)
    left_out = frozenset(source_class(arm.source).refuses)
    if base is not None:
        left_out |= _OF_A_MODEL | _OF_A_PROMPT
    if not source_class(arm.source).needs_model:
        left_out |= _OF_A_MODEL
    asked = config.annotate_config(
        arm, weights=str(folder), base=None if base is None else str(base), leave_out=left_out
    )
    done = folder.with_name(f"{folder.name}.done.yaml")
    # Files may change under their names. Stage one then judges the pairs that are new, and refuses another model.
    text = f"# {content_identity(asked.model, asked.revision)} {_files(config)}\n{to_yaml(asked)}"
    if not (folder.is_dir() and done.is_file() and done.read_text("utf-8") == text):
        make_folder(folder.parent)
        annotate(asked, on_progress=show(name))
        write_file(done, text.encode())
    return folder


def _files(config: CompareConfig) -> str:
    """What tells whether a data set's files have changed; the same for all that lie on the hub."""
    source = resolve(config.dataset, config.split)
    if source.kind != "file":
        return source.kind
    place = Path(source.location)
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
