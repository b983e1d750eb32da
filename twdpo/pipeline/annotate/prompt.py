"""The judge prompt: a pair in one order, rendered, tokenized, cut to length, with the places of both answers.

The template is rendered through the chat template once a run, around stand-ins; pairs are placed between the
pieces by position. So nothing in an answer can change what stands around it, and where an answer lies is known,
not searched for. Not for: running the judge (`engines`) or what its attention means (`weights.py`).
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twdpo.errors import ModelError, UsageError, first_line
from twdpo.pipeline.chat import render_chat
from twdpo.pipeline.tokens import LiteralTokenizer, Tokens
from twdpo.preferences.pair import Message, Pair

#: The published rule counts the judge template as this many tokens, whatever it really has.
TEMPLATE_TOKENS = 300
#: Each answer keeps at most this share of `max_length`: 768 of 2048 tokens, the published numbers.
ANSWER_SHARE = (3, 8)

_SLOTS = ("question", "answer_a", "answer_b")
_SLOT = re.compile(r"\{(question|answer_a|answer_b)\}")
_ROLE_LABELS = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSpan:
    """Where an answer's tokens stand in a prompt, `[first, last)`, and the characters they cover.

    starts, ends: int32[last − first], characters of the answer as the data set has it, not stripped.
    """

    first: int
    last: int
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePrompt:
    """One forward pass: `ids` int32[n], the last of which is the reading position, and both answers' places."""

    ids: NDArray[np.int32]
    answer_a: AnswerSpan
    answer_b: AnswerSpan
    truncated: bool


class PromptError(ValueError):
    """This one pair cannot be judged; the message is the reason that `rejects.jsonl` gives."""


def load_template(path: str | None) -> str:
    """The judge template: the file's text without its last newline, or the default one.

    Raises UsageError where the file is missing, is not UTF-8, or does not hold each placeholder once.
    """
    if path is None:
        text = resources.files("twdpo.pipeline.annotate").joinpath("templates/judge.txt").read_text("utf-8")
    else:
        try:
            text = Path(path).read_text("utf-8")
        except OSError:
            raise UsageError(f"--judge-template {path}: no such file") from None
        except UnicodeDecodeError:
            raise UsageError(f"--judge-template {path}: not UTF-8 text") from None
    text = text.removesuffix("\n")
    found = _SLOT.findall(text)
    if sorted(found) != sorted(_SLOTS):
        raise UsageError(
            f"--judge-template {path}: {{question}}, {{answer_a}} and {{answer_b}} must each stand in it once"
        )
    return text


def transcript(prompt: Sequence[Message]) -> str:
    """A prompt as the judge reads it: one user message as it is, more turns as a labelled transcript."""
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n\n".join(f"{_ROLE_LABELS.get(m.role, m.role.capitalize())}: {m.content}" for m in prompt)


class PromptBuilder:
    """Turns pairs into judge prompts for one judge and one template.

    Raises UsageError where `max_length` leaves no room for answers beside the template.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str,
        max_length: int = 2048,
        answer_tokens: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.literal = LiteralTokenizer(tokenizer)
        self.max_length = max_length
        self.answer_tokens = answer_tokens or max_length * ANSWER_SHARE[0] // ANSWER_SHARE[1]
        self._pieces, self._slots = self._frame(tokenizer, template, chat_template_kwargs or {})
        empty = self._tokenize(dict.fromkeys(_SLOTS, ""))[0]
        self.template_tokens = len(empty)
        if self.template_tokens + 16 > max_length:
            raise UsageError(
                f"--max-length {max_length} leaves no room for answers: the judge template alone has "
                f"{self.template_tokens} tokens"
            )

    @property
    def frame_hash(self) -> str:
        """16 hex digits over all text around question and answers, as the judge's chat template renders it."""
        frame = "\x00".join([*self._pieces, *self._slots, *map(str, self.literal.bos_ids)])
        return hashlib.sha256(frame.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def build(self, pair: Pair, order: str) -> JudgePrompt:
        """The prompt of one pair in order "cr" (chosen is answer A) or "rc". Raises PromptError."""
        answers = (pair.chosen, pair.rejected) if order == "cr" else (pair.rejected, pair.chosen)
        texts = {"question": transcript(pair.prompt), "answer_a": answers[0].strip(), "answer_b": answers[1].strip()}
        tokens, places = self._tokenize(texts)
        truncated = len(tokens) >= self.max_length
        if truncated:
            texts = self._cut(texts, tokens, places)
            tokens, places = self._tokenize(texts)
        span_a, span_b = (
            self._span(tokens, places[slot], answer)
            for slot, answer in zip(("answer_a", "answer_b"), answers, strict=True)
        )
        bos = np.asarray(self.literal.bos_ids if self._plain else (), np.int32)
        return JudgePrompt(
            ids=np.concatenate([bos, tokens.ids]),
            answer_a=_shift(span_a, len(bos)),
            answer_b=_shift(span_b, len(bos)),
            truncated=truncated,
        )

    def verdict_ids(self) -> tuple[int, int]:
        """The tokens that would begin the verdicts "A" and "B" after the reading position."""
        tail = self._marked[-1]
        # In plain text a space comes before the verdict; where it is a token of its own, it says nothing.
        spaces = [" ", ""] if self._plain and tail and not tail[-1].isspace() else [""]
        for space in spaces:
            first, second = (self._next_token(tail, space + letter) for letter in "AB")
            if first != second:
                return first, second
        raise ModelError("the judge's tokenizer does not tell the verdicts A and B apart")

    def _next_token(self, before: str, after: str) -> int:
        """The first token of `after` where it follows `before`."""
        ids, longer = self.literal.encode(before).ids, self.literal.encode(before + after).ids
        kept = len(longer) > len(ids) and np.array_equal(longer[: len(ids)], ids)
        return int(longer[len(ids)] if kept else self.literal.encode(after).ids[0])

    def _frame(self, tokenizer: Any, template: str, kwargs: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """The rendered text around the slots, and the slots in the order in which they stand."""
        self._plain = not getattr(tokenizer, "chat_template", None)
        stand_ins = {slot: f"slot{secrets.token_hex(8)}" for slot in _SLOTS}
        text = _SLOT.sub(lambda match: stand_ins[match[1]], template)
        rendered = text if self._plain else _render_user_turn(tokenizer, text, kwargs)
        slots = _SLOT.findall(template)
        pieces: list[str] = []
        for slot in slots:
            piece, found, rendered = rendered.partition(stand_ins[slot])
            if not found:
                raise ModelError("the judge's chat template changes the text of a message; use another judge")
            pieces.append(piece)
        pieces.append(rendered)
        # In plain text a special token's spelling is text, also in the template.
        self._marked = pieces if self._plain else [self.literal.mark(piece) for piece in pieces]
        return pieces, slots

    def _tokenize(self, texts: Mapping[str, str]) -> tuple[Tokens, dict[str, tuple[int, int]]]:
        """The whole prompt tokenized once, and the characters at which each slot's text lies in it."""
        parts, places, at = [self._marked[0]], {}, len(self._marked[0])
        for slot, piece in zip(self._slots, self._marked[1:], strict=True):
            places[slot] = (at, at + len(texts[slot]))
            parts += [texts[slot], piece]
            at += len(texts[slot]) + len(piece)
        try:
            return self.literal.encode("".join(parts)), places
        except (UnicodeEncodeError, TypeError):  # which of them depends on the version of tokenizers
            raise PromptError("the text holds half of a surrogate pair, which is not valid text") from None

    def _cut(self, texts: dict[str, str], tokens: Tokens, places: Mapping[str, tuple[int, int]]) -> dict[str, str]:
        """The published truncation: answers keep their first tokens, the question its last."""
        budget = min(self.answer_tokens, (self.max_length - 1 - self.template_tokens) // 2)
        kept = 0
        cut = dict(texts)
        for slot in ("answer_a", "answer_b"):
            cut[slot], n = _keep_first(texts[slot], tokens, places[slot], budget)
            kept += n
        room = self.max_length - TEMPLATE_TOKENS - kept
        cut["question"] = _keep_last(texts["question"], tokens, places["question"], room)
        # A template longer than its allowance shrinks the question further.
        while cut["question"]:
            again, at = self._tokenize(cut)
            excess = len(again) - self.max_length
            if excess <= 0:
                break
            first, last = again.overlapping(*at["question"])
            cut["question"] = _keep_last(cut["question"], again, at["question"], last - first - excess)
        return cut

    def _span(self, tokens: Tokens, place: tuple[int, int], answer: str) -> AnswerSpan:
        """The tokens that overlap an answer's characters, with offsets into the answer as it was given."""
        start, end = place
        first, last = tokens.overlapping(start, end)
        if first == last:
            raise PromptError("an answer has no tokens")
        stripped = len(answer) - len(answer.lstrip())
        starts = np.maximum(tokens.starts[first:last] - start, 0) + stripped
        ends = np.minimum(tokens.ends[first:last], end) - start + stripped
        return AnswerSpan(first=first, last=last, starts=starts.astype(np.int32), ends=ends.astype(np.int32))


def _render_user_turn(tokenizer: Any, text: str, kwargs: Mapping[str, Any]) -> str:
    """One user turn with the generation header. Raises ModelError where the template refuses."""
    turn = [Message(role="user", content=text)]
    for in_parts in (False, True):
        try:
            rendered = render_chat(tokenizer, turn, add_generation_prompt=True, in_parts=in_parts, arguments=kwargs)
        except Exception as error:  # templates are programs and raise what they like
            raise ModelError(f"the judge's chat template cannot render one user turn: {first_line(error)}") from None
        if text[:8] in rendered:
            return rendered
    raise ModelError("the judge's chat template leaves the message out; use another judge")


def _keep_first(text: str, tokens: Tokens, place: tuple[int, int], budget: int) -> tuple[str, int]:
    """The text of the first `budget` tokens, and how many they are; a character is kept whole or not at all."""
    first, last = tokens.overlapping(*place)
    if last - first <= budget:
        return text, last - first
    end = int(tokens.starts[first + budget])
    if end < int(tokens.ends[first + budget - 1]):  # the cut would fall among tokens that share a character
        end = int(tokens.starts[first + budget - 1])
    return text[: max(end - place[0], 0)], budget


def _keep_last(text: str, tokens: Tokens, place: tuple[int, int], budget: int) -> str:
    """The text of the last `budget` tokens."""
    first, last = tokens.overlapping(*place)
    if budget <= 0:
        return ""
    if last - first <= budget:
        return text
    return text[max(int(tokens.starts[last - budget]) - place[0], 0) :]


def _shift(span: AnswerSpan, by: int) -> AnswerSpan:
    return AnswerSpan(first=span.first + by, last=span.last + by, starts=span.starts, ends=span.ends)
