"""The data-set card: its header, its figures and picture, its escapes, and who may write it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.preferences.processes import environment
from tests.weights_cache.samples import RECIPE, SOURCE, fill, make_row
from twdpo.errors import CacheError, MissingRows
from twdpo.preferences import Message, Pair
from twdpo.weights_cache import CacheWriter, Manifest
from twdpo.weights_cache.card import PICTURE, is_generated, write_full_card
from twdpo.weights_cache.card_text import MARKER, CardFacts, render_card


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text("utf-8")


def header_of(card: str) -> dict[str, Any]:
    loaded = yaml.safe_load(card.split("---\n", 2)[1])
    assert isinstance(loaded, dict)
    return loaded


def body_of(card: str) -> str:
    return card.split("---\n", 2)[2]


def card_with(**changes: Any) -> str:
    manifest = Manifest(recipe=changes.pop("recipe", RECIPE), sources=changes.pop("sources", (SOURCE,)))
    return render_card(CardFacts(**{"name": "cache", "manifest": manifest, "pairs": 5, **changes}))


def pair_of(number: int) -> Pair:
    row = make_row(number, text=True)
    prompt = tuple(Message(role=role, content=content) for role, content in row.prompt or ())
    return Pair(prompt=prompt, chosen=row.chosen_text or "", rejected=row.rejected_text or "")


def test_the_header_points_at_the_shards(tmp_path: Path) -> None:
    fill(tmp_path, range(5))
    assert header_of(card_of(tmp_path))["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}
    ]


def test_a_run_writes_counts_recipe_and_sources(tmp_path: Path) -> None:
    fill(tmp_path, range(5))
    body = body_of(card_of(tmp_path))
    assert "| pairs | 5 |\n| cut to the judge's length | 2 |\n| left out (see rejects.jsonl) | 0 |" in body
    assert "judged tokens" not in body
    assert RECIPE.fingerprint in body
    assert "| judge_model | a/judge |\n| judge_revision | 0123abcd |\n| dtype | float32 |" in body
    assert f"    {RECIPE.judge_template}\n" in body
    assert "| demo |  | train |  | Apache-2.0 |" in body
    assert PICTURE not in body


def test_before_the_first_run_has_ended_the_card_says_so(tmp_path: Path) -> None:
    with CacheWriter.open(tmp_path, RECIPE):
        assert "has not ended yet" in card_of(tmp_path)
        assert "size_categories" not in header_of(card_of(tmp_path))


def test_the_full_card_has_figures_over_all_rows(tmp_path: Path) -> None:
    rows = fill(tmp_path, range(9))
    with CacheWriter.open(tmp_path, RECIPE, dataset=SOURCE) as writer:
        writer.reject(3, "too long", None, "demo")
    assert write_full_card(tmp_path)
    card = card_of(tmp_path)
    tokens = sum(len(row.chosen) + len(row.rejected) for row in rows)
    accuracy = sum(row.judge_prob_cr > 0.5 for row in rows) / len(rows)
    first = sum(row.side(side).weights[29][0] for row in rows for side in ("chosen", "rejected")) / len(rows) / 2
    assert "| pairs | 9 |\n| cut to the judge's length | 3 |\n| left out (see rejects.jsonl) | 1 |\n" in card
    assert f"| judged tokens | {tokens:,} |" in card
    assert f"| ... where chosen stood first | {accuracy:.1%} |" in card
    assert f"| mean weight of the first token (layer 29) | {first:.2f} |" in card
    # One side of these rows has no agreement, so that there is no mean of both.
    assert "| agreement of the two orders' weights | – |" in card


def test_the_full_card_of_nothing_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, ())
    with pytest.raises(CacheError, match="no pairs yet"):
        write_full_card(tmp_path)


def test_how_to_load_it_names_the_folder_or_the_repository(tmp_path: Path) -> None:
    fill(tmp_path / "it's", range(1))
    assert 'load_dataset("it\'s", split="train")' in card_of(tmp_path / "it's")
    assert "twdpo train --weights 'it'\"'\"'s'" in card_of(tmp_path / "it's")
    write_full_card(tmp_path / "it's", repository="me/weights")
    assert 'load_dataset("me/weights", split="train")' in card_of(tmp_path / "it's")
    assert "twdpo cache pull me/weights weights_cache\n" in card_of(tmp_path / "it's")


@pytest.mark.parametrize("text", [True, False])
def test_the_picture_is_of_the_first_pair_that_fits_or_of_the_one_given(tmp_path: Path, text: bool) -> None:
    fill(tmp_path, range(1, 6), text=text)
    write_full_card(tmp_path)
    assert (tmp_path / PICTURE).exists() == text
    assert (f"]({PICTURE})" in card_of(tmp_path)) == text
    write_full_card(tmp_path, example=pair_of(4))
    drawn = (tmp_path / PICTURE).read_text("utf-8")
    assert f"P(chosen) {make_row(4).judge_prob_cr:.2f} when first" in drawn
    # Later runs keep it; without texts, so does the next full card.
    fill(tmp_path, range(7), text=text)
    assert f"]({PICTURE})" in card_of(tmp_path)
    if not text:
        write_full_card(tmp_path)
        assert (tmp_path / PICTURE).read_text("utf-8") == drawn
    with pytest.raises(MissingRows):
        write_full_card(tmp_path, example=pair_of(99))


def test_pairs_that_would_be_cut_are_passed_over(tmp_path: Path) -> None:
    short = Pair(prompt=(Message(role="user", content="q"),), chosen="word " * 30, rejected="other " * 30)
    row = replace(
        make_row(1, text=True),
        example_hash=short.example_hash,
        prompt=(("user", "q"),),
        chosen_text=short.chosen,
        rejected_text=short.rejected,
        truncated=False,
    )
    long = replace(row, chosen_text="word " * 3000)
    long_pair = replace(short, chosen="word " * 3000)
    with CacheWriter.open(tmp_path, RECIPE, include_text=True) as writer:
        writer.add(replace(long, example_hash=long_pair.example_hash))
        writer.add(row)
    write_full_card(tmp_path)
    assert "other" in (tmp_path / PICTURE).read_text("utf-8")
    assert "…" not in (tmp_path / PICTURE).read_text("utf-8")


def test_what_a_person_wrote_is_kept(tmp_path: Path) -> None:
    fill(tmp_path, range(2), text=True)
    mine = card_of(tmp_path).replace(MARKER, "My own words.")
    (tmp_path / "README.md").write_text(mine, "utf-8")
    fill(tmp_path, range(4), text=True)
    assert not write_full_card(tmp_path)
    assert card_of(tmp_path) == mine
    assert not (tmp_path / PICTURE).exists()
    assert not write_full_card(tmp_path, example=pair_of(1))
    assert card_of(tmp_path) == mine
    assert (tmp_path / PICTURE).exists()


@pytest.mark.parametrize(
    ("text", "generated"),
    [
        ("", True),
        ("---\nlicense: mit\n---\n", True),
        ("---\r\nlicense: mit\r\n---\r\n\r\n", True),
        (f"---\na: 1\n---\n{MARKER}\n# Title\n", True),
        (f"{MARKER}\r\ntext", True),
        ("text", False),
        ("---\ntext", False),
        ("---\na: 1\n---\ntext", False),
        (f"---\na: 1\n---\ntext\n    {MARKER}\n", False),
        (f"I deleted the line {MARKER}", False),
    ],
)
def test_a_card_is_the_program_s_by_its_marker_line(text: str, generated: bool) -> None:
    assert is_generated(text) == generated


def test_a_template_that_holds_the_marker_does_not_make_a_card_the_program_s() -> None:
    card = card_with(recipe=replace(RECIPE, judge_template=f"{MARKER}\r{MARKER}\n\n```\n</details>\n# x"))
    assert is_generated(card)
    assert not is_generated(card.replace(f"\n{MARKER}\n", "\nmine\n", 1))


@pytest.mark.parametrize(
    ("licences", "given", "wanted"),
    [
        (["Apache-2.0"], None, {"license": "apache-2.0"}),
        (["MIT", "MIT"], None, {"license": "mit"}),
        (["MIT", "CC-BY-4.0"], None, {"license": ["mit", "cc-by-4.0"]}),
        (["MIT", None], None, {"license": "unknown"}),
        ([None], None, {"license": "unknown"}),
        ([], None, {"license": "unknown"}),
        (["My Own: v2"], None, {"license": "other", "license_name": "my-own-v2"}),
        ([None], "cc0-1.0", {"license": "cc0-1.0"}),
        (["MIT"], "Weights Licence", {"license": "other", "license_name": "weights-licence"}),
    ],
)
def test_the_licence_is_the_sources_unless_one_is_given(
    licences: list[str | None], given: str | None, wanted: dict[str, object]
) -> None:
    header = header_of(card_with(sources=tuple({**SOURCE, "licence": each} for each in licences), licence=given))
    assert {key: value for key, value in header.items() if key.startswith("license")} == wanted


def test_sources_on_the_hub_are_linked_and_paths_of_this_machine_are_not_told() -> None:
    hub = {"name": "ultrafeedback", "kind": "hub", "location": "org/pairs", "revision": "a" * 40}
    file = {"name": "/home/someone/secret/pairs.jsonl", "kind": "file", "location": "/home/someone/secret/pairs.jsonl"}
    card = card_with(sources=(hub, file))
    assert header_of(card)["source_datasets"] == ["org/pairs"]
    assert "| pairs.jsonl |  |  |  | not stated |" in card
    assert "someone" not in card
    assert header_of(card)["pretty_name"] == "Token weights for org/pairs, pairs.jsonl, judged by a/judge"
    assert "source_datasets" not in header_of(card_with(sources=(file,)))


@pytest.mark.parametrize(("pairs", "size"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (5 * 10**6, "1M<n<10M")])
def test_the_size_category_goes_by_pairs(pairs: int, size: str) -> None:
    assert header_of(card_with(pairs=pairs))["size_categories"] == [size]


def skeleton(card: str) -> list[tuple[str, int]]:
    """The lines of a card that are no code block: how each begins, and how many columns it has."""
    lines = [line for line in body_of(card).split("\n") if line and not line.startswith("    ")]
    columns = [line.replace("\\\\", "").replace("\\|", "").count("|") for line in lines]
    return [(line[0], count if line[0] == "|" else 0) for line, count in zip(lines, columns, strict=True)]


@given(st.text(max_size=40))
def test_nothing_in_the_manifest_can_break_the_card(text: str) -> None:
    """Whatever a name holds, the header reads, no line is added, and no table gets another column."""

    def card_of_text(text: str) -> str:
        source = dict.fromkeys(("name", "location", "config", "split", "revision", "licence"), text)
        recipe = replace(RECIPE, judge_model=text, judge_template=text, judge_revision=text)
        kinds = ({**source, "kind": "file"}, {**source, "kind": "hub"})
        return card_with(name=text, recipe=recipe, sources=kinds, licence=text, is_repository=True)

    card, plain = card_of_text(text), card_of_text("x")
    assert header_of(card)["configs"] == header_of(plain)["configs"]
    assert skeleton(card) == skeleton(plain)
    assert "<script" not in body_of(card).replace(f"    {text}", "")


def test_nothing_acts_in_a_table() -> None:
    source = {**SOURCE, "location": "a|b\n<script>\n--- [x](javascript:y) `z` *w*"}
    card = card_with(sources=(source,))
    assert "| a\\|b &lt;script> --- [x]\\(javascript:y) \\`z\\` \\*w\\* |" in card


LOAD = """
import sys, datasets
datasets.disable_progress_bars()
rows = datasets.load_dataset(sys.argv[1], split="train")
print(len(rows), sorted(rows.column_names)[:2])
"""


def test_the_folder_loads_with_its_full_card_and_picture(tmp_path: Path) -> None:
    fill(tmp_path / "cache", range(6), text=True)
    write_full_card(tmp_path / "cache", licence="cc-by-4.0")
    settings = environment(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "home"))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, os.fspath(tmp_path / "cache")], env=settings, capture_output=True, text=True
    )
    assert done.stdout.split() == ["6", "['attention_share_chosen',", "'attention_share_rejected']"], done.stderr


def test_a_source_without_a_judge_says_its_kind(tmp_path: Path) -> None:
    card = card_with(recipe=replace(RECIPE, source="import:tis", judge_model=""))
    assert "Weight source: `import:tis`." in card
    assert header_of(card)["pretty_name"] == "Token weights for demo"
