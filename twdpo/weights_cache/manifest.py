"""manifest.json: what a cache holds, how it was made, and what stage two takes from it when nothing else is said.

Not for: finding rows. What is done is known by the hashes in finished shards, never by the counts here, which are
those of the last run that ended in good order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twdpo import __version__
from twdpo.errors import CacheCorrupt, CacheError, SchemaTooNew
from twdpo.weights_cache.durable import TEMPORARY_PREFIX, write_file
from twdpo.weights_cache.recipe import Recipe, canonical_json
from twdpo.weights_cache.schema import SCHEMA_VERSION

MANIFEST = "manifest.json"
DATA = "data"
REJECTS = "rejects.jsonl"
CARD = "README.md"

#: What the manifest's `kind` says, and how to call it to a person.
KINDS = {"weights": "weights cache", "reference": "store of reference log-probs"}

_REMEDY = "restore it from a copy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The manifest of a weights cache.

    `sources`: the data sets that went in, each {name, kind, location, config, split, revision, licence}. `defaults`:
    for stage two, such as attn_source and policy_model; `sink_fix` false where weights are not read from attention, so
    that the sink fix is never applied. `counts`: pairs (different hashes), rejected, shards and
    truncated. `extra`: whatever else the file holds, kept when it is written again.
    """

    recipe: Recipe
    include_text: bool = False
    sources: tuple[Mapping[str, Any], ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    twdpo_version: str = __version__

    @property
    def fingerprint(self) -> str:
        """The recipe's fingerprint."""
        return self.recipe.fingerprint

    @property
    def has_sink(self) -> bool:
        """Whether an answer's first token is heavy for no reason of content, so that the sink fix has a place."""
        return bool(self.defaults.get("sink_fix", True))

    def with_source(self, source: Mapping[str, Any] | None, defaults: Mapping[str, Any] | None) -> Manifest:
        """This manifest with a data set added, unless it is there, and with `defaults` over the old ones."""
        sources = self.sources if source is None or source in self.sources else (*self.sources, dict(source))
        return replace(self, sources=sources, defaults={**self.defaults, **(defaults or {})})

    def to_json(self) -> dict[str, Any]:
        """The whole content of the file but for its checksum."""
        return {
            "kind": "weights",
            "schema_version": self.schema_version,
            "twdpo_version": self.twdpo_version,
            "fingerprint": self.fingerprint,
            "recipe": self.recipe.to_json(),
            "include_text": self.include_text,
            "sources": [dict(source) for source in self.sources],
            "defaults": dict(self.defaults),
            "counts": dict(self.counts),
            **self.extra,
        }

    def save(self, folder: Path) -> None:
        """Write the manifest durably; raises StorageError. The caller holds the folder's lock."""
        save_document(folder, self.to_json())

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of the cache in `folder`; raises CacheError, CacheCorrupt or SchemaTooNew."""
        content = load_document(folder, "weights")
        path = folder / MANIFEST
        try:
            recipe = Recipe.from_json(content.pop("recipe"))
            fingerprint = content.pop("fingerprint")
            manifest = cls(
                recipe=recipe,
                include_text=bool(content.pop("include_text", False)),
                sources=tuple(dict(source) for source in content.pop("sources", [])),
                defaults=dict(content.pop("defaults", {})),
                counts={name: int(count) for name, count in content.pop("counts", {}).items()},
                schema_version=content.pop("schema_version"),
                twdpo_version=str(content.pop("twdpo_version", "")),
                extra={name: value for name, value in content.items() if name != "kind"},
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CacheCorrupt(f"{path} is damaged: {' '.join(str(error).split())}") from error
        if fingerprint != recipe.fingerprint:
            raise CacheCorrupt(f"{path} is damaged: its recipe has fingerprint {recipe.fingerprint}, not {fingerprint}")
        return manifest


def require_folder(folder: Path, kind: str) -> None:
    """Raise CacheError where `folder` is not there or is a file."""
    if not folder.exists():
        hint = "; run twdpo annotate first, or name the folder that it wrote" if kind == "weights" else ""
        raise CacheError(f"{folder} is no {KINDS[kind]}: there is no such folder{hint}")
    if not folder.is_dir():
        raise CacheError(f"{folder} is no {KINDS[kind]}: it is a file, not a folder")


def may_begin(folder: Path) -> bool:
    """Whether a new cache may be begun in `folder`: it holds nothing but hidden files."""
    return all(entry.name.startswith(".") for entry in folder.iterdir())


def save_document(folder: Path, content: Mapping[str, Any]) -> None:
    """Write manifest.json with a checksum of its own content."""
    document = {**content, "checksum": _checksum(content)}
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    # Backslash escapes of what UTF-8 cannot hold (file names of unknown encoding) are JSON's own escapes.
    write_file(folder / MANIFEST, text.encode("utf-8", "backslashreplace"))


def load_document(folder: Path, kind: str) -> dict[str, Any]:
    """The content of manifest.json, its kind, version and checksum checked.

    Raises CacheError where the folder is no such cache, SchemaTooNew, or CacheCorrupt.
    """
    require_folder(folder, kind)
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        version = content["schema_version"]
    except FileNotFoundError:
        raise CacheError(f"{folder} is no {KINDS[kind]}: it has no {MANIFEST}") from None
    except PermissionError:
        raise CacheError(f"{path} cannot be read: permission denied") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CacheCorrupt(f"{path} is damaged: it is not the JSON that was written; {_REMEDY}") from error
    if not isinstance(version, int) or version < 1:
        raise CacheCorrupt(f"{path} is damaged: its schema_version is {version!r}; {_REMEDY}")
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"{folder} was written by a newer twdpo (cache schema {version}, this one reads {SCHEMA_VERSION}); "
            "upgrade twdpo"
        )
    # Without a checksum it was edited by hand, which is allowed.
    checksum = content.pop("checksum", None)
    if checksum is not None and checksum != _checksum(content):
        raise CacheCorrupt(f"{path} does not match its checksum; if you edited it, delete its checksum; else {_REMEDY}")
    if content.get("kind") != kind:
        raise CacheError(f"{folder} is no {KINDS[kind]}: its {MANIFEST} says {content.get('kind')!r}")
    return dict(content)


def has_checksum(folder: Path) -> bool:
    """Whether the manifest, already found to be sound, carries a checksum."""
    return "checksum" in json.loads((folder / MANIFEST).read_bytes())


def is_stray(name: str) -> bool:
    """Whether a file name is that of a temporary file."""
    return name.startswith(TEMPORARY_PREFIX)


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content)).hexdigest()[:16]
