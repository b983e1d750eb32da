"""Every preference format gives the same pair, and every bad row a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from twdpo.errors import DataError
from twdpo.preferences import Message, Pair, Reject, check_columns, example_hash, parse_row

Row = dict[str, Any]


def user(content: str) -> Row:
    return {"role": "user", "content": content}


def assistant(content: str) -> Row:
    return {"role": "assistant", "content": content}


def system(content: str) -> Row:
    return {"role": "system", "content": content}


SKY = "What colour is the sky?"
COMPLETIONS = {"chosen": [assistant("Blue.")], "rejected": [assistant("Green.")]}
WHOLE = {"chosen": [user(SKY), assistant("Blue.")], "rejected": [user(SKY), assistant("Green.")]}
PLAIN = {"chosen": "Blue.", "rejected": "Green."}

SAME_PAIR: dict[str, Row] = {
    "strings": {"prompt": SKY, **PLAIN},
    "messages, completion only": {"prompt": [user(SKY)], **COMPLETIONS},
    "messages, whole conversations": {"prompt": [user(SKY)], **WHOLE},
    "implicit, conversations": WHOLE,
    "ultrafeedback": {"prompt": SKY, "prompt_id": "0", "messages": WHOLE["chosen"], "score_chosen": 9.0, **WHOLE},
    "ultrafeedback, other prompt": {"prompt": "only a label", **WHOLE},
    "the chosen conversation a second time": {"messages": WHOLE["chosen"], **WHOLE},
    "string prompt, completions": {"prompt": SKY, **COMPLETIONS},
    "messages prompt, string answers": {"prompt": [user(SKY)], **PLAIN},
    "one message as prompt": {"prompt": user(SKY), "chosen": assistant("Blue."), "rejected": assistant("Green.")},
    "transcripts": {
        "chosen": f"\n\nHuman: {SKY}\n\nAssistant: Blue.",
        "rejected": f"\n\nHuman: {SKY}\n\nAssistant: Green.",
    },
    "orca, no system": {"system": "", "question": SKY, **PLAIN},
    "prompt is null, question is not": {"prompt": None, "question": SKY, **PLAIN},
    "instruction": {"instruction": SKY, "input": "", **PLAIN},
    "query": {"query": SKY, **PLAIN},
    "input": {"input": SKY, **PLAIN},
    "messages as prompt": {"messages": [user(SKY)], **PLAIN},
    "sharegpt": {
        "conversations": [{"from": "human", "value": SKY}],
        "chosen": {"from": "gpt", "value": "Blue."},
        "rejected": {"from": "gpt", "value": "Green."},
    },
    "sharegpt, whole": {
        side: [{"from": "human", "value": SKY}, {"from": "gpt", "value": answer}] for side, answer in PLAIN.items()
    },
    "one side whole": {"prompt": SKY, "chosen": WHOLE["chosen"], "rejected": "Green."},
}


@pytest.mark.parametrize("row", SAME_PAIR.values(), ids=SAME_PAIR.keys())
def test_every_format_gives_the_same_pair(row: Row) -> None:
    expected = Pair(prompt=(Message(role="user", content=SKY),), chosen="Blue.", rejected="Green.", row=3)
    assert parse_row(row, 3) == expected


@pytest.mark.parametrize(
    "row",
    [
        {"system": "Be brief.", "question": SKY, **PLAIN},
        {"system": "Be brief.", **WHOLE},
        {"system_prompt": "Be brief.", "prompt": [user(SKY)], **PLAIN},
        {"prompt": [system("Be brief."), user(SKY)], **PLAIN},
        {"system": "Another.", "prompt": [system("Be brief."), user(SKY)], **COMPLETIONS},
        {side: [system("Be brief."), *turns] for side, turns in WHOLE.items()},
    ],
)
def test_the_system_turn_is_the_prompt_s_first_message(row: Row) -> None:
    pair = parse_row(row, 0)
    assert isinstance(pair, Pair)
    assert pair.prompt == (Message(role="system", content="Be brief."), Message(role="user", content=SKY))


def test_the_plain_strings_of_trl_s_documentation() -> None:
    pair = parse_row({"chosen": "The sky is blue.", "rejected": "The sky is green."}, 0)
    assert pair == Pair(
        prompt=(Message(role="user", content="The sky is"),), chosen=" blue.", rejected=" green.", row=0
    )


def test_alpaca_s_input_goes_below_the_instruction() -> None:
    pair = parse_row({"instruction": "Translate.", "input": "chat", **PLAIN}, 0)
    assert isinstance(pair, Pair)
    assert [message.content for message in pair.prompt] == ["Translate.\nchat"]


def test_a_completion_of_several_messages_continues_the_prompt() -> None:
    turns = [assistant("Where?"), user("Here.")]
    row = {"prompt": [user(SKY)], "chosen": [*turns, assistant("Blue.")], "rejected": [*turns, assistant("Green.")]}
    pair = parse_row(row, 0)
    assert isinstance(pair, Pair)
    assert [message.content for message in pair.prompt] == [SKY, "Where?", "Here."]


REJECTED: list[tuple[Row, str]] = [
    ({"prompt": SKY, "chosen": "", "rejected": "b"}, "the chosen answer is empty"),
    ({"prompt": SKY, "chosen": "a", "rejected": " \n\t"}, "the rejected answer is empty"),
    ({"prompt": SKY, "chosen": " ", "rejected": ""}, "both answers are empty"),
    ({"prompt": SKY, "chosen": "a", "rejected": "a"}, "both answers are the same"),
    ({"prompt": SKY, "chosen": "a", "rejected": "a\n"}, "both answers are the same but for white space around them"),
    ({"prompt": "", **PLAIN}, "the prompt is empty"),
    ({"prompt": [], **PLAIN}, "the prompt is empty"),
    ({"prompt": None, **PLAIN}, "the prompt is missing"),
    ({"prompt": 3, **PLAIN}, "`prompt` is a number, not text"),
    ({"prompt": SKY, "rejected": "b"}, "`chosen` is missing"),
    ({"prompt": SKY, "chosen": "a", "rejected": None}, "`rejected` is missing"),
    ({"prompt": SKY, "chosen": 1.5, "rejected": "b"}, "`chosen` is a number; expected text or a list of messages"),
    ({"prompt": SKY, "chosen": [], "rejected": "b"}, "`chosen` is an empty list"),
    ({"prompt": SKY, "chosen": "a\ud800", "rejected": "b"}, "`chosen` holds half of a surrogate pair"),
    ({"prompt": "\udfff", **PLAIN}, "`prompt` holds half of a surrogate pair, which is not valid text"),
    ({**WHOLE, "chosen": [user(SKY)]}, "`chosen` ends with a message from 'user'; expected the assistant's answer"),
    ({**WHOLE, "rejected": [user("What?"), assistant("a")]}, "the two sides answer different prompts"),
    (COMPLETIONS, "there is no prompt: `chosen` holds the answer alone"),
    ({**WHOLE, "rejected": "Green."}, "there is no prompt: one side is plain text"),
    ({"prompt": [user("Other.")], **WHOLE}, "`chosen` does not begin with the messages of the prompt"),
    ({"system": 3, "prompt": SKY, **PLAIN}, "the system prompt is a number, not text"),
    ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}, "only one of the two sides is a dialogue"),
    ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}, "different prompts"),
    ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a"}, "ends with a message from 'user'"),
    (PLAIN, "there is no prompt: no column holds one, and the two sides do not begin alike"),
    ({"chosen": "The sky", "rejected": "The sky is"}, "one side is the beginning of the other"),
    ({"chosen": "The sky", "rejected": "The sky"}, "both sides are the same"),
]


@pytest.mark.parametrize(("row", "reason"), REJECTED)
def test_a_bad_row_is_rejected_with_its_reason(row: Row, reason: str) -> None:
    reject = parse_row(row, 9)
    assert isinstance(reject, Reject)
    assert reason in reject.reason
    assert reject.row == 9


def test_a_reject_with_all_three_parts_has_their_hash() -> None:
    reject = parse_row({"prompt": SKY, "chosen": "a", "rejected": "a"}, 0)
    assert isinstance(reject, Reject)
    assert reject.example_hash == example_hash((Message(role="user", content=SKY),), "a", "a")
    reject = parse_row({"prompt": SKY, "chosen": "a"}, 0)
    assert isinstance(reject, Reject)
    assert reject.example_hash is None


TEXT = st.text(max_size=30)
ANSWERS = TEXT.filter(lambda answer: bool(answer.strip()))
PROMPTS = st.lists(
    st.builds(Message, role=st.sampled_from(["user", "assistant", "tool"]), content=TEXT), max_size=4
).map(lambda turns: (Message(role="user", content="Hello!"), *turns))


def spelled(prompt: tuple[Message, ...]) -> list[Row]:
    return [{"role": message.role, "content": message.content} for message in prompt]


@given(PROMPTS, ANSWERS, ANSWERS)
def test_nothing_is_stripped_or_normalised(prompt: tuple[Message, ...], chosen: str, rejected: str) -> None:
    assume(chosen.strip() != rejected.strip())
    expected = Pair(prompt=prompt, chosen=chosen, rejected=rejected, row=0)
    turns = spelled(prompt)
    whole: Row = {"chosen": [*turns, assistant(chosen)], "rejected": [*turns, assistant(rejected)]}
    rows: list[Row] = [
        {"prompt": turns, "chosen": chosen, "rejected": rejected},
        {"prompt": turns, "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]},
        {"prompt": turns, **whole},
        {"prompt": prompt[0].content, **whole},
        whole,
    ]
    assert [parse_row(row, 0) for row in rows] == [expected] * len(rows)


@given(TEXT, ANSWERS, ANSWERS)
def test_a_shared_prefix_and_the_answers_make_up_the_sides(prefix: str, chosen: str, rejected: str) -> None:
    parsed = parse_row({"chosen": prefix + chosen, "rejected": prefix + rejected}, 0)
    if isinstance(parsed, Pair) and len(parsed.prompt) == 1:  # a text that begins with "Human:" is a dialogue
        assert parsed.prompt[0].content + parsed.chosen == prefix + chosen
        assert parsed.prompt[0].content + parsed.rejected == prefix + rejected
        assert len(parsed.prompt[0].content) >= len(prefix.removesuffix(" "))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "type", "text", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = ["prompt", "chosen", "rejected", "system", "question", "instruction", "input", "messages", "conversations"]


@given(st.dictionaries(st.sampled_from(NAMES), JSON), st.integers(min_value=0))
def test_no_row_of_json_raises(row: Row, index: int) -> None:
    parsed = parse_row(row, index)
    assert parsed.row == index
    if isinstance(parsed, Reject):
        assert parsed.reason
        assert "\n" not in parsed.reason
    else:
        json.dumps(parsed.example_hash)
        assert parsed.chosen.strip() != parsed.rejected.strip()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["text"], "pairs.jsonl has the columns text; expected `chosen` and `rejected`"),
        (["prompt", "chosen"], "has the columns prompt, chosen; expected"),
        (["prompt", "completion", "label"], "this looks like unpaired feedback"),
        ([], r"has the columns \(none\)"),
        ([f"column_{i}" for i in range(20)], "column_11, ...; expected"),
    ],
)
def test_wrong_columns_are_named(columns: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_columns(columns, "pairs.jsonl")


def test_right_columns_pass() -> None:
    for row in SAME_PAIR.values():
        check_columns(row, "here")
