"""The text of a data-set card: YAML header, what the data is, how to load it, figures, recipe and sources.

What comes from manifests, folders and people is made harmless to YAML, Markdown and code. Not for: reading a cache or
writing the file (`card.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from twdpo.weights_cache.manifest import Manifest
from twdpo.weights_cache.recipe import Recipe
from twdpo.weights_cache.statistics import CacheSummary

MARKER = "<!-- Written by twdpo at every run. Delete this line to keep your own text. -->"

#: Licences that the hub knows by name; others are declared as `other`.
_LICENCES = (
    "apache-2.0 mit openrail bigscience-openrail-m bigscience-bloom-rail-1.0 cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 "
    "cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 odc-by odbl pddl wtfpl "
    "bsd bsd-2-clause bsd-3-clause gpl gpl-2.0 gpl-3.0 lgpl lgpl-3.0 agpl-3.0 mpl-2.0 isc unlicense llama2 llama3 "
    "llama3.1 llama3.2 llama3.3 gemma unknown other"
)
#: Bounds of the hub's size categories, each with its name.
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
    (10_000_000_000, "1B<n<10B"),
)

_BODY = """\
{marker}

# {title}

For each pair of answers, the weight of every token of both, to train with token-weighted DPO. {how}
Weights belong to the characters of the answers, not to one tokenizer, so they serve models of other families too.
{picture}
## Load it

```python
from datasets import load_dataset

weights = load_dataset({name_python}, split="train")
```

To train on them with twdpo (token-weighted DPO, [AttentionPO]({paper})):

```bash
{train}
```

One row a pair. `example_hash` is the first 32 hex digits of SHA-256 over the canonical JSON of prompt, chosen and
rejected: the key to the pair in its own data set. `chosen_starts` and `chosen_ends` are the characters that each token
covers, `chosen_weights_L` its weight{of_layer} (mean 1 over the answer), and so for `rejected`. Layers
stored: {layers}. {texts}

## Figures

{figures}

## Recipe

Fingerprint `{fingerprint}`. {sink}

| field | value |
|---|---|
{recipe}

<details>
<summary>The judge template</summary>

{template}

</details>

## Source data

{sources}
"""

_JUDGED = "A judge model read each pair in both orders"
#: What a source other than attention does, in a line.
_ABOUT_SOURCES = {
    "rollout": "a judge model read each pair in both orders, and its attention was rolled out through all layers",
    "uniform": "every token weighs 1",
    "position": "weights fall from token to token by one factor (D²PO)",
    "shuffled": "a control, the weights of another source permuted within each answer but for its first token",
    "random": "a control, weights drawn from those of another source within each answer but for its first token",
    "tis": "differences of a model's log-probs under two instructions (TIS-DPO)",
}
#: Sources whose columns are layers of a judge.
_LAYERED = ("attention", "rollout", "shuffled", "random")
_SINK = "The weights are stored without the sink fix, which is applied when they are read."
_NO_SINK = "The sink fix is for weights read from attention and is not applied to these."

_PAPER = "https://arxiv.org/abs/2605.21883"
_UNFINISHED = "The run that makes it has not ended yet."
_NO_VALUE = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a card says.

    `name`: a folder's name, or a hub data set's where `is_repository`. `pairs` is None while the first run goes on.
    `summary`: figures over all rows, where they were taken. `picture`: a file beside the card.
    """

    name: str
    manifest: Manifest
    pairs: int | None
    truncated: int = 0
    rejected: int = 0
    summary: CacheSummary | None = None
    is_repository: bool = False
    licence: str | None = None
    picture: str | None = None


def render_card(facts: CardFacts) -> str:
    """The whole text of the card."""
    manifest, recipe = facts.manifest, facts.manifest.recipe
    body = _BODY.format(
        marker=MARKER,
        title=_inline(_title(manifest)),
        how=_how(recipe),
        picture=_picture(facts.picture),
        name_python=_quoted(facts.name),
        paper=_PAPER,
        train=_train(facts),
        of_layer=" from layer L of the judge" if recipe.source in _LAYERED else "",
        sink=_SINK if manifest.has_sink else _NO_SINK,
        layers=", ".join(str(layer) for layer in recipe.layers),
        texts="Prompts and answers are in it." if manifest.include_text else "The texts are in their own data set.",
        figures=_figures(facts),
        fingerprint=manifest.fingerprint,
        recipe="\n".join(_row(field, value) for field, value in _recipe_fields(recipe).items()),
        template=_code_block(recipe.judge_template),
        sources=_sources(manifest.sources),
    )
    return f"---\n{_header(facts)}---\n{body}"


def _title(manifest: Manifest) -> str:
    names = ", ".join(dict.fromkeys(_source_name(source) for source in manifest.sources))
    recipe = manifest.recipe
    judge = recipe.judge_model if recipe.has_model else ""
    if judge.startswith(("/", ".", "~")):
        judge = PurePath(judge).name
    title = f"Token weights for {names or 'preference pairs'}" + (f", judged by {judge}" if judge else "")
    return title if recipe.source in ("attention", "rollout") or judge == "" else f"{title} ({recipe.source})"


def _how(recipe: Recipe) -> str:
    if recipe.source == "attention":
        return f"{_JUDGED};\na token's weight is the attention that it got at its verdict."
    about = _ABOUT_SOURCES.get(recipe.source)
    return f"Weight source: `{_plain(recipe.source)}`" + (f": {about}." if about else ".")


def _picture(picture: str | None) -> str:
    return f"\n![One pair: both answers, every token shaded by its weight]({picture})\n" if picture else ""


def _train(facts: CardFacts) -> str:
    if facts.is_repository:
        return f"twdpo cache pull {shlex.quote(_plain(facts.name))} weights_cache\ntwdpo train --weights weights_cache"
    return f"twdpo train --weights {shlex.quote(_plain(facts.name))}"


def _figures(facts: CardFacts) -> str:
    if facts.pairs is None:
        return _UNFINISHED
    rows = {
        "pairs": f"{facts.pairs:,}",
        "cut to the judge's length": f"{facts.truncated:,}",
        "left out (see rejects.jsonl)": f"{facts.rejected:,}",
    }
    if summary := facts.summary:
        rows |= {
            "judged tokens": f"{summary.tokens:,}",
            "judge prefers chosen, mean of both orders": _share(summary.judge_accuracy),
            "... where chosen stood first": _share(summary.judge_accuracy_cr),
            "... where chosen stood second": _share(summary.judge_accuracy_rc),
            "... right in both orders": _share(summary.both_right),
            "... wrong in both orders": _share(summary.both_wrong),
            "... another verdict when the order is turned": _share(summary.verdict_flips),
            "position bias: mean P(first answer) less one half": _number(summary.position_bias, "+.3f"),
            "agreement of the two orders' weights": _share(summary.order_agreement),
            f"effective tokens, as a share of the length ({summary.attn_source})": _share(summary.effective_share),
            f"mean weight of the first token ({summary.attn_source})": _number(summary.first_weight, ".2f"),
            "... after the sink fix": _number(summary.first_weight_fixed, ".2f"),
        }
    return "\n".join(["| figure | value |", "|---|---|", *(_row(name, value) for name, value in rows.items())])


def _share(value: float) -> str:
    return _number(value, ".1%")


def _number(value: float, form: str) -> str:
    return _NO_VALUE if math.isnan(value) else format(value, form)


def _recipe_fields(recipe: Recipe) -> dict[str, Any]:
    template = hashlib.sha256(recipe.judge_template.encode("utf-8", "surrogatepass")).hexdigest()
    return {**recipe.to_json(), "judge_template": f"sha256 {template}"}


def _sources(sources: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        _row(
            _source_name(source),
            *(source.get(key) for key in ("config", "split", "revision")),
            source.get("licence") or "not stated",
        )
        for source in sources
    ]
    return "\n".join(["| data set | config | split | revision | licence |", "|---|---|---|---|---|", *rows])


def _source_name(source: Mapping[str, Any]) -> str:
    """The data set as others can find it: a hub id, or of a path the last part, since the rest is of one machine."""
    location = str(source.get("location") or source.get("name") or "")
    return PurePath(location).name if source.get("kind") == "file" else location


def _header(facts: CardFacts) -> str:
    manifest = facts.manifest
    lines = [f"pretty_name: {_quoted(_title(manifest))}"]
    lines += _licence_lines(facts.licence, manifest.sources)
    on_hub = [str(source["location"]) for source in manifest.sources if source.get("kind") == "hub"]
    if on_hub:
        lines += ["source_datasets:", *(f"- {_quoted(name)}" for name in dict.fromkeys(on_hub))]
    if facts.pairs is not None:
        size = next(name for bound, name in _SIZES if facts.pairs < bound)
        lines += ["size_categories:", f"- {_quoted(size)}"]
    lines += ["task_categories:", "- text-generation"]
    lines += ["tags:", *(f"- {tag}" for tag in ("preference", "dpo", "rlhf", "token-weights", "twdpo"))]
    lines += ["configs:", "- config_name: default", "  data_files:", "  - split: train", "    path: data/*.parquet"]
    return "\n".join(lines) + "\n"


def _licence_lines(licence: str | None, sources: Iterable[Mapping[str, Any]]) -> list[str]:
    """The header's licence: the one given, else those of the sources where all have one."""
    stated = [licence] if licence else [source.get("licence") for source in sources]
    names = list(dict.fromkeys(str(name).strip().lower() for name in stated if name))
    if not names or not all(stated):
        return ["license: unknown"]
    if set(names) <= set(_LICENCES.split()):
        return [f"license: {names[0]}"] if len(names) == 1 else ["license:", *(f"- {name}" for name in names)]
    return ["license: other", f"license_name: {_quoted(re.sub(r'[^a-z0-9.]+', '-', '-and-'.join(names)).strip('-'))}"]


def _row(*cells: object) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return _inline(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _inline(text: str) -> str:
    """`text` for a heading or a table: on one line, and free of what Markdown or HTML would act on."""
    escaped = re.sub(r"([\\|`*])", r"\\\1", _plain(text))
    return escaped.replace("](", "]\\(").replace("<", "&lt;")


def _plain(text: str) -> str:
    """`text` on one line, without characters that cannot be seen."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _quoted(text: str) -> str:
    """`text` as a string of YAML and of Python alike."""
    return json.dumps(_plain(text), ensure_ascii=False)


def _code_block(text: str) -> str:
    """`text` as an indented block, out of which nothing in it can break."""
    return "\n".join(f"    {line}" if line else "" for line in re.split(r"\r\n|\r|\n", text))
