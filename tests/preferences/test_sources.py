"""What a name given by the user stands for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from twdpo.errors import DataError, TwdpoError, UsageError
from twdpo.preferences import NAMED, Source, resolve
from twdpo.preferences.sources import pick_split


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "location", "split"),
    [
        ("ultrafeedback", "hub", "HuggingFaceH4/ultrafeedback_binarized", "train_prefs"),
        ("ultrafeedback-llama3", "hub", "princeton-nlp/llama3-ultrafeedback", "train"),
        ("hh-rlhf", "hub", "Anthropic/hh-rlhf", "train"),
        ("orca-dpo-pairs", "hub", "Intel/orca_dpo_pairs", "train"),
        ("demo", "demo", "demo", "train"),
        ("demo[test]", "demo", "demo", "test"),
        ("ultrafeedback[test_prefs]", "hub", "HuggingFaceH4/ultrafeedback_binarized", "test_prefs"),
        ("org/name", "hub", "org/name", None),
        ("org/name[test.v2]", "hub", "org/name", "test.v2"),
    ],
)
def test_names(name: str, kind: str, location: str, split: str | None) -> None:
    source = resolve(name)
    assert (source.name, source.kind, source.location, source.split) == (name, kind, location, split)


def test_configuration_split_and_revision() -> None:
    expected = Source(
        name="org/name:en-v1.0[test]", kind="hub", location="org/name", config="en-v1.0", split="test", revision="v2"
    )
    assert resolve("org/name:en-v1.0[test]", revision="v2") == expected
    assert resolve("org/name:en-v1.0[test]", split="test", revision="v2") == expected
    assert resolve("ultrafeedback", split="test_prefs").split == "test_prefs"
    assert resolve("hh-rlhf").licence == "MIT"


def test_the_table_of_names_is_right_about_itself() -> None:
    assert set(NAMED) == {"ultrafeedback", "ultrafeedback-llama3", "hh-rlhf", "orca-dpo-pairs", "demo"}
    assert all(resolve(name) == source for name, source in NAMED.items())


def test_what_is_on_disk_goes_before_the_hub_and_after_named_sources() -> None:
    Path("org/name").mkdir(parents=True)
    Path("demo").mkdir()
    Path("odd[1]:x.jsonl").touch()
    assert resolve("org/name").kind == "file"
    assert resolve("org/name[test]") == Source(name="org/name[test]", kind="file", location="org/name", split="test")
    assert resolve("demo").kind == "demo"
    assert resolve("./demo").kind == "file"
    assert resolve("odd[1]:x.jsonl").location == "odd[1]:x.jsonl"


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    Path("pairs.jsonl").touch()
    assert resolve("~/pairs.jsonl").location == str(Path.cwd() / "pairs.jsonl")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "ultrafedback"}, DataError, "did you mean ultrafeedback?"),
        (
            {"name": "squad"},
            DataError,
            "give one of ultrafeedback, ultrafeedback-llama3, hh-rlhf, orca-dpo-pairs, demo",
        ),
        ({"name": ""}, DataError, "no data set ''"),
        ({"name": "a/b/c"}, DataError, "no data set 'a/b/c'"),
        ({"name": "org/pairs.jsonl"}, DataError, "no such file or folder: org/pairs.jsonl"),
        ({"name": "./pairs"}, DataError, "no such file or folder: ./pairs"),
        ({"name": "/nowhere/pairs"}, DataError, "no such file or folder: /nowhere/pairs"),
        ({"name": "nul\0"}, DataError, "no data set"),
        ({"name": "x" * 5000}, DataError, "no data set"),
        ({"name": "org/name[test]", "split": "train"}, UsageError, "two different splits"),
        ({"name": "org/name[train[:10]]"}, DataError, "no data set"),
        (
            {"name": "org/name[train:10]"},
            UsageError,
            "'train:10' is not the name of a split; for fewer rows use --limit",
        ),
        ({"name": "org/name", "split": "train[:10]"}, UsageError, "for fewer rows use --limit"),
        ({"name": "org/name[]"}, UsageError, "'' is not the name of a split"),
        ({"name": "demo", "revision": "v1"}, UsageError, "demo is not on the hub"),
        ({"name": "demo:en"}, UsageError, "demo:en is not on the hub"),
    ],
)
def test_mistakes_come_as_one_line(arguments: dict[str, str], error: type[TwdpoError], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        resolve(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("available", "wanted", "picked"),
    [
        (["test"], None, "test"),
        (["test", "train"], None, "train"),
        (["test_prefs", "train_prefs", "train_sft"], None, "train_prefs"),
        (["test", "train"], "test", "test"),
    ],
)
def test_the_split_that_is_read(available: list[str], wanted: str | None, picked: str) -> None:
    assert pick_split(available, wanted, "here") == picked


def test_a_split_that_is_not_there_or_not_clear() -> None:
    with pytest.raises(DataError, match="here has no split 'train'; it has: a, b"):
        pick_split(["a", "b"], "train", "here")
    with pytest.raises(DataError, match="choose one with --split, out of: a, b"):
        pick_split(["a", "b"], None, "here")
