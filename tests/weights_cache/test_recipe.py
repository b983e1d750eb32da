"""Recipes: fingerprints, their way through JSON, and the lines that say how two differ."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.weights_cache.samples import RECIPE
from twdpo.weights_cache import Recipe

CHANGES: dict[str, Any] = {
    "source": "uniform",
    "judge_model": "another/judge",
    "judge_revision": None,
    "dtype": "bfloat16",
    "judge_template": "another template",
    "chat_template_hash": None,
    "chat_template_kwargs": {"enable_thinking": True},
    "max_length": 1024,
    "answer_tokens": 700,
    "template_tokens": 301,
    "orders": ("cr",),
    "layers": (0, 3),
    "source_options": {"gamma": 0.98},
}


def test_the_fingerprint_is_the_hash_that_the_format_says() -> None:
    text = json.dumps(RECIPE.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert RECIPE.fingerprint == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_the_fingerprint_of_a_version_stays() -> None:
    # Caches on people's disks were written under it.
    assert RECIPE.fingerprint == "882daa6e6ba5300b"


@pytest.mark.parametrize("name", [field.name for field in fields(Recipe)])
def test_every_field_counts(name: str) -> None:
    other = replace(RECIPE, **{name: CHANGES[name]})
    assert other.fingerprint != RECIPE.fingerprint
    lines = RECIPE.differences(other)
    assert len(lines) == 1
    assert lines[0].startswith(f"{name}: ")
    assert "\n" not in lines[0]


def test_differences_read_as_sentences() -> None:
    other = replace(RECIPE, dtype="bfloat16", layers=(29,), judge_revision=None)
    assert RECIPE.differences(other) == [
        "judge_revision: 0123abcd in the cache, none asked for",
        "dtype: float32 in the cache, bfloat16 asked for",
        "layers: 0,3,29 in the cache, 29 asked for",
    ]
    assert RECIPE.differences(RECIPE) == []


def test_a_template_shows_as_its_hash() -> None:
    (line,) = RECIPE.differences(replace(RECIPE, judge_template="secret\ntext"))
    assert "secret" not in line
    assert line.count("sha256 ") == 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.text(st.characters()),
    st.dictionaries(st.text(), json_values, max_size=3),
    st.sets(st.integers(0, 200), min_size=1, max_size=6),
)
def test_json_and_back(template: str, kwargs: dict[str, Any], layers: set[int]) -> None:
    recipe = replace(RECIPE, judge_template=template, chat_template_kwargs=kwargs, layers=tuple(layers))
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe
    assert again.fingerprint == recipe.fingerprint


def test_the_order_of_layers_and_arguments_does_not_count() -> None:
    one = replace(RECIPE, layers=(29, 0, 3), chat_template_kwargs={"a": 1, "b": (2,)})
    other = replace(RECIPE, layers=(0, 3, 29), chat_template_kwargs={"b": [2], "a": 1})
    assert one == other
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("layers", [(), (1, 1), (-1,)])
def test_layers_must_be_distinct_and_real(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="layers must be distinct"):
        replace(RECIPE, layers=layers)


@pytest.mark.parametrize("change", [{"dtype": None}, {"surprise": 1}])
def test_json_of_something_else_is_refused(change: dict[str, Any]) -> None:
    content = {**RECIPE.to_json(), **change}
    if change["dtype" if "dtype" in change else "surprise"] is None:
        del content["dtype"]
    with pytest.raises(ValueError, match="not a recipe"):
        Recipe.from_json(content)
