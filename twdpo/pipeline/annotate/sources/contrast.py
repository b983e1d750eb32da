"""A pair's answers behind two contrasting instructions, as token sequences that a model would continue.

The instruction stands before the last user turn's text, in a turn of its own where there is none, and before everything
where there is no chat template; the answer follows the generation header, and its tokens are found by
where it was placed. Not for: the model's log-probs, or weights (`tis.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twdpo.errors import ModelError, first_line
from twdpo.pipeline.annotate.prompt import ANSWER_SHARE, PromptError, transcript
from twdpo.pipeline.answer_logps import AnswerInContext
from twdpo.pipeline.chat import render_chat
from twdpo.pipeline.tokens import LiteralTokenizer, Tokens
from twdpo.preferences import Message, Pair

_PROBE = "probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrasted:
    """One answer behind each instruction; starts, ends: int32[n], the characters that its tokens cover."""

    positive: AnswerInContext
    negative: AnswerInContext
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    truncated: bool


class Contraster:
    """Puts answers behind the instructions `positive` and `negative`. Raises ModelError for a tokenizer of no use."""

    def __init__(
        self, tokenizer: Any, *, positive: str, negative: str, max_length: int, arguments: Mapping[str, Any]
    ) -> None:
        self._literal = LiteralTokenizer(tokenizer)
        self._tokenizer, self._arguments = tokenizer, dict(arguments)
        self._instructions = (positive, negative)
        self._max_length = max_length
        self.answer_tokens = max_length * ANSWER_SHARE[0] // ANSWER_SHARE[1]
        self._plain = not getattr(tokenizer, "chat_template", None)
        self._in_parts = not self._plain and self._wants_parts()

    @property
    def frame_hash(self) -> str:
        """16 hex digits over what the chat template puts around a turn."""
        frame = "" if self._plain else self._apply([Message(role="user", content=_PROBE)])
        return hashlib.sha256(f"{frame} {self._literal.bos_ids}".encode()).hexdigest()[:16]

    def contrast(self, pair: Pair, answer: str) -> Contrasted:
        """One answer of a pair behind both instructions. Raises PromptError."""
        turns, text = list(pair.prompt), answer.strip()
        budget, truncated = None, False
        while True:
            both = [self._sequence(instruction, turns, text, budget) for instruction in self._instructions]
            excess = max(len(context.ids) for context, _ in both) - self._max_length
            if excess <= 0:
                break
            truncated = True
            if budget is None:
                budget = self.answer_tokens
            else:
                turns = self._shorter(turns, excess)
        (positive, tokens), (negative, _) = both
        first, last = positive.first, positive.last
        if not np.array_equal(positive.ids[first:last], negative.ids[negative.first : negative.last]):
            raise PromptError("the answer's tokens depend on the instruction before it")
        stripped = len(answer) - len(answer.lstrip())
        return Contrasted(
            positive=positive,
            negative=negative,
            starts=(tokens.starts + stripped).astype(np.int32),
            ends=(tokens.ends + stripped).astype(np.int32),
            truncated=truncated,
        )

    def _sequence(
        self, instruction: str, turns: Sequence[Message], answer: str, budget: int | None
    ) -> tuple[AnswerInContext, Tokens]:
        """The sequence, and the answer's tokens with their characters in it; at most `budget` of them."""
        before = self._before(instruction, turns)
        try:
            tokens = self._literal.encode(before + answer)
        except (UnicodeEncodeError, TypeError):  # which of them depends on the version of tokenizers
            raise PromptError("the text holds half of a surrogate pair, which is not valid text") from None
        first, last = tokens.overlapping(len(before), len(before) + len(answer))
        if first == last:
            raise PromptError("an answer has no tokens")
        if budget is not None and last - first > budget:
            last = first + budget
            while last > first and tokens.starts[last] < tokens.ends[last - 1]:  # a character whole or not at all
                last -= 1
            if first == last:
                raise PromptError("an answer begins with a character of more tokens than there is room for")
        bos = np.asarray(self._literal.bos_ids if self._plain else (), np.int32)
        ids = np.concatenate([bos, tokens.ids[:last]])
        if first + len(bos) == 0:
            raise PromptError("no token comes before the answer")
        mine = Tokens(
            ids=tokens.ids[first:last],
            starts=np.maximum(tokens.starts[first:last] - len(before), 0),
            ends=tokens.ends[first:last] - len(before),
        )
        return AnswerInContext(ids=ids, first=first + len(bos), last=last + len(bos)), mine

    def _before(self, instruction: str, turns: Sequence[Message]) -> str:
        """All that comes before the answer, with special tokens marked."""
        if self._plain:
            return f"{instruction}\n\n{transcript(turns)}\n\n"
        asked = max((place for place, turn in enumerate(turns) if turn.role == "user"), default=None)
        told = [replace(turn, content=self._literal.shield(turn.content)) for turn in turns]
        lead = self._literal.shield(instruction)
        if asked is None:
            told.append(Message(role="user", content=lead))
        else:
            told[asked] = replace(told[asked], content=f"{lead}\n\n{told[asked].content}")
        return self._literal.unshield(self._literal.mark(self._apply(told)))

    def _apply(self, turns: Sequence[Message]) -> str:
        try:
            return render_chat(
                self._tokenizer, turns, add_generation_prompt=True, in_parts=self._in_parts, arguments=self._arguments
            )
        except Exception as error:  # templates are programs and raise what they like
            raise PromptError(f"the chat template refuses this conversation: {first_line(error)}") from None

    def _wants_parts(self) -> bool:
        """Whether the chat template shows contents given as lists of parts only. Raises ModelError."""
        for self._in_parts in (False, True):
            try:
                if _PROBE in self._apply([Message(role="user", content=_PROBE)]):
                    return self._in_parts
            except PromptError:
                continue
        raise ModelError("the model's chat template cannot render one user turn; use another model")

    def _shorter(self, turns: list[Message], excess: int) -> list[Message]:
        """The turns without the oldest, or the only one without its first `excess` tokens. Raises PromptError."""
        if len(turns) > 1:
            # Many chat templates want a user's turn first.
            later = turns[1:]
            return later[next((i for i, turn in enumerate(later) if turn.role == "user"), -1) :]
        tokens = self._literal.encode(turns[0].content)
        if not len(tokens):
            raise PromptError("the instruction alone leaves no room for the answer")
        kept = len(tokens) - excess
        # A character at least: several tokens may share the first.
        content = turns[0].content[max(int(tokens.starts[-kept]), 1) :] if kept > 0 else ""
        return [replace(turns[0], content=content)]
