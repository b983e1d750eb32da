"""A preference pair and its example hash: the words that both stages and the cache share.

Not for: reading data sets (`sources.py`) or telling their formats apart (`formats.py`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation; `role` is "system", "user", "assistant" or what the data set calls it."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A prompt (all turns before the answers, system turn included) and two answers to it.

    `row` is where the pair stood in its source (0-based), for messages to people; it is no part of the hash.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    row: int = -1

    @property
    def example_hash(self) -> str:
        """The first 32 hex digits of SHA-256 over the canonical JSON of prompt, chosen and rejected."""
        return example_hash(self.prompt, self.chosen, self.rejected)


def canonical_json(prompt: tuple[Message, ...], chosen: str, rejected: str) -> bytes:
    """The text that is hashed: UTF-8, sorted keys, no spaces, nothing escaped beyond what JSON requires.

    A lone surrogate, which UTF-8 cannot carry, is written as its WTF-8 bytes, so that every string has a hash.
    """
    content = {
        "prompt": [{"content": message.content, "role": message.role} for message in prompt],
        "chosen": chosen,
        "rejected": rejected,
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def example_hash(prompt: tuple[Message, ...], chosen: str, rejected: str) -> str:
    """The key of a pair: depends on its text alone, not on model, tokenizer, data set or row."""
    return hashlib.sha256(canonical_json(prompt, chosen, rejected)).hexdigest()[:32]
