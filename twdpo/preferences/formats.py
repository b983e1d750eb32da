"""One row of a preference data set, in any common format, becomes a `Pair`, or a `Reject` with the reason.

Formats, told apart row by row (TRL's names where it has one):

    explicit prompt         prompt, chosen, rejected: strings or message lists, in any mixture of the two
    implicit prompt         chosen, rejected only: whole conversations, hh-rlhf transcripts, or plain strings
    UltraFeedback           chosen and rejected are whole conversations; a string `prompt` beside them is ignored
    orca-dpo-pairs          system, question, chosen, rejected
    other names             instruction (with or without input), query, input; messages or conversations
    spellings of messages   role and content, ShareGPT's from and value, content as a list of text parts

Not for: reading files (`files.py`, `hub.py`). Nothing is stripped or normalised; an empty `system` is no system turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from twdpo.errors import DataError
from twdpo.preferences.messages import UnusableRow, is_message_list, is_transcript, kind_of, messages, text, transcript
from twdpo.preferences.pair import Message, Pair, example_hash

#: What the prompt is called, the first that holds something wins; the last two only beside answers without context.
_PROMPTS = ("prompt", "question", "instruction", "query", "input")
_CONTEXTS = ("messages", "conversations")
_SYSTEMS = ("system", "system_prompt")

#: Every column that is read; all others are left where they are.
COLUMNS = (*_PROMPTS, *_CONTEXTS, *_SYSTEMS, "chosen", "rejected")

Prompt = tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A row that cannot be used: where it stood (0-based), why, and its hash where it had all three parts."""

    row: int
    reason: str
    example_hash: str | None = None


def check_columns(columns: Iterable[str], where: str) -> None:
    """Refuse a data set that cannot hold preference pairs.

    Raises DataError, naming `where`, the columns found and those expected.
    """
    found = list(columns)
    if {"chosen", "rejected"} <= set(found):
        return
    listed = ", ".join(found[:12]) + (", ..." if len(found) > 12 else "")
    unpaired = "; this looks like unpaired feedback, which has no pairs" if "completion" in found else ""
    raise DataError(
        f"{where} has the columns {listed or '(none)'}{unpaired}; expected `chosen` and `rejected`, "
        "with a `prompt` or with whole conversations in both: rename its columns"
    )


def parse_row(row: Mapping[str, Any], index: int) -> Pair | Reject:
    """The pair in `row`, or why there is none.

    `index` is the row's 0-based place in its source. A conversation ends with the answer, and all before it is the
    prompt, on which both sides must agree. Two plain strings without any prompt column share their longest common
    prefix as the prompt, less one space at its end, which is TRL's rule (`extract_prompt`).
    """
    try:
        prompt, chosen, rejected = _parts(row)
    except UnusableRow as problem:
        return Reject(row=index, reason=str(problem))
    reason = _problem(prompt, chosen, rejected)
    if reason is not None:
        return Reject(row=index, reason=reason, example_hash=example_hash(prompt, chosen, rejected))
    return Pair(prompt=prompt, chosen=chosen, rejected=rejected, row=index)


def _problem(prompt: Prompt, chosen: str, rejected: str) -> str | None:
    """What is wrong with the texts of a well-formed row."""
    blank = [side for side, answer in (("chosen", chosen), ("rejected", rejected)) if not answer.strip()]
    if len(blank) == 2:
        return "both answers are empty"
    if blank:
        return f"the {blank[0]} answer is empty"
    if chosen == rejected:
        return "both answers are the same"
    if chosen.strip() == rejected.strip():
        return "both answers are the same but for white space around them"
    if not any(message.content.strip() for message in prompt):
        return "the prompt is empty"
    return None


def _parts(row: Mapping[str, Any]) -> tuple[Prompt, str, str]:
    """Prompt, chosen answer and rejected answer; UnusableRow where the row has no such parts."""
    chosen, rejected = _side(row, "chosen"), _side(row, "rejected")
    prompt = _prompt(row, has_context=all(isinstance(side, tuple) and len(side) > 1 for side in (chosen, rejected)))
    if isinstance(chosen, str) and isinstance(rejected, str) and prompt is None:
        if any(name in row for name in (*_PROMPTS, *_CONTEXTS)):
            raise UnusableRow("the prompt is missing")
        if is_transcript(chosen) != is_transcript(rejected):
            raise UnusableRow("only one of the two sides is a dialogue that begins with a Human turn")
        if not is_transcript(chosen):
            return _common_prefix(chosen, rejected)
        chosen, rejected = transcript(chosen), transcript(rejected)
    chosen_prompt, chosen_answer = _split("chosen", chosen, prompt)
    rejected_prompt, rejected_answer = _split("rejected", rejected, prompt)
    if chosen_prompt != rejected_prompt:
        raise UnusableRow("the two sides answer different prompts")
    return _with_system(row, chosen_prompt), chosen_answer, rejected_answer


def _side(row: Mapping[str, Any], name: str) -> str | Prompt:
    """The response side as it stands in the row: an answer, or messages that end with one."""
    value = row.get(name)
    if isinstance(value, str):
        return text(value, f"`{name}`")
    if value is not None and not is_message_list(value):
        raise UnusableRow(f"`{name}` is {kind_of(value)}; expected text or a list of messages")
    if not value:
        raise UnusableRow(f"`{name}` is {'missing' if value is None else 'an empty list'}")
    return messages(value, f"`{name}`")


def _prompt(row: Mapping[str, Any], *, has_context: bool) -> str | Prompt | None:
    """The prompt under whichever name it has, or None.

    Beside whole conversations (`has_context`) only a list of messages counts, and only under a prompt's own name:
    UltraFeedback's `prompt` is the first user turn alone, and its `messages` repeats the chosen conversation.
    """
    names = _PROMPTS if has_context else (*_PROMPTS, *_CONTEXTS)
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        return None
    value = row[name]
    if is_message_list(value):
        return messages(value, f"`{name}`")
    if has_context:
        return None
    asked = text(value, f"`{name}`")
    if name == "instruction" and row.get("input"):  # Alpaca's form: the input goes below the instruction
        asked = f"{asked}\n{text(row['input'], '`input`')}"
    return asked


def _split(name: str, side: str | Prompt, prompt: str | Prompt | None) -> tuple[Prompt, str]:
    """The prompt that `side` answers and its answer."""
    own = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
    if isinstance(side, str):
        if own is None:
            raise UnusableRow("there is no prompt: one side is plain text, and no prompt stands beside it")
        return own, side
    context, last = side[:-1], side[-1]
    if last.role != "assistant":
        raise UnusableRow(f"`{name}` ends with a message from {last.role!r}; expected the assistant's answer")
    if own is None:
        if not context:
            raise UnusableRow(f"there is no prompt: `{name}` holds the answer alone, and no prompt stands beside it")
        return context, last.content
    if context[: len(own)] == own:
        return context, last.content
    if side[0].role != "assistant":
        raise UnusableRow(f"the conversation in `{name}` does not begin with the messages of the prompt")
    return own + context, last.content


def _common_prefix(chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    if chosen == rejected:
        raise UnusableRow("both sides are the same")
    end = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if end is None:
        raise UnusableRow("one side is the beginning of the other, which leaves it without an answer")
    # The answers keep the space before them, as tokenizers of plain text want it.
    shared = chosen[:end].removesuffix(" ")
    if not shared.strip():
        raise UnusableRow("there is no prompt: no column holds one, and the two sides do not begin alike")
    return (Message(role="user", content=shared),), chosen[len(shared) :], rejected[len(shared) :]


def _with_system(row: Mapping[str, Any], prompt: Prompt) -> Prompt:
    """`prompt` below the system turn from the row's own column, unless it brings one."""
    system = next((row[name] for name in _SYSTEMS if row.get(name) is not None), "")
    if system == "" or any(message.role == "system" for message in prompt[:1]):
        return prompt
    return (Message(role="system", content=text(system, "the system prompt")), *prompt)
