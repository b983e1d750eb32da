"""The page of a report: one HTML file with everything in it, that loads nothing and runs nothing but its own script.

Not for: what it says of the pairs (`payload.py`), or how the page works (`report.html`, `report.css`, the scripts).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from importlib.resources import files
from typing import Any

from twdpo.inspect.report.encoding import json_in_html

#: The page's script, in the order in which its parts run.
SCRIPTS = tuple(
    f"report.{number}-{name}.js"
    for number, name in enumerate(("data", "weights", "dom", "state", "list", "tokens", "tip", "pair", "main"), start=1)
)
_HERE = "twdpo.inspect.report"
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def page(
    *, title: str, summary: Mapping[str, Any], charts: str, report: Mapping[str, Any], blocks: Iterable[str]
) -> Iterator[str]:
    """The page in parts, to be written one after another.

    `summary`: names and values. `charts`: figures as HTML, already escaped. `report`, `blocks`: as `payload.py` makes
    them.
    """
    style, script = _asset("report.css"), "\n".join(_asset(name) for name in SCRIPTS)
    simple = {
        "title": escape(title),
        "csp": content_security_policy(style, script),
        "style": style,
        "summary": _definitions(summary),
        "charts": charts,
        "report": f'<script type="application/json" id="report">{json_in_html(report)}</script>',
        "script": script,
    }
    # Filled by position, so that braces in a text fill nothing.
    for number, part in enumerate(_PLACE.split(_asset("report.html"))):
        if number % 2 == 0:
            yield part
        elif part == "blocks":
            for place, block in enumerate(blocks):
                yield f'<script type="text/plain" class="block" id="block-{place}">{block}</script>\n'
        else:
            yield simple[part]


def content_security_policy(style: str, script: str) -> str:
    """Nothing but this style sheet and this script, known by their hashes; no network at all."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _asset(name: str) -> str:
    return files(_HERE).joinpath(name).read_text("utf-8")


def _definitions(rows: Mapping[str, Any]) -> str:
    entries = (f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in rows.items())
    return f'<dl class="summary">{"".join(entries)}</dl>'
