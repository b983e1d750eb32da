"""manifest.json: what it keeps, and what is said of one that cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.weights_cache.samples import RECIPE, SOURCE
from twdpo.errors import CacheCorrupt, CacheError, SchemaTooNew
from twdpo.weights_cache import Manifest


def edit(folder: Path, **changes: Any) -> None:
    """Change the file as a person would: the checksum goes."""
    content = {**json.loads((folder / "manifest.json").read_text()), **changes}
    del content["checksum"]
    (folder / "manifest.json").write_text(json.dumps(content))


def test_all_fields_come_back(tmp_path: Path) -> None:
    manifest = Manifest(
        recipe=RECIPE,
        include_text=True,
        sources=(SOURCE, {"name": "bad \udcff name"}),
        defaults={"attn_source": "29"},
        counts={"pairs": 3},
        extra={"note": "kept"},
    )
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest


def test_a_persons_fields_are_kept(tmp_path: Path) -> None:
    Manifest(recipe=RECIPE).save(tmp_path)
    edit(tmp_path, licence_note="ask first")
    Manifest.load(tmp_path).with_source(SOURCE, {"a": 1}).save(tmp_path)
    again = Manifest.load(tmp_path)
    assert again.extra == {"licence_note": "ask first"}
    assert (again.sources, again.defaults) == ((SOURCE,), {"a": 1})


def test_a_source_is_listed_once_and_defaults_are_laid_over() -> None:
    manifest = Manifest(recipe=RECIPE).with_source(SOURCE, {"a": 1, "b": 1}).with_source(dict(SOURCE), {"b": 2})
    assert manifest.sources == (SOURCE,)
    assert manifest.defaults == {"a": 1, "b": 2}
    assert manifest.with_source({"name": "second"}, None).sources == (SOURCE, {"name": "second"})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"schema_version": 3}, SchemaTooNew, "cache schema 3, this one reads 2.*upgrade twdpo"),
        ({"schema_version": "1"}, CacheCorrupt, "its schema_version is '1'"),
        ({"fingerprint": "0" * 16}, CacheCorrupt, "its recipe has fingerprint"),
        ({"recipe": {"dtype": "float32"}}, CacheCorrupt, "not a recipe"),
        ({"recipe": []}, CacheCorrupt, "is damaged"),
        ({"recipe": {**RECIPE.to_json(), "dtype": "float16"}}, CacheCorrupt, "its recipe has fingerprint"),
        ({"counts": 3}, CacheCorrupt, "is damaged"),
        ({"kind": "reference"}, CacheError, "is no weights cache: its manifest.json says 'reference'"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    tmp_path: Path, changes: dict[str, Any], error: type[CacheError], message: str
) -> None:
    Manifest(recipe=RECIPE).save(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(error, match=message) as caught:
        Manifest.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(CacheCorrupt, match="not the JSON that was written"):
        Manifest.load(tmp_path)


def test_a_folder_that_is_no_cache_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, message in [
        (tmp_path, "is no weights cache: it has no manifest.json"),
        (tmp_path / "none", "there is no such folder; run twdpo annotate first"),
        (tmp_path / "file", "it is a file, not a folder"),
    ]:
        with pytest.raises(CacheError, match=message):
            Manifest.load(folder)


def test_every_flip_of_a_bit_is_found_or_harmless(tmp_path: Path) -> None:
    manifest = replace(Manifest(recipe=RECIPE), sources=(SOURCE,), defaults={"attn_source": "29"})
    manifest.save(tmp_path)
    path = tmp_path / "manifest.json"
    whole = path.read_bytes()
    found = 0
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        try:
            # Equal where white space, or the name of the checksum's key, was hit.
            assert replace(Manifest.load(tmp_path), extra={}) == manifest
        except CacheError:
            found += 1
    assert found > len(whole) // 2
