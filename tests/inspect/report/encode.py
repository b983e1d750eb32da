"""A second encoder of the report file, written from the description of its format and not from the program.

What the page shows is checked against what went in here, so it stays apart from `twdpo.inspect.report`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SINK_FIX_MIN_TOKENS = 5
BIAS = 24


@dataclass(frozen=True, kw_only=True)
class Side:
    """An answer; offsets in code points of the text, a list of weights for each layer. `other`: of the other cache."""

    text: str | None
    starts: Sequence[int]
    ends: Sequence[int]
    weights: Mapping[int, Sequence[float]]
    other: Side | None = None


@dataclass(frozen=True, kw_only=True)
class Item:
    """A pair of the report and its figures."""

    prompt: list[tuple[str, str]] | None
    chosen: Side
    rejected: Side
    hash: str
    number: int
    title: str = ""
    p: tuple[float | None, float | None] = (0.75, 0.6)
    agreement: tuple[float | None, float | None] = (0.8, 0.7)
    effective: tuple[float, float] = (0.5, 0.5)
    truncated: bool = False
    overlap: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def code_of(weights: Sequence[float]) -> NDArray[np.uint16]:
    """The 16-bit codes of weights that have at most 12 significant bits."""
    values = np.asarray(weights, dtype=np.float64)
    mantissa, exponent = np.frexp(values)
    e = exponent.astype(np.int64) - 1 + BIAS
    normal = (e << 11) | (np.rint(mantissa * 4096).astype(np.int64) - 2048)
    small = np.rint(values * 2048.0 * 2.0 ** (BIAS - 1)).astype(np.int64)
    return np.where((values == 0) | (e < 1), small, normal).astype(np.uint16)


def _steps(text: str | None, starts: Sequence[int], ends: Sequence[int]) -> dict[str, list[int]]:
    units = [0]
    for character in text or "":
        units.append(units[-1] + (2 if ord(character) > 0xFFFF else 1))
    place = (lambda at: units[at]) if text is not None else (lambda at: at)
    gaps, lengths, before = [], [], 0
    for start, end in zip(starts, ends, strict=True):
        gaps.append(place(start) - before)
        lengths.append(place(end) - place(start))
        before = place(end)
    return {"gap": gaps, "len": lengths}


def _block(items: Sequence[Item]) -> str:
    examples, codes = [], []
    for item in items:
        example: dict[str, Any] = {"prompt": item.prompt, "other": None}
        for name in ("chosen", "rejected"):
            side = getattr(item, name)
            example[name] = {"text": side.text, **_steps(side.text, side.starts, side.ends)}
            codes += [code_of(side.weights[layer]) for layer in side.weights]
        if item.chosen.other:
            example["other"] = {}
            for name in ("chosen", "rejected"):
                side, other = getattr(item, name), getattr(item, name).other
                same = (list(side.starts), list(side.ends)) == (list(other.starts), list(other.ends))
                example["other"][name] = {"same": True} if same else _steps(side.text, other.starts, other.ends)
                codes += [code_of(other.weights[layer]) for layer in other.weights]
        examples.append(example)
    content = json.dumps({"examples": examples}).encode()
    flat = np.concatenate(codes)
    planes = (flat >> 8).astype(np.uint8).tobytes() + (flat & 255).astype(np.uint8).tobytes()
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = packer.compress(struct.pack("<I", len(content)) + content + planes) + packer.flush()
    return base64.b64encode(packed).decode()


def report_json(items: Sequence[Item], blocks: Sequence[tuple[int, int]], **changes: Any) -> dict[str, Any]:
    """The report's JSON; `changes` go into "cache"."""
    first = items[0] if items else None
    layers = list(first.chosen.weights) if first else [0]
    other = next((item.chosen.other for item in items if item.chosen.other), None)
    sides = ("chosen", "rejected")
    return {
        "version": 1,
        "made_by": "twdpo 0.1.0",
        "cache": {
            "name": "weights_cache",
            "pairs": len(items),
            "shown": len(items),
            "layers": layers,
            "default_layer": layers[-1],
            "judge": "a/judge",
            "source": "attention",
            "dtype": "float32",
            "max_length": 2048,
            "recipe": {"judge_model": "a/judge", "layers": ", ".join(map(str, layers))},
            "sources": [],
            "sink_fix_min_tokens": SINK_FIX_MIN_TOKENS,
            **changes,
        },
        "other": other
        and {
            "name": "other_cache",
            "layers": list(other.weights),
            "default_layer": list(other.weights)[-1],
            "judge": "b/judge",
            "source": "attention",
            "recipe": {"judge_model": "b/judge", "layers": ", ".join(map(str, other.weights))},
            "shared": sum(item.chosen.other is not None for item in items),
        },
        "exponent_bias": BIAS,
        "examples": {
            "hash": [item.hash for item in items],
            "number": [item.number for item in items],
            "title": [item.title for item in items],
            **{f"tokens_{name}": [len(getattr(item, name).starts) for item in items] for name in sides},
            "p_cr": [item.p[0] for item in items],
            "p_rc": [item.p[1] for item in items],
            **{f"agreement_{name}": [item.agreement[i] for item in items] for i, name in enumerate(sides)},
            **{f"effective_{name}": [item.effective[i] for item in items] for i, name in enumerate(sides)},
            "truncated": [item.truncated for item in items],
            "has_text": [item.chosen.text is not None for item in items],
            "overlap": [item.overlap for item in items] if other else None,
        },
        "blocks": [{"first": first, "count": count} for first, count in blocks],
    }


def scripts() -> str:
    """The page's scripts in the order of their names."""
    folder = files("twdpo.inspect") / "report"
    names = sorted(file.name for file in folder.iterdir() if re.fullmatch(r"report\.\d-\w+\.js", file.name))
    return "".join((folder / name).read_text("utf-8") for name in names)


def page(
    items: Sequence[Item],
    *,
    block_size: int = 16,
    summary: str = '<dl class="summary"><dt>pairs</dt><dd>3</dd></dl>',
    charts: str = "",
    **changes: Any,
) -> str:
    """The whole file."""
    folder = files("twdpo.inspect") / "report"
    blocks = [(at, len(items[at : at + block_size])) for at in range(0, len(items), block_size)]
    data = json.dumps(report_json(items, blocks, **changes))
    for character in "<>&\u2028\u2029":
        data = data.replace(character, f"\\u{ord(character):04x}")
    script, style = scripts(), (folder / "report.css").read_text("utf-8")
    parts = {
        "title": "weights_cache",
        "csp": f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "summary": summary,
        "charts": charts,
        "report": f'<script type="application/json" id="report">{data}</script>',
        "blocks": "".join(
            f'<script type="text/plain" class="block" id="block-{k}">{_block(items[at : at + count])}</script>'
            for k, (at, count) in enumerate(blocks)
        ),
        "script": script,
    }
    template = (folder / "report.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def write(path: Path, items: Sequence[Item], **options: Any) -> str:
    """Write the file and return its address."""
    path.write_text(page(items, **options), "utf-8")
    return path.as_uri()


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
