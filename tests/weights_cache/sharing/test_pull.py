"""Fetching through the real huggingface_hub, against a stand-in hub on this machine that lies and breaks off."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures.hub import USER, Hub, blob_id
from tests.weights_cache.samples import RECIPE, make_row
from tests.weights_cache.sharing.client import Client, client
from tests.weights_cache.sharing.looking import NAME, assert_refused, everything, files, merge_shards, rows
from twdpo.weights_cache import CacheWriter
from twdpo.weights_cache.pulling import STAGING, is_cache_file
from twdpo.weights_cache.shards import list_shards


def test_a_broken_transfer_goes_on_where_it_stopped(
    hub: Hub, call: Client, cache: Path, published: dict[str, bytes], tmp_path: Path
) -> None:
    hub.faults.budget = 12_000
    out = tmp_path / "out"
    assert_refused(call("pull", NAME, out), "HubUnavailable", "run the same command again")
    assert files(out) == {}
    assert any(download.range for download in hub.downloads)  # it has tried again by itself
    first = hub.downloaded()
    assert sum(first.values()) == 12_000
    hub.faults.budget = None
    call("pull", NAME, out)
    assert any(download.range for download in hub.downloads)
    second = hub.downloaded()
    wanted = {path: len(text) for path, text in published.items() if path != ".gitattributes"}
    assert {path: first.get(path, 0) + second.get(path, 0) for path in wanted} == wanted
    assert rows(out) == rows(cache)
    assert everything(out) == everything(cache)


def test_a_transfer_that_breaks_now_and_then_arrives(
    hub: Hub, call: Client, cache: Path, published: dict[str, bytes], tmp_path: Path
) -> None:
    hub.faults.break_after, hub.faults.breaks = 1500, 12
    call("pull", NAME, tmp_path / "out")
    assert hub.faults.breaks == 0
    assert sum(hub.downloaded().values()) == sum(map(len, files(cache).values()))
    assert rows(tmp_path / "out") == rows(cache)


def test_parts_of_another_commit_are_no_harm(
    hub: Hub, call: Client, cache: Path, published: dict[str, bytes], tmp_path: Path
) -> None:
    hub.faults.budget = sum(map(len, published.values())) - 4000
    call("pull", NAME, tmp_path / "out")
    hub.faults.budget = None
    merge_shards(cache)
    call("push", cache, NAME)
    assert "error" not in call("pull", NAME, tmp_path / "out")
    assert everything(tmp_path / "out") == everything(cache)
    assert rows(tmp_path / "out") == rows(cache)


def test_parts_of_another_cache_are_no_harm(
    hub: Hub, call: Client, cache: Path, published: dict[str, bytes], tmp_path: Path
) -> None:
    with CacheWriter.open(tmp_path / "b", replace(RECIPE, dtype="bfloat16"), shard_rows=1) as writer:
        for number in range(3):
            writer.add(make_row(number))
    call("push", tmp_path / "b", f"{USER}/b")
    hub.faults.budget = sum(map(len, hub.files(f"{USER}/b").values())) - 1000
    assert_refused(call("pull", f"{USER}/b", tmp_path / "out"), "HubUnavailable")
    assert list((tmp_path / "out" / STAGING / "cache" / "data").iterdir())
    hub.faults.budget = None
    assert "error" not in call("pull", NAME, tmp_path / "out")
    assert everything(tmp_path / "out") == everything(cache)


def test_a_part_that_was_damaged_on_disk_is_fetched_anew(
    hub: Hub, call: Client, cache: Path, published: dict[str, bytes], tmp_path: Path
) -> None:
    hub.faults.budget = 3000
    out = tmp_path / "out"
    call("pull", NAME, out)
    (part,) = (out / STAGING / "parts").iterdir()
    part.write_bytes(b"x" * part.stat().st_size)
    hub.faults.budget = None
    assert "error" not in call("pull", NAME, out)
    assert rows(out) == rows(cache)


WRONG = {
    "flipped": lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:],
    "longer": lambda content: content + b"x",
    "other": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("which", ["data", "manifest.json", "README.md"])
def test_content_that_is_not_what_was_listed_is_refused(
    hub: Hub, call: Client, cache: Path, published: dict[str, bytes], tmp_path: Path, which: str, how: str
) -> None:
    path = next(path for path in sorted(published) if path.startswith(which))
    hub.faults.wrong[path] = WRONG[how](published[path])
    out = tmp_path / "out"
    answer = call("pull", NAME, out)
    if how == "longer":  # what is over is never read
        assert rows(out) == rows(cache)
        return
    assert_refused(answer, "CacheCorrupt", path, "checksum")
    assert files(out) == {}
    hub.faults.wrong.clear()
    assert "error" not in call("pull", NAME, out)
    assert rows(out) == rows(cache)


def test_shorter_content_is_not_taken(hub: Hub, call: Client, published: dict[str, bytes], tmp_path: Path) -> None:
    path = next(path for path in sorted(published) if path.startswith("data"))
    hub.faults.wrong[path] = published[path][:-10]
    assert_refused(call("pull", NAME, tmp_path / "out"), "HubUnavailable", "run the same command again")
    assert files(tmp_path / "out") == {}


def test_a_cache_that_is_damaged_on_the_hub_is_thrown_away(
    hub: Hub, call: Client, published: dict[str, bytes], tmp_path: Path
) -> None:
    path = next(path for path in sorted(published) if path.startswith("data"))
    hub.repositories[NAME].commit({**published, path: WRONG["flipped"](published[path])})
    out = tmp_path / "out"
    answer = call("pull", NAME, out)
    assert_refused(answer, "CacheCorrupt", NAME, path.removeprefix("data/"), "nothing of it was kept")
    assert STAGING not in answer["error"]
    assert everything(out) == set()


def test_a_shard_of_another_cache_is_thrown_away(
    hub: Hub, call: Client, published: dict[str, bytes], tmp_path: Path
) -> None:
    with CacheWriter.open(tmp_path / "b", replace(RECIPE, dtype="bfloat16")) as writer:
        writer.add(make_row(1))
    (shard,) = list_shards(tmp_path / "b" / "data")
    hub.repositories[NAME].commit({**published, f"data/{shard.name}": shard.read_bytes()})
    assert_refused(call("pull", NAME, tmp_path / "out"), "CacheCorrupt", "does not belong here")
    assert everything(tmp_path / "out") == set()


def test_a_newer_format_is_refused_before_the_shards_come(
    hub: Hub, call: Client, published: dict[str, bytes], tmp_path: Path
) -> None:
    manifest = json.loads(published["manifest.json"]) | {"schema_version": 99}
    hub.repositories[NAME].commit({**published, "manifest.json": json.dumps(manifest).encode()})
    assert_refused(call("pull", NAME, tmp_path / "out"), "SchemaTooNew", NAME, "upgrade twdpo")
    assert set(hub.downloaded()) == {"manifest.json"}


EVIL = [
    "../evil.parquet",
    "../../evil",
    "/evil",
    "//evil",
    "data/../../evil.parquet",
    "data/../evil.parquet",
    "data/sub/evil.parquet",
    "data//evil.parquet",
    "data/.evil.parquet",
    "data/./evil.parquet",
    "data\\evil.parquet",
    "data/..\\..\\evil.parquet",
    "C:\\evil.parquet",
    "data/C:evil.parquet",
    "data/evil.parquet\n",
    "data/evil\x00.parquet",
    "data/e\u202evil.parquet",
    "data/evil.pkl",
    "data/" + "e" * 300 + ".parquet",
    "evil.py",
    ".git/config",
    ".pull/cache/evil.parquet",
    "README.md/evil",
    "readme.MD",
    "manifest.json\n",
    "~/evil",
    "$HOME/evil",
    "",
]


def test_no_name_leads_outside_and_nothing_else_is_taken(
    hub: Hub, call: Client, cache: Path, published: dict[str, bytes], tmp_path: Path
) -> None:
    evil = b"evil"
    hub.repositories[NAME].commit({**published, **dict.fromkeys(EVIL, evil)})
    hub.faults.listed = [
        {"type": "file", "path": path, "size": len(evil), "oid": blob_id(evil)}
        for path in EVIL
        if path not in published
    ]
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    pulled = call("pull", NAME, folder / "out")
    assert "error" not in pulled
    assert files(folder / "out") == files(cache)
    assert everything(tmp_path / "deep") == {"er", "er/out", *(f"er/out/{name}" for name in everything(cache))}
    assert pulled["left_out"] >= len(EVIL)
    assert set(hub.downloaded()) == set(files(cache))


@given(st.text(st.sampled_from("./\\:abcREADMEdt~\0\n-") | st.characters(), max_size=40), st.sampled_from(EVIL))
def test_names_that_are_taken_stay_inside(text: str, evil: str) -> None:
    for name in (text, f"data/{text}.parquet", evil + text, text + evil, f"{text}README.md", f"manifest.json{text}"):
        if is_cache_file(name):
            parts = Path(name).parts
            assert "/".join(parts) == name
            assert len(parts) == (2 if name.startswith("data/") else 1)
            assert not any(part.startswith(".") for part in parts)
            assert name.isascii()
            assert name.isprintable()


def test_a_listing_without_sound_sizes_and_checksums_is_refused(
    hub: Hub, call: Client, published: dict[str, bytes], tmp_path: Path
) -> None:
    good = {"type": "file", "path": "data/x.parquet", "size": 4, "oid": "0" * 40}
    for wrong in ({"size": -1}, {"size": "4"}, {"oid": "../../x"}, {"lfs": {"oid": "x", "size": 4, "pointerSize": 1}}):
        hub.faults.listed = [{**good, **wrong}]
        assert_refused(call("pull", NAME, tmp_path / "out"), "HubUnavailable", "without a size and a checksum")
    hub.faults.listed = [{"type": "file"}]
    assert_refused(call("pull", NAME, tmp_path / "out"), "HubUnavailable", "not understood")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_refused(
    hub: Hub, call: Client, cache: Path, published: dict[str, bytes], tmp_path: Path
) -> None:
    assert_refused(call("pull", NAME, cache), "CacheError", "holds a cache already")
    (tmp_path / "file").write_text("x")
    assert_refused(call("pull", NAME, tmp_path / "file"), "CacheError", "is a file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    assert_refused(call("pull", NAME, tmp_path / "full"), "CacheError", "is not empty")
    (tmp_path / "full" / STAGING).mkdir()
    assert_refused(call("pull", NAME, tmp_path / "full"), "CacheError", "is not empty")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "x"
    (tmp_path / "linked").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked" / STAGING).symlink_to(tmp_path / "elsewhere")
    assert_refused(call("pull", NAME, tmp_path / "linked"), "CacheError", "is a link")
    assert everything(tmp_path / "elsewhere") == set()
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".DS_Store").write_text("x")
    assert "error" not in call("pull", NAME, tmp_path / "hidden")
    assert (tmp_path / "hidden" / ".DS_Store").exists()


@pytest.mark.parametrize("left", range(8))
def test_a_pull_that_was_killed_while_it_moved_files_is_completed(
    hub: Hub, call: Client, cache: Path, published: dict[str, bytes], tmp_path: Path, left: int
) -> None:
    out = tmp_path / "out"
    call("pull", NAME, out)
    hub.downloads.clear()
    # The state after some of the moves: the manifest is the last.
    staged = out / STAGING / "cache"
    (staged / "data").mkdir(parents=True)
    for name in ["manifest.json", *sorted(set(files(out)) - {"manifest.json"})][: left + 1]:
        shutil.move(out / name, staged / name)
    call("pull", NAME, out)
    assert hub.downloads == []
    assert everything(out) == everything(cache)
    assert rows(out) == rows(cache)


def test_a_full_disk_is_told_as_such_and_the_pull_goes_on_later(
    hub: Hub, call: Client, cache: Path, published: dict[str, bytes], tmp_path: Path
) -> None:
    call("limit", 3000)
    try:
        assert_refused(call("pull", NAME, tmp_path / "out"), "StorageError", "size limit")
    finally:
        call("limit", -1)
    assert files(tmp_path / "out") == {}
    call("pull", NAME, tmp_path / "out")
    assert rows(tmp_path / "out") == rows(cache)


def test_what_cannot_be_pulled_is_told_in_one_line(
    hub: Hub, call: Client, published: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    hub.add("other/gated", published, gated=True)
    hub.add("other/secret", published, private=True)
    hub.add("other/pairs", {"data/train.parquet": b"PAR1"})
    hub.add("other/busy", published, status=503)
    hub.add("other/locked", published, status=403)
    assert_refused(call("pull", "other/nothing", out), "HubUnavailable", "no data set other/nothing", "check the name")
    assert_refused(call("pull", "other/secret", out), "HubUnavailable", "log in")
    assert_refused(call("pull", NAME, out, revision="v9"), "HubUnavailable", "no such revision")
    assert_refused(call("pull", "other/pairs", out), "CacheError", "holds no weights cache", "manifest.json")
    assert_refused(call("pull", "other/busy", out), "HubUnavailable", "answers 503", "again")
    assert_refused(call("pull", "other/locked", out), "HubUnavailable", "you may not")
    assert not out.exists()
    assert_refused(call("pull", "other/gated", out), "HubUnavailable", "gated", "ask for access")
    assert files(out) == {}


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")],
)
def test_without_a_network_it_is_told_at_once(cache: Path, tmp_path: Path, settings: dict[str, str], why: str) -> None:
    with client(tmp_path, **settings) as call:
        assert_refused(call("push", cache, NAME), "HubUnavailable", why)
        assert_refused(call("pull", NAME, tmp_path / "out"), "HubUnavailable", why)
    assert not (tmp_path / "out").exists()
