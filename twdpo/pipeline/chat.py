"""Render conversations through a model's chat template, the same text on every day.

Both stages use it. Not for: finding an answer in what was rendered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twdpo.preferences.pair import Message

#: Chat templates that print today's date would change a recipe, and a training set, at midnight.
FIXED_DATE = "01 Jan 2025"

# Such templates call a function of the renderer; a macro of that name takes its place.
_DATE_MACRO = "{%- macro strftime_now(format) -%}" + FIXED_DATE + "{%- endmacro %}{{ '' }}"


def chat_template(tokenizer: Any) -> str | None:
    """The chat template as it is used here, or None for a tokenizer without one."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    template = str(tokenizer.get_chat_template())
    return _DATE_MACRO + template if "strftime_now" in template else template


def render_chat(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    in_parts: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> str:
    """The conversation as text. `in_parts`: contents as lists of parts, as templates of multimodal models want them.

    Raises whatever the template raises: templates are programs.
    """
    conversation = [
        {"role": m.role, "content": [{"type": "text", "text": m.content}] if in_parts else m.content} for m in messages
    ]
    return str(
        tokenizer.apply_chat_template(
            conversation,
            chat_template=chat_template(tokenizer),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **({"date_string": FIXED_DATE} | dict(arguments or {})),
        )
    )
