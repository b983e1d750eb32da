"""Message lists in their several spellings, and transcripts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twdpo.preferences import Message
from twdpo.preferences.messages import UnusableRow, is_transcript, messages, transcript

DIALOGUE = (Message(role="user", content=" Hi\n"), Message(role="assistant", content=""))
TURNS = st.lists(
    st.builds(
        Message,
        role=st.sampled_from(["user", "assistant"]),
        content=st.text().filter(lambda said: "Human:" not in said and "Assistant:" not in said),
    ),
    max_size=5,
).map(lambda turns: (Message(role="user", content="Hi"), *turns))


@pytest.mark.parametrize(
    "value",
    [
        [{"role": "user", "content": " Hi\n"}, {"role": "assistant", "content": ""}],
        ({"content": " Hi\n", "role": "user"}, {"content": "", "role": "assistant", "name": None, "tool_calls": []}),
        [{"from": "human", "value": " Hi\n"}, {"from": "gpt", "value": ""}],
        [{"from": "human", "value": " Hi\n", "role": None, "content": None}, {"from": "gpt", "value": ""}],
        {"role": ["user", "assistant"], "content": [" Hi\n", ""]},
        {"from": ["human", "gpt"], "value": [" Hi\n", ""]},
        [
            {
                "content": [{"type": "text", "text": " H"}, {"type": "text", "text": "i\n", "image": None}],
                "role": "user",
            },
            {"content": [], "role": "assistant"},
        ],
        [
            {"role": "user", "content": {"type": ["text", "text"], "text": [" H", "i\n"]}},
            {"role": "assistant", "content": {"type": "text", "text": ""}},
        ],
    ],
)
def test_every_spelling_gives_the_same_messages(value: object) -> None:
    assert messages(value, "`chosen`") == DIALOGUE


def test_a_single_message_and_other_roles_are_kept() -> None:
    assert messages({"role": "tool", "content": "4"}, "`prompt`") == (Message(role="tool", content="4"),)
    assert messages([{"from": "system", "value": "Be brief."}], "`prompt`")[0].role == "system"
    assert messages([{"role": "gpt", "content": "x"}], "`prompt`")[0].role == "gpt"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (["hello"], "message 1 of `chosen` is text, not an object with role and content"),
        ([{"content": "x"}], "the role in message 1 of `chosen` is missing"),
        ([{"role": 3, "content": "x"}], "the role in message 1 of `chosen` is a number, not text"),
        ([{"role": "user"}], "the content of message 1 of `chosen` is missing"),
        ([{"role": "user", "content": True}], "the content of message 1 of `chosen` is true or false, not text"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "\ud83d"}],
            "the content of message 2 of `chosen` holds half of a surrogate pair, which is not valid text",
        ),
        (
            [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}],
            "the content of message 1 of `chosen` holds a part of type 'image'; only text can be used",
        ),
        ([{"role": "user", "content": ["x"]}], "holds text, not parts with a type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "a text part in the content of message 1"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}], "holds tool calls, which are not text"),
        ({"role": ["user", "assistant"], "content": ["x"]}, "lists of different lengths"),
        ({"role": ["user"], "content": "x"}, "lists of different lengths"),
        (3, "`chosen` is a number, not a list of messages"),
    ],
)
def test_what_is_no_message_is_named(value: object, reason: str) -> None:
    with pytest.raises(UnusableRow) as caught:
        messages(value, "`chosen`")
    assert reason in str(caught.value)


@given(TURNS)
def test_a_transcript_gives_back_the_turns_it_was_made_of(turns: tuple[Message, ...]) -> None:
    speakers = {"user": "Human", "assistant": "Assistant"}
    text = "".join(f"\n\n{speakers[turn.role]}: {turn.content}" for turn in turns)
    assert is_transcript(text)
    assert transcript(text) == turns


def test_transcripts_without_the_space_or_the_first_blank_line() -> None:
    assert transcript("Human: a\n\nAssistant:") == (
        Message(role="user", content="a"),
        Message(role="assistant", content=""),
    )
    assert transcript("\n\n\n Human: a\n\nAssistant: b") == transcript("\n\nHuman: a\n\nAssistant: b")
    assert not is_transcript("The human: a\n\nAssistant: b")
    assert not is_transcript("\n\nAssistant: b")


def test_a_speaker_s_name_inside_a_line_or_paragraph_is_text() -> None:
    said = "he wrote Human: and\nAssistant: too"
    assert transcript(f"\n\nHuman: {said}")[0].content == said
