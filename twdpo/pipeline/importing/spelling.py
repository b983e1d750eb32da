"""Which text the tokens of a tokenizer stand for, as UTF-8 bytes, since a token may hold a part of a character.

Not for: where in an answer the bytes lie (`aligning.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from twdpo.pipeline.importing.layout import UnusableWeights

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Spelling:
    """The bytes of each token of one tokenizer.

    Byte-level BPE and sentencepiece vocabularies say them. Where a vocabulary does not, each token is decoded by
    itself, which counts only if the pieces make up what the tokenizer decodes from all of them.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        state = json.loads(self._backend.to_str()) if self._backend is not None else {}
        decoders = list(_steps(state.get("decoder")))
        kinds = {step["type"] for step in decoders}
        self._characters = _byte_characters() if "ByteLevel" in kinds else None
        self._space = next((space for step in decoders if (space := _space_of(step)) is not None), None)
        self._byte_tokens = "ByteFallback" in kinds
        self._added = {token["id"]: token["content"] for token in state.get("added_tokens", [])}
        self._known: dict[int, bytes] = {}

    def spell(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token. Raises UnusableWeights where an id is none, or the bytes cannot be told."""
        for number in ids:
            if number not in self._known:
                self._known[number] = self._bytes(number)
        pieces = [self._known[number] for number in ids]
        if self._characters is None and self._space is None:
            whole = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if b"".join(pieces) != whole.encode():
                raise UnusableWeights("the tokenizer does not tell which text its tokens stand for; try another")
        return pieces

    def seen(self, text: str) -> str:
        """`text` as its tokens spell it, character for character: sentencepiece writes spaces as a letter of its own,
        so that the letter itself cannot be told from a space."""
        return text if self._space is None else text.replace(self._space, " ")

    def _bytes(self, number: int) -> bytes:
        token = self._token(number)
        if token is None:
            raise UnusableWeights("a token id is not in the tokenizer's vocabulary (see --tokenizer)")
        if self._characters is not None:
            spelled = [self._characters.get(character) for character in token]
            if number in self._added or None in spelled:
                return token.encode()
            return bytes(byte for byte in spelled if byte is not None)
        if self._space is not None:
            byte = _BYTE_TOKEN.fullmatch(token) if self._byte_tokens else None
            return bytes([int(byte[1], 16)]) if byte else token.replace(self._space, " ").encode()
        alone: str = self._tokenizer.decode([number], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return alone.encode()

    def _token(self, number: int) -> str | None:
        """The token as the vocabulary writes it, None where there is none."""
        if not 0 <= number < 1 << 32:
            return None
        if self._backend is None:
            token = self._tokenizer.convert_ids_to_tokens(number) if number < len(self._tokenizer) else None
            return None if token is None else str(token)
        found: str | None = self._added.get(number) or self._backend.id_to_token(number)
        return found


def _steps(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The steps of a tokenizer's decoder, those of sequences included."""
    if decoder is not None:
        yield decoder
        for step in decoder.get("decoders", ()):
            yield from _steps(step)


def _space_of(step: Mapping[str, Any]) -> str | None:
    """The character that stands for a space, where this step of a decoder puts spaces back."""
    if step["type"] == "Metaspace":
        return str(step["replacement"])
    if step["type"] == "Replace" and step["content"] == " " and len(step["pattern"].get("String", "")) == 1:
        return str(step["pattern"]["String"])
    return None


def _byte_characters() -> dict[str, int]:
    """The character that a byte-level vocabulary writes → the byte: itself where it is printable, else from U+0100."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}
