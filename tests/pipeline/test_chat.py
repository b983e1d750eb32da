"""Chat templates give the same text on every day."""

from __future__ import annotations

import pytest

from tests.fixtures.tiny_models import CHATML, tiny_tokenizer
from twdpo.pipeline.chat import FIXED_DATE, chat_template, render_chat
from twdpo.preferences import Message

TURNS = (Message(role="user", content="Hi"), Message(role="assistant", content="Hello"))


@pytest.mark.parametrize("date", ["{{ strftime_now('%Y-%m-%d') }}", "{{ date_string }}"])
def test_dates_stand_still(date: str) -> None:
    rendered = render_chat(tiny_tokenizer(date + CHATML), TURNS)
    assert rendered == FIXED_DATE + render_chat(tiny_tokenizer(), TURNS)


def test_leading_white_space_of_a_template_is_kept() -> None:
    body = "\n  x{{ strftime_now('%d') }}"
    assert render_chat(tiny_tokenizer(body), TURNS) == f"\n  x{FIXED_DATE}"


def test_arguments_reach_the_template_and_win() -> None:
    tokenizer = tiny_tokenizer("{{ date_string }} {{ enable_thinking }}")
    assert render_chat(tokenizer, TURNS, arguments={"date_string": "now", "enable_thinking": 3}) == "now 3"


def test_parts_and_generation_header() -> None:
    parts = tiny_tokenizer("{% for m in messages %}{{ m.content[0].text }}|{% endfor %}")
    assert render_chat(parts, TURNS, in_parts=True) == "Hi|Hello|"
    assert render_chat(tiny_tokenizer(), TURNS[:1], add_generation_prompt=True).endswith("<|im_start|>assistant\n")


def test_no_template() -> None:
    assert chat_template(tiny_tokenizer(None)) is None
