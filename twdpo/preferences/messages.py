"""Reading conversations: message lists in their several spellings, and transcripts held in one string.

Not for: deciding which part of a row is the prompt and which the answers (`formats.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from twdpo.preferences.pair import Message

#: ShareGPT's words ("from") in those of chat templates; any other role is kept as the data set calls it.
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}

#: How hh-rlhf marks a turn. The one space after the colon belongs to the marker, not to the text.
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant): ?")
_TRANSCRIPT_START = re.compile(r"\s*Human:")


class UnusableRow(Exception):
    """A single row cannot be used; the message is the reason, in words for the user. Becomes a `Reject`."""


def text(value: object, what: str) -> str:
    """`value` as it is, where it is valid text.

    Raises UnusableRow naming `what` where it is no string or cannot be encoded as UTF-8.
    """
    if value is None:
        raise UnusableRow(f"{what} is missing")
    if not isinstance(value, str):
        raise UnusableRow(f"{what} is {kind_of(value)}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UnusableRow(f"{what} holds half of a surrogate pair, which is not valid text") from None
    return value


def is_message_list(value: object) -> bool:
    """Whether `value` is meant as messages: a list, one message, or a mapping of lists (arrow's struct of lists)."""
    return isinstance(value, list | tuple | Mapping)


def messages(value: object, what: str) -> tuple[Message, ...]:
    """The messages in `value`, with either spelling of keys: role and content, or from and value.

    `value` is a list of messages, a single message, or a mapping of equally long lists. Raises UnusableRow, naming
    `what` and the message (1-based), where a message has no role, no text, or content other than text.
    """
    return tuple(_message(item, f"message {i} of {what}") for i, item in enumerate(_items(value, what), start=1))


def is_transcript(value: str) -> bool:
    """Whether `value` is a dialogue in the form of hh-rlhf: it begins with a "Human:" turn."""
    return _TRANSCRIPT_START.match(value) is not None


def transcript(value: str) -> tuple[Message, ...]:
    """The turns of an hh-rlhf dialogue ("\\n\\nHuman: ...\\n\\nAssistant: ...") as messages; nothing is stripped."""
    parts = _TURN.split(value)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(role=roles[speaker], content=said) for speaker, said in turns)


def kind_of(value: object) -> str:
    """What `value` is, in words for the user."""
    if value is None:
        return "missing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, Mapping):
        return "an object"
    return "text" if isinstance(value, str) else f"of type {type(value).__name__}"


def _items(value: object, what: str) -> list[object]:
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, Mapping):
        raise UnusableRow(f"{what} is {kind_of(value)}, not a list of messages")
    key = next((key for key in ("role", "from", "type") if key in value), None)
    if key is None or not isinstance(value[key], list | tuple):
        return [value]
    # Older `datasets` store a sequence of dictionaries as a dictionary of sequences.
    columns = list(value.values())
    if not all(isinstance(column, list | tuple) and len(column) == len(value[key]) for column in columns):
        raise UnusableRow(f"{what} holds lists of different lengths for its messages")
    return [dict(zip(value, item, strict=True)) for item in zip(*columns, strict=True)]


def _message(item: object, what: str) -> Message:
    if not isinstance(item, Mapping):
        raise UnusableRow(f"{what} is {kind_of(item)}, not an object with role and content")
    role, content = item.get("role"), item.get("content")
    if role is None and item.get("from") is not None:
        role, content = item["from"], item.get("value")
        role = _SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
    if item.get("tool_calls"):
        raise UnusableRow(f"{what} holds tool calls, which are not text")
    return Message(role=text(role, f"the role in {what}"), content=_content(content, f"the content of {what}"))


def _content(content: object, what: str) -> str:
    if not is_message_list(content):
        return text(content, what)
    return "".join(_part(part, what) for part in _items(content, what))


def _part(part: object, what: str) -> str:
    if not isinstance(part, Mapping):
        raise UnusableRow(f"{what} is a list that holds {kind_of(part)}, not parts with a type")
    if part.get("type") != "text":
        raise UnusableRow(f"{what} holds a part of type {part.get('type')!r}; only text can be used")
    return text(part.get("text"), f"a text part in {what}")
