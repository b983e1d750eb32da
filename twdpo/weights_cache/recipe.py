"""The recipe: all that decides the numbers in a cache, its fingerprint, and how two recipes differ.

Not for: where the pairs came from, which changes no number and stands in the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

#: Fields too long to show to a person: their hashes are shown instead.
_LONG_FIELDS = frozenset({"judge_template"})
#: Fields added to the first format, which must not change the fingerprints of caches that lack them.
_LATER_FIELDS = frozenset({"source_options"})


def canonical_json(value: object) -> bytes:
    """JSON as it is hashed: UTF-8, sorted keys, no spaces, nothing escaped beyond what JSON requires."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the weights of a cache were made; `layers` are 0-based decoder layers, lengths are in tokens.

    `source` is the kind of weight source, `source_options` what it was told; of one without a judge (`uniform`,
    `position`, ...) the judge's fields say whose tokens are weighed. `judge_template` is the full text. Values of
    `chat_template_kwargs` and `source_options` must be what JSON can hold.
    """

    source: str = "attention"
    judge_model: str
    judge_revision: str | None
    dtype: str
    judge_template: str
    chat_template_hash: str | None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_length: int
    answer_tokens: int = 768
    template_tokens: int = 300
    orders: tuple[str, ...] = ("cr", "rc")
    layers: tuple[int, ...]
    source_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers = tuple(sorted(int(layer) for layer in self.layers))
        if not layers or layers[0] < 0 or len(set(layers)) != len(layers):
            raise ValueError(f"layers must be distinct and not negative, at least one: {self.layers}")
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "orders", tuple(self.orders))
        for name in ("chat_template_kwargs", "source_options"):
            object.__setattr__(self, name, json.loads(json.dumps(dict(getattr(self, name)))))

    @property
    def has_model(self) -> bool:
        """Whether a model was run; of one that was not, only the tokenizer was used."""
        return bool(self.judge_model) and self.dtype != "none"

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types; those that old caches lack are left out while they hold their default."""
        content = {**asdict(self), "orders": list(self.orders), "layers": list(self.layers)}
        return {name: value for name, value in content.items() if value or name not in _LATER_FIELDS}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_json` wrote; ValueError where a field is missing, unknown or of another type."""
        try:
            return cls(**content)
        except TypeError as error:
            raise ValueError(f"not a recipe: {error}") from error

    @property
    def fingerprint(self) -> str:
        """The first 16 hex digits of SHA-256 over the canonical JSON of the fields."""
        return hashlib.sha256(canonical_json(self.to_json())).hexdigest()[:16]

    def differences(self, asked: Recipe) -> list[str]:
        """One line for each field in which `asked` differs from this recipe, which is taken to be the cache's."""
        lines = []
        for name in (each.name for each in fields(self)):
            mine, theirs = getattr(self, name), getattr(asked, name)
            if mine != theirs:
                lines.append(f"{name}: {_shown(name, mine)} in the cache, {_shown(name, theirs)} asked for")
        return lines


def _shown(name: str, value: object) -> str:
    if value is None:
        return "none"
    if name in _LONG_FIELDS:
        return "sha256 " + hashlib.sha256(str(value).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    if isinstance(value, Mapping):
        return canonical_json(value).decode("utf-8", "replace")
    return str(value)
