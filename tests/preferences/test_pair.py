"""The example hash: what it depends on, and that it never changes."""

from __future__ import annotations

import hashlib
import json

from hypothesis import given
from hypothesis import strategies as st

from twdpo.preferences import Message, Pair, example_hash
from twdpo.preferences.pair import canonical_json

TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)  # lone surrogates too
PROMPTS = st.lists(st.builds(Message, role=st.sampled_from(["system", "user"]), content=TEXTS), max_size=3).map(tuple)


def test_the_hash_of_a_known_pair_stays_what_it_is() -> None:
    pair = Pair(prompt=(Message(role="user", content="Qué?\n"),), chosen=" yes", rejected='"no"')
    spelled_out = '{"chosen":" yes","prompt":[{"content":"Qué?\\n","role":"user"}],"rejected":"\\"no\\""}'
    assert pair.example_hash == hashlib.sha256(spelled_out.encode()).hexdigest()[:32]
    assert pair.example_hash == "a28cddce688b3ef9a1bff84e1dab600a"


@given(PROMPTS, TEXTS, TEXTS)
def test_every_text_has_a_hash_and_the_row_is_no_part_of_it(
    prompt: tuple[Message, ...], chosen: str, rejected: str
) -> None:
    value = example_hash(prompt, chosen, rejected)
    assert len(value) == 32
    assert set(value) <= set("0123456789abcdef")
    assert Pair(prompt=prompt, chosen=chosen, rejected=rejected, row=7).example_hash == value


@given(st.lists(st.tuples(PROMPTS, TEXTS, TEXTS), min_size=2, max_size=2, unique_by=repr))
def test_different_pairs_have_different_hashes(pairs: list[tuple[tuple[Message, ...], str, str]]) -> None:
    first, second = pairs
    assert example_hash(*first) != example_hash(*second)


@given(PROMPTS, st.text(max_size=20), st.text(max_size=20))
def test_what_is_hashed_is_json_of_the_three_parts(prompt: tuple[Message, ...], chosen: str, rejected: str) -> None:
    read = json.loads(canonical_json(prompt, chosen, rejected))
    assert read == {
        "prompt": [{"role": message.role, "content": message.content} for message in prompt],
        "chosen": chosen,
        "rejected": rejected,
    }
