"""A pair as the policy's two token sequences, with the characters of the answer that each token covers.

The prompt is rendered with the generation header, the whole conversation as the chat template ends it; the completion
is what follows their common tokens, as in TRL: the answer, the end of its turn, whatever the template adds. Where the
answer stands is found against a rendering of a stand-in answer, so that trimming and additions are seen, not assumed.
Not for: the weights of those tokens (`weights.py`).
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twdpo.errors import first_line
from twdpo.pipeline.chat import FIXED_DATE, chat_template, render_chat
from twdpo.pipeline.tokens import LiteralTokenizer, Tokens
from twdpo.preferences import Message, Pair

#: Part of what identifies rendered text; to be raised where the rules of this file change.
_RULES = 1
_SURROGATE = "the text holds half of a surrogate pair, which is not valid text"
_LABELS = {"system": "System", "user": "User", "assistant": "Assistant"}


class RenderError(ValueError):
    """This one pair cannot be trained on; the message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedSide:
    """One response as a token sequence.

    ids: int32[T], cut to the maximal length; the completion is `ids[prompt_length:]`. The answer's tokens begin at
    `answer_first` of the uncut sequence; answer_starts, answer_ends: int32[n], the characters that each of them covers
    in the answer as the data set has it. n counts those beyond the cut, too. cut: whether there are any tokens beyond.
    """

    ids: NDArray[np.int32]
    prompt_length: int
    answer_first: int
    answer_starts: NDArray[np.int32]
    answer_ends: NDArray[np.int32]
    cut: bool = False

    @property
    def completion_length(self) -> int:
        """How many tokens are trained on."""
        return len(self.ids) - self.prompt_length


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPair:
    """Both responses; they share the first `prompt_length` tokens."""

    chosen: RenderedSide
    rejected: RenderedSide


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedText:
    """Text ready for the tokenizer, and where in it which part of the answer stands.

    `text[answer_at:answer_at + answer_length]` is the answer without its first `cut_before` characters.
    """

    text: str
    answer_at: int
    answer_length: int
    cut_before: int

    @classmethod
    def find(cls, text: str, before: str, after: str, answer: str) -> RenderedText:
        """Where a chat template put which part of `answer`, given what it puts before and after a stand-in.

        Raises RenderError.
        """
        start = _common_length(before, text)
        end = len(text) - min(_common_length(after[::-1], text[::-1]), len(text) - start)
        shown = text[start:end]
        cut_before = _place(shown, answer)
        return cls(text=text, answer_at=start, answer_length=len(shown), cut_before=cut_before)

    def side(self, tokens: Tokens, prompt_length: int, max_length: int | None = None) -> RenderedSide:
        """The response, of which `tokens` are the uncut sequence. Raises RenderError."""
        start, end = self.answer_at, self.answer_at + self.answer_length
        first, last = tokens.overlapping(start, end)
        if first == last:
            raise RenderError("an answer has no tokens")
        if len(tokens) == prompt_length:
            raise RenderError("nothing follows the prompt")
        shift = self.cut_before - start
        return RenderedSide(
            ids=tokens.ids[:max_length],
            prompt_length=prompt_length,
            answer_first=first,
            answer_starts=(np.maximum(tokens.starts[first:last], start) + shift).astype(np.int32),
            answer_ends=(np.minimum(tokens.ends[first:last], end) + shift).astype(np.int32),
            cut=max_length is not None and len(tokens) > max_length,
        )


class Renderer:
    """Renders pairs for one tokenizer and one chat template; without one, as plain text."""

    def __init__(
        self, tokenizer: Any, *, max_length: int, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.max_length = max_length
        self.plain = chat_template(tokenizer) is None
        self.tokenizer = tokenizer
        self._literal = LiteralTokenizer(tokenizer)
        self._arguments = dict(chat_template_kwargs or {})
        self._stand_in = f"answer{secrets.token_hex(8)}"
        self._in_parts = not self.plain and self._wants_parts()

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the chat template and the rules by which pairs become tokens."""
        content = {
            "rules": _RULES,
            "template": chat_template(self.tokenizer),
            "arguments": self._arguments,
            "special": self.tokenizer.special_tokens_map,
            "date": FIXED_DATE,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def render(self, pair: Pair) -> RenderedPair:
        """Both sequences of a pair. Raises RenderError with a reason for people."""
        make = self._plain_texts if self.plain else self._chat_texts
        prompt, chosen, rejected = make(pair)
        try:
            prompt_ids = self._encode(prompt).ids
            sides = [(text, self._encode(text.text)) for text in (chosen, rejected)]
        except (UnicodeEncodeError, TypeError):  # which of them depends on the tokenizers library's version
            raise RenderError(_SURROGATE) from None
        # A token that spans the end of the prompt belongs to the completion, on both sides alike.
        prompt_length = min(_common_prefix(prompt_ids, tokens.ids) for _, tokens in sides)
        if prompt_length == 0:
            raise RenderError("no token of the prompt comes before the answer")
        if prompt_length >= self.max_length:
            raise RenderError(f"the prompt alone fills --max-length {self.max_length}")
        chosen_side, rejected_side = (text.side(tokens, prompt_length, self.max_length) for text, tokens in sides)
        return RenderedPair(chosen=chosen_side, rejected=rejected_side)

    def prompt_ids(self, prompt: Sequence[Message]) -> NDArray[np.int32]:
        """The tokens of a conversation with the generation header, after which an answer is to come: int32[n].

        Raises RenderError.
        """
        text = plain_prompt(prompt) if self.plain else self._prompt_text(self._shielded(prompt))
        try:
            return self._encode(text).ids
        except (UnicodeEncodeError, TypeError):
            raise RenderError(_SURROGATE) from None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer: the tokenizer's end of sequence, and what ends a turn in the chat template."""
        eos = self.tokenizer.eos_token_id
        found = [] if eos is None else [int(eos)]
        if not self.plain:
            turns = [Message(role="user", content="probe"), Message(role="assistant", content=self._stand_in)]
            try:
                after = self._apply(turns).partition(self._stand_in)[2]
            except RenderError:  # a conversation will give the reason
                after = ""
            special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
            found += [int(i) for i in self._encode(after).ids[:1] if int(i) in special and int(i) not in found]
        return tuple(found)

    def _encode(self, text: str) -> Tokens:
        tokens = self._literal.encode(text)
        bos = np.asarray(self._literal.bos_ids if self.plain else (), np.int32)
        if not len(bos):
            return tokens
        nowhere = np.full(len(bos), -1, np.int32)
        return Tokens(
            ids=np.concatenate([bos, tokens.ids]),
            starts=np.concatenate([nowhere, tokens.starts]),
            ends=np.concatenate([nowhere, tokens.ends]),
        )

    def _plain_texts(self, pair: Pair) -> tuple[str, RenderedText, RenderedText]:
        """Without a chat template: the prompt's text, the answer, the end-of-sequence token."""
        prompt = plain_prompt(pair.prompt)
        end = self._literal.mark(self.tokenizer.eos_token or "")
        chosen, rejected = (
            RenderedText(text=prompt + answer + end, answer_at=len(prompt), answer_length=len(answer), cut_before=0)
            for answer in (pair.chosen, pair.rejected)
        )
        return prompt, chosen, rejected

    def _chat_texts(self, pair: Pair) -> tuple[str, RenderedText, RenderedText]:
        shielded = self._shielded(pair.prompt)
        prompt = self._prompt_text(shielded)
        framed = self._apply([*shielded, Message(role="assistant", content=self._stand_in)])
        before, found, after = framed.partition(self._stand_in)
        if not found or self._stand_in in after:
            raise RenderError("the chat template does not show the answer once, as it is")
        chosen, rejected = (self._find(shielded, answer, before, after) for answer in (pair.chosen, pair.rejected))
        return prompt, chosen, rejected

    def _shielded(self, prompt: Sequence[Message]) -> list[Message]:
        return [Message(role=m.role, content=self._literal.shield(m.content)) for m in prompt]

    def _prompt_text(self, shielded: Sequence[Message]) -> str:
        return self._apply(shielded, add_generation_prompt=True)

    def _find(self, prompt: list[Message], answer: str, before: str, after: str) -> RenderedText:
        """Where the chat template put which part of the answer."""
        text = self._apply([*prompt, Message(role="assistant", content=self._literal.shield(answer))])
        return RenderedText.find(text, before, after, answer)

    def _apply(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The chat template's text, its special tokens marked and those spelt in messages as plain text."""
        try:
            rendered = render_chat(
                self.tokenizer,
                messages,
                add_generation_prompt=add_generation_prompt,
                in_parts=self._in_parts,
                arguments=self._arguments,
            )
        except Exception as error:  # templates are programs and raise what they like
            raise RenderError(f"the chat template refuses this conversation: {first_line(error)}") from None
        return self._literal.unshield(self._literal.mark(rendered))

    def _wants_parts(self) -> bool:
        """Whether the chat template shows messages given as lists of parts only."""
        turns = [Message(role="user", content="probe"), Message(role="assistant", content=self._stand_in)]
        shown = []
        for in_parts in (False, True):
            try:
                rendered = render_chat(self.tokenizer, turns, in_parts=in_parts, arguments=self._arguments)
            except Exception:  # templates are programs and raise what they like; a pair will give the reason
                rendered = ""
            shown.append("probe" in rendered and self._stand_in in rendered)
        return shown == [False, True]


def plain_prompt(prompt: Sequence[Message]) -> str:
    """The prompt for a model without a chat template: one user message as it is, more turns with their roles."""
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content + "\n\n"
    turns = [f"{_LABELS.get(m.role, m.role.capitalize())}:\n{m.content}\n\n" for m in prompt]
    return "".join(turns) + "Assistant:\n"


def _place(shown: str, answer: str) -> int:
    """How many characters of the answer come before the part that is shown. Raises RenderError."""
    if not shown.strip():
        raise RenderError("the chat template leaves nothing of the answer")
    trimmed = len(answer) - len(answer.lstrip())
    for place in (0, trimmed, len(answer) - len(shown)):
        if place >= 0 and answer[place : place + len(shown)] == shown:
            return place
    place = answer.find(shown)
    if place < 0 or answer.find(shown, place + 1) >= 0:
        raise RenderError("the chat template rewrites the answer so that it cannot be found again")
    return place


def _common_length(a: str, b: str) -> int:
    """How many characters two texts share at their beginning."""
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _common_prefix(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """How many tokens two sequences share at their beginning."""
    shorter = min(len(a), len(b))
    differ = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differ[0]) if len(differ) else shorter
