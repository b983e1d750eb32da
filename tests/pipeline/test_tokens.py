"""Special tokens count where a template put them and nowhere else; everything else is the tokenizer's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.tiny_models import SPECIAL_TOKENS, tiny_tokenizer
from twdpo.errors import ModelError
from twdpo.pipeline.tokens import LiteralTokenizer, Tokens

TEMPLATED = "<|im_start|>user\nHello  the world\n<|im_end|>\n<|im_start|>assistant\n"


def spaced_tokenizer() -> Any:
    """A tokenizer in the way of SentencePiece: spaces become ▁ and one is put before the first word only."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator(["the cat and the dog", "user and assistant", "hello the world </s>"], trainer)
    backend.add_tokens([AddedToken("<think>", special=False), AddedToken("[INST]", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


BYTE_LEVEL = LiteralTokenizer(tiny_tokenizer())


def test_template_text_gives_the_tokenizers_own_ids() -> None:
    expected = BYTE_LEVEL.tokenizer(TEMPLATED, add_special_tokens=False)["input_ids"]
    assert {1, 2} <= set(expected)
    assert BYTE_LEVEL.encode(BYTE_LEVEL.mark(TEMPLATED)).ids.tolist() == expected


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_the_spelling_of_a_special_token_is_text(special: str) -> None:
    tokens = BYTE_LEVEL.encode(f"a {special} b")
    assert not set(tokens.ids.tolist()) & {0, 1, 2}
    assert BYTE_LEVEL.tokenizer.decode(tokens.ids.tolist()) == f"a {special} b"


@given(st.text())
@settings(deadline=None)
def test_plain_text_gives_the_tokenizers_own_ids_and_covers_it(text: str) -> None:
    if BYTE_LEVEL.spells_special(text):
        return
    tokens = BYTE_LEVEL.encode(text)
    assert tokens.ids.tolist() == BYTE_LEVEL.tokenizer(text, add_special_tokens=False)["input_ids"]
    covered = {i for s, e in zip(tokens.starts, tokens.ends, strict=True) for i in range(s, e)}
    assert covered == set(range(len(text)))


@given(st.text(alphabet="<|im_endstar> \ue000-+0"))
def test_shield_is_undone(text: str) -> None:
    for inserted in (text, f"{text}<|im_end|>{text}"):
        shielded = BYTE_LEVEL.shield(inserted)
        assert not BYTE_LEVEL.spells_special(shielded)
        assert BYTE_LEVEL.unshield(shielded) == inserted
        assert BYTE_LEVEL.mark(shielded) == shielded


def test_prefix_space_and_added_tokens_stay_the_tokenizers_own() -> None:
    tokenizer = spaced_tokenizer()
    literal = LiteralTokenizer(tokenizer)
    text = "<s>[INST]hello the world[INST]<think>the cat</s>"
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert literal.encode(literal.mark(text)).ids.tolist() == expected
    as_text = literal.encode("the </s> dog").ids.tolist()
    assert tokenizer.convert_tokens_to_ids("</s>") not in as_text
    think = tokenizer.convert_tokens_to_ids("<think>")
    assert think in literal.encode("a <think> b").ids.tolist()  # no special token: an ordinary word of the vocabulary


def test_offsets_keep_white_space_that_post_processors_trim() -> None:
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokens = LiteralTokenizer(tokenizer).encode("a   b")
    assert sum(tokens.ends - tokens.starts) == 5


def test_beginning_of_sequence_is_known() -> None:
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    assert LiteralTokenizer(tokenizer).bos_ids == ()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    assert LiteralTokenizer(tokenizer).bos_ids == (0,)


def test_overlapping_finds_tokens_by_characters() -> None:
    tokens = BYTE_LEVEL.encode("ab 🙂 cd")
    first, last = tokens.overlapping(3, 4)  # the emoji: several tokens on one character
    assert last - first == 4
    assert tokens.overlapping(4, 4) == (0, 0)
    assert isinstance(tokens, Tokens)
    assert len(tokens) == len(tokens.ids)


def test_a_tokenizer_without_offsets_is_refused() -> None:
    with pytest.raises(ModelError, match="gives no character offsets"):
        LiteralTokenizer(SimpleNamespace(is_fast=False))
