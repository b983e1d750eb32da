"""Where tokens lie in an answer: their bytes are laid along the answer's own. Pure functions.

Nothing is searched for and nothing is guessed: the bytes fit from the answer's beginning, or the pair is left out.
Not for: the bytes of tokens (`spelling.py`), or moving weights between tokenizations (`weights_cache/alignment.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twdpo.pipeline.importing.layout import UnusableWeights

Ints = NDArray[np.int32]

#: What transformers takes out of decoded text where a tokenizer asks for it, in its order: pattern → characters of it.
_CLEANED = {
    " .": (0,),
    " ?": (0,),
    " !": (0,),
    " ,": (0,),
    " ' ": (0, 2),
    " n't": (0,),
    " 'm": (0,),
    " 's": (0,),
    " 've": (0,),
    " 're": (0,),
}


def align(pieces: Sequence[bytes], text: str) -> tuple[Ints, Ints]:
    """The characters `[starts, ends)` of `text` that each token touches; int32[n] each.

    pieces: the bytes of n tokens, which spell the beginning of `text` from its first character that is not white
    space. The first may bring white space along that stands before the text, the last some that stands behind it.
    Several tokens may share one character. Raises UnusableWeights where the bytes are others.
    """
    stripped = text.strip()
    content = stripped.encode()
    before = len(pieces[0]) - len(pieces[0].lstrip())
    spelled = b"".join(pieces)[before:]
    ends = np.cumsum([len(piece) for piece in pieces]) - before
    starts = np.concatenate([[0], ends[:-1]])
    inside = spelled[: len(content)]
    behind = spelled[len(content) :]
    if not content.startswith(inside):
        raise UnusableWeights("the tokens spell another text")
    if np.any(ends <= starts):
        raise UnusableWeights("a token holds nothing of the answer")
    if starts[-1] >= len(content) or (behind and not behind.isspace()):
        raise UnusableWeights("the tokens go on behind the answer's end")
    # Every byte but those that continue a character.
    begins = (np.frombuffer(content, np.uint8) & 0xC0) != 0x80
    character = np.cumsum(begins) - 1 + text.index(stripped)
    last = np.minimum(ends, len(content)) - 1
    return character[starts].astype(np.int32), (character[last] + 1).astype(np.int32)


def cleaned(text: str) -> tuple[str, Ints]:
    """`text` without the spaces that transformers' clean-up removes, and the place in `text` of each character left."""
    kept = np.arange(len(text), dtype=np.int32)
    for pattern, places in _CLEANED.items():
        found = [match.start() for match in re.finditer(re.escape(pattern), text)]
        if found:
            stays = np.ones(len(text), np.bool_)
            stays[np.add.outer(found, places).ravel()] = False
            text = "".join(character for character, keep in zip(text, stays, strict=True) if keep)
            kept = kept[stays]
    return text, kept
