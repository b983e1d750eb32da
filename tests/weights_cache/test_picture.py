"""The picture of a pair: every token shaded by its weight, all text there and harmless, nothing from elsewhere."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.weights_cache.samples import TEXT, make_row
from twdpo.preferences import Message, Pair
from twdpo.weights_cache import SideWeights, WeightRow
from twdpo.weights_cache.picture import draw_pair, visible

SVG = "{http://www.w3.org/2000/svg}"
LAYER = 3


def side(*tokens: tuple[int, int, float]) -> SideWeights:
    starts, ends, weights = zip(*tokens, strict=True)
    return SideWeights(
        starts=np.array(starts, np.int32),
        ends=np.array(ends, np.int32),
        weights={LAYER: np.array(weights, np.float32)},
    )


def words(text: str, weight: float = 1.0) -> SideWeights:
    """A token a word, each with the white space before it."""
    return side(*((match.start(), match.end(), weight) for match in re.finditer(r"\s*\S+|\s+$", text)))


def draw(chosen: str, rejected: str = "no", prompt: str = "q", chosen_side: SideWeights | None = None) -> ET.Element:
    pair = Pair(prompt=(Message(role="user", content=prompt),), chosen=chosen, rejected=rejected)
    row = WeightRow(example_hash=pair.example_hash, chosen=chosen_side or words(chosen), rejected=words(rejected))
    return ET.fromstring(draw_pair(pair, row, LAYER))


def texts(picture: ET.Element) -> list[str]:
    return [(each.text or "").replace("\u00a0", " ") for each in picture.iter(f"{SVG}text")]


def heat(picture: ET.Element) -> list[float]:
    """How strongly each token is shaded, in order; the legend's boxes are left out."""
    shades = [each.get("fill-opacity") for each in picture.iter(f"{SVG}rect") if each.get("class") == "heat"]
    return [float(shade or "nan") for shade in shades[:-6]]


def shade(weight: float) -> float:
    return round(min(1, math.log1p(weight) / math.log1p(8)), 2)


def test_every_token_is_shaded_by_its_weight() -> None:
    picture = draw("one two six", "no", chosen_side=side((0, 3, 0.0), (3, 7, 2.0), (7, 11, 20.0)))
    assert heat(picture) == [shade(0), shade(2), 1.0, shade(1)]
    assert [text for text in texts(picture) if text in {"one", "two", "six", "no"}] == ["one", "two", "six", "no"]


def test_shade_and_text_stand_in_the_same_place() -> None:
    picture = draw("one two", chosen_side=side((0, 3, 1.0), (3, 7, 2.0)))
    boxes = [each for each in picture.iter(f"{SVG}rect") if each.get("class") == "heat"]
    (two,) = (each for each in picture.iter(f"{SVG}text") if each.text == "two")
    left, width = float(boxes[1].get("x", "")), float(boxes[1].get("width", ""))
    assert left < float(two.get("x", "")) < left + width
    assert float(two.get("x", "")) + float(two.get("textLength", "")) == pytest.approx(left + width, abs=1)


def test_tokens_on_one_character_are_one_with_the_heaviest_weight() -> None:
    for first, second in ((0.1, 4.0), (4.0, 0.1)):
        picture = draw("a🙂b", chosen_side=side((0, 1, 0.0), (1, 2, first), (1, 2, second), (2, 3, 0.0)))
        assert heat(picture)[:3] == [0.0, shade(4), 0.0]
    assert texts(picture).count("🙂") == 1


def test_what_no_token_covers_is_not_shaded_but_shown() -> None:
    picture = draw("one two three", chosen_side=side((4, 7, 1.0)))
    assert len(heat(picture)) == 2
    assert {"one", "two", "three"} <= set(texts(picture))


def test_a_line_feed_is_shown_where_it_has_weight() -> None:
    picture = draw("a\n\nb", chosen_side=side((0, 1, 1.0), (1, 2, 4.0), (2, 3, 0.5), (3, 4, 1.0)))
    assert texts(picture).count("↵") == 2
    assert heat(picture)[:4] == [shade(1), shade(4), shade(0.5), shade(1)]


def test_long_texts_end_in_an_ellipsis() -> None:
    long = " ".join(f"word{i}" for i in range(4000))
    picture = draw(long, "short", prompt=long)
    assert sum(text.endswith("…") for text in texts(picture)) == 2
    assert "4000 tokens" in texts(picture)
    assert float(picture.get("height", "")) < 700
    assert "…" not in texts(draw("word " * 20, "short"))
    assert "…" in texts(draw("\n" * 60, "short"))


def test_nothing_is_wider_than_the_picture() -> None:
    picture = draw("w" * 500 + " " + "世" * 200, "x " * 200)
    for each in picture.iter():
        if each.tag in (f"{SVG}rect", f"{SVG}text") and (width := each.get("width") or each.get("textLength")):
            assert float(each.get("x", "0")) >= 0
            assert float(each.get("x", "0")) + float(width) <= 800


def test_the_caption_leaves_nothing_out() -> None:
    row = replace(make_row(1, layers=(100,)), judge_prob_cr=0.25, judge_prob_rc=0.75)
    picture = ET.fromstring(draw_pair(Pair(prompt=(), chosen="x" * 400, rejected="y" * 400), row, 100))
    (caption,) = (each for each in picture.iter(f"{SVG}text") if (each.text or "").startswith("P(chosen)"))
    assert float(caption.get("x", "")) - 12 * 0.61 * len(caption.text or "") > 0


def test_the_verdict_is_told_where_there_is_one() -> None:
    row = replace(make_row(1), judge_prob_cr=0.25, judge_prob_rc=0.75)
    pair = Pair(prompt=(), chosen="x" * 400, rejected="y" * 400)
    assert "P(chosen) 0.25 when first, 0.75 when second; layer 29" in draw_pair(pair, row, 29)
    assert "P(chosen)" not in draw_pair(pair, replace(row, judge_prob_rc=float("nan")), 29)


def test_nothing_comes_from_elsewhere_and_nothing_runs() -> None:
    evil = '<script>alert(1)</script><a href="http://x">]]> & \'"</style><image/>'
    picture = draw(evil, evil, prompt=evil)
    assert {each.tag.removeprefix(SVG) for each in picture.iter()} == {"svg", "title", "style", "rect", "text"}
    allowed = {"class", "x", "y", "width", "height", "rx", "fill-opacity", "textLength", "lengthAdjust", "text-anchor"}
    for each in picture.iter():
        assert set(each.attrib) <= (allowed if each is not picture else allowed | {"viewBox", "role"})
    style = picture.findtext(f"{SVG}style") or ""
    assert "url" not in style
    assert "import" not in style
    assert "prefers-color-scheme:dark" in style


@given(st.text(max_size=80), st.text(max_size=80), st.text(max_size=30), st.randoms(use_true_random=False))
def test_any_text_is_well_formed_and_shown(chosen: str, rejected: str, prompt: str, random: object) -> None:
    picture = draw(chosen or "x", rejected or "x", prompt, words(chosen or "x"))
    shown = "".join(texts(picture))
    for character in {*chosen, *rejected}:
        if character.isalnum():
            assert character in shown
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", shown)


def test_what_would_hide_or_turn_text_is_shown_by_name() -> None:
    assert visible("a\u202eb\x00\u200d\t\n") == "a⟨U+202E⟩b⟨U+0000⟩\u200d    \n"
    assert "⟨U+0000⟩" in "".join(texts(draw(TEXT)))
    assert "👩‍👩‍👧" in texts(draw("👩‍👩‍👧 b", chosen_side=side((0, 5, 1.0), (5, 7, 1.0))))
