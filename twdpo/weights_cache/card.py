"""README.md of a cache: a data-set card whose header lets `datasets.load_dataset(folder)` find the shards.

Rewritten with every run as long as its marker line is there. Not for: publishing, which needs more of a card.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twdpo.weights_cache.durable import write_file
from twdpo.weights_cache.manifest import CARD, Manifest
from twdpo.weights_cache.recipe import Recipe

MARKER = "<!-- Written by twdpo at every run. Delete this line to keep your own text. -->"

_CARD = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
tags:
- preference
- dpo
- token-weights
- twdpo
---
{marker}

# Token weights for preference pairs

For each pair the weight of every token of both answers, to train with token-weighted DPO. The weights belong to the
characters of the answers, not to one tokenizer.

{counts}

## Loading

```python
from datasets import load_dataset

weights = load_dataset({folder}, split="train")
```

With twdpo, joined with the pairs: `twdpo train --weights {folder_plain}`.

`example_hash` is the first 32 hex digits of SHA-256 over the canonical JSON of prompt, chosen and rejected.
`chosen_starts` and `chosen_ends` are the characters that each token covers, `chosen_weights_L` its weight from layer L
(mean 1), and so for `rejected`. Layers stored: {layers}.

## Recipe

Fingerprint `{fingerprint}`.

| field | value |
|---|---|
{recipe}

## Source data

| name | location | config | split | revision | licence |
|---|---|---|---|---|---|
{sources}
"""


def write_card(folder: Path, manifest: Manifest) -> bool:
    """Write the card of the cache in `folder`, unless a person took it over; raises StorageError."""
    path = folder / CARD
    if path.exists() and MARKER not in path.read_text("utf-8", "replace"):
        return False
    write_file(path, render_card(folder.absolute().name, manifest).encode("utf-8", "replace"))
    return True


def render_card(name: str, manifest: Manifest) -> str:
    """The text of the card of a cache in a folder called `name`."""
    return _CARD.format(
        marker=MARKER,
        counts=_counts(manifest.counts),
        folder=json.dumps(name, ensure_ascii=False),
        folder_plain=name,
        layers=", ".join(str(layer) for layer in manifest.recipe.layers),
        fingerprint=manifest.fingerprint,
        recipe="\n".join(_row(field, value) for field, value in _recipe_fields(manifest.recipe).items()),
        sources="\n".join(_source(source) for source in manifest.sources),
    )


def _counts(counts: Mapping[str, int]) -> str:
    if not counts:
        return "The run that makes it has not ended yet."
    return (
        f"{counts.get('pairs', 0)} pairs, {counts.get('truncated', 0)} of them cut to the judge's length; "
        f"{counts.get('rejected', 0)} left out (see rejects.jsonl)."
    )


def _recipe_fields(recipe: Recipe) -> dict[str, Any]:
    template = hashlib.sha256(recipe.judge_template.encode("utf-8", "surrogatepass")).hexdigest()
    return {**recipe.to_json(), "judge_template": f"sha256 {template} (the text is in manifest.json)"}


def _source(source: Mapping[str, Any]) -> str:
    return _row(*(source.get(key) for key in ("name", "location", "config", "split", "revision", "licence")))


def _row(*cells: object) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
