"""Tokenize text in which special tokens count only where a template put them.

A chat template writes `<|im_end|>` to end a turn; an answer about chat templates writes the same ten
characters and means the characters. Tokenizers cannot tell the two apart once they stand in one string.
`LiteralTokenizer` renames the special tokens: template text is passed through `mark`, which gives each
special token a private spelling; everything else stays as it is and is tokenized as plain text. The whole
string is still tokenized once, so that merges, prefix spaces and offsets are the tokenizer's own.

Not for: where an answer stands in a prompt (`annotate/prompt.py`, `train/render.py`).
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twdpo.errors import ModelError


def common_beginning(first: NDArray[np.integer[Any]], second: NDArray[np.integer[Any]]) -> int:
    """How many token ids two sequences share from their beginning on."""
    least = min(len(first), len(second))
    differ = np.flatnonzero(first[:least] != second[:least])
    return int(differ[0]) if len(differ) else least


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """One tokenized text: `ids`, and the characters `[starts, ends)` that each token covers; int32[n] each."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)

    def overlapping(self, start: int, end: int) -> tuple[int, int]:
        """The tokens `[first, last)` that share at least one character with `[start, end)`; (0, 0) where none does."""
        hit = np.flatnonzero((self.starts < end) & (self.ends > start))
        return (int(hit[0]), int(hit[-1]) + 1) if len(hit) else (0, 0)


class LiteralTokenizer:
    """A fast tokenizer that reads special tokens in marked template text only.

    Raises ModelError where the tokenizer gives no character offsets.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not getattr(tokenizer, "is_fast", False) or backend is None:
            raise ModelError(
                f"the tokenizer {type(tokenizer).__name__} gives no character offsets; "
                "use a model with a fast tokenizer (tokenizer.json)"
            )
        self.tokenizer = tokenizer
        self._backend, self._spellings, self._ids = _rename_special_tokens(backend)
        alternatives = sorted(self._spellings, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, alternatives))) if alternatives else None
        self.bos_ids = _leading_bos(tokenizer)

    def mark(self, template_text: str) -> str:
        """Template text with each special token in its private spelling."""
        if self._pattern is None:
            return template_text
        return self._pattern.sub(lambda match: self._spellings[match[0]], template_text)

    def spells_special(self, text: str) -> bool:
        """Whether plain text holds the spelling of a special token."""
        return self._pattern is not None and self._pattern.search(text) is not None

    def shield(self, text: str) -> str:
        """Plain text with each special token's spelling replaced by a stand-in, to pass through a chat template."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: self._spellings[match[0]].replace("+", "-"), text)

    def unshield(self, text: str) -> str:
        """Undo `shield`."""
        for spelling, private in self._spellings.items():
            text = text.replace(private.replace("+", "-"), spelling)
        return text

    def encode(self, text: str) -> Tokens:
        """Tokenize once, adding nothing: special tokens where `mark` put them, plain text elsewhere."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids = np.asarray([self._ids.get(i, i) for i in encoding.ids], dtype=np.int32)
        offsets = np.asarray(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        return Tokens(ids=ids, starts=offsets[:, 0].copy(), ends=offsets[:, 1].copy())


def _rename_special_tokens(backend: Any) -> tuple[Any, dict[str, str], dict[int, int]]:
    """A copy of a tokenizers.Tokenizer whose special tokens have private spellings.

    Returns the copy, spelling → private spelling, and id in the copy → id in the original.
    """
    from tokenizers import Tokenizer

    state = json.loads(backend.to_str())
    # A post-processor would add tokens, and some trim the white space off the offsets; both are done without here.
    state.update(post_processor=None, truncation=None, padding=None)
    nonce = secrets.token_hex(8)
    spellings: dict[str, str] = {}
    originals: dict[str, int] = {}
    for number, token in enumerate(state["added_tokens"]):
        content = token["content"]
        if token["special"]:
            private = f"\ue000{nonce}+{number}\ue001"
            spellings[content] = private
            # A normalizer could change the private spelling before it is looked for.
            token.update(content=private, normalized=False)
            content = private
        originals[content] = token["id"]
    _rename_in_vocabulary(state["model"], spellings)
    copy: Any = Tokenizer.from_str(json.dumps(state))
    # The library numbers spellings that the vocabulary lacks behind it; `encode` returns the original numbers.
    ids = {copy.token_to_id(content): original for content, original in originals.items()}
    taken = {backend.token_to_id(word) for word in backend.get_vocab(with_added_tokens=False)}
    if any(new != original and new in taken for new, original in ids.items()):
        raise ModelError(
            "the tokenizer's vocabulary has gaps in its numbering; its special tokens cannot be told apart"
        )
    return copy, spellings, ids


def _rename_in_vocabulary(model: dict[str, Any], spellings: dict[str, str]) -> None:
    """Take the special tokens' spellings out of the model's own vocabulary, where plain text could reach them."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {spellings.get(word, word): number for word, number in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[spellings.get(word, word), score] for word, score in vocabulary]
    if model.get("unk_token") in spellings:
        model["unk_token"] = spellings[model["unk_token"]]
    if "merges" in model:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & spellings.keys()]


def _leading_bos(tokenizer: Any) -> tuple[int, ...]:
    """The beginning-of-sequence token, where this tokenizer puts one before plain text."""
    bos = tokenizer.bos_token_id
    ids = tokenizer("a")["input_ids"]
    return (bos,) if bos is not None and ids and ids[0] == bos else ()
