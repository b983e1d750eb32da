"""What Arena-Hard's style control wants to know of an answer: its tokens, and how much Markdown it has.

Counted outside of ``` blocks. Not for: the file that it goes into (`formats.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

#: A block holds no further backquote, so one with inline code in it is not cut: so counts the official tool.
_BLOCK = re.compile("```([^`]*)```")
_LISTS = {"ordered": re.compile(r"^\s*\d+\.\s", re.MULTILINE), "unordered": re.compile(r"^\s*[-*+]\s", re.MULTILINE)}
_BOLD = {"**": re.compile(r"\*\*[^*\n]+\*\*"), "__": re.compile(r"__[^_\n]+__")}
_HEADERS = {f"h{level}": re.compile(rf"^#{{{level}}}\s", re.MULTILINE) for level in range(1, 7)}


def style(answer: str, count_tokens: Callable[[str], int]) -> dict[str, Any]:
    """The metadata of one answer, as Arena-Hard's answer files have it."""
    text = answer
    for inside in _BLOCK.findall(answer):
        # The official tool takes out what stands between the fences, wherever it stands, and leaves the fences.
        text = text.replace(inside, "")

    def counts(patterns: dict[str, re.Pattern[str]]) -> dict[str, int]:
        return {name: len(pattern.findall(text)) for name, pattern in patterns.items()}

    return {
        "token_len": count_tokens(answer),
        "header_count": counts(_HEADERS),
        "list_count": counts(_LISTS),
        "bold_count": counts(_BOLD),
    }


def token_counter(model: str = "gpt-4o") -> Callable[[str], int] | str:
    """Counts tokens as that OpenAI model's tokenizer does, or says why it cannot."""
    try:
        import tiktoken
    except ImportError:
        return "tiktoken is not installed (pip install tiktoken)"
    try:
        encoding: Any = tiktoken.encoding_for_model(model)
    except Exception as error:  # it downloads its table, and raises what its transport raises
        return f"tiktoken cannot get the table of {model}'s tokens ({type(error).__name__})"
    return lambda text: len(encoding.encode(text, disallowed_special=()))
