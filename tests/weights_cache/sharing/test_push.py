"""Publishing through the real huggingface_hub and `datasets`, against a stand-in hub on this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fixtures.hub import USER, Hub
from tests.weights_cache.samples import RECIPE, fill, make_row
from tests.weights_cache.sharing.client import Client
from tests.weights_cache.sharing.looking import NAME, assert_refused, everything, files, merge_shards, rows
from twdpo.weights_cache import CacheWriter, verify
from twdpo.weights_cache.card import MARKER
from twdpo.weights_cache.shards import list_shards


def test_what_is_pushed_is_loaded_by_name_and_pulled_again(hub: Hub, call: Client, cache: Path, tmp_path: Path) -> None:
    pushed = call("push", cache, NAME, licence="cc-by-4.0", message="First weights")
    assert pushed["url"] == f"{hub.endpoint}/datasets/{NAME}"
    assert pushed["commit"] == hub.repositories[NAME].branches["main"]
    assert set(hub.files(NAME)) == {*files(cache), ".gitattributes"}
    assert (pushed["files"], pushed["deleted"], pushed["card_kept"]) == (len(files(cache)), 0, False)
    assert pushed["bytes"] == sum(map(len, files(cache).values()))
    assert pushed["steps"][-1] == [pushed["bytes"]] * 2

    loaded = call("load", NAME)
    streamed = call("load", NAME, streaming=True)
    local = pa.concat_tables([pq.read_table(path) for path in list_shards(cache / "data")]).to_pylist()
    for got in (loaded, streamed):
        assert [row["example_hash"] for row in got] == [row["example_hash"] for row in local]
        assert [row["chosen_weights_29"] for row in got] == [row["chosen_weights_29"] for row in local]

    pulled = call("pull", NAME, tmp_path / "pulled")
    assert files(tmp_path / "pulled") == files(cache)
    assert everything(tmp_path / "pulled") == everything(cache)
    assert rows(tmp_path / "pulled") == rows(cache)
    assert verify(tmp_path / "pulled").ok
    assert (pulled["commit"], pulled["files"], pulled["left_out"]) == (pushed["commit"], len(files(cache)), 1)
    assert pulled["bytes"] == pushed["bytes"]
    assert pulled["steps"][-1] == [pulled["bytes"]] * 2


def test_the_card_is_full_and_says_how_to_load_it(published: dict[str, bytes]) -> None:
    card = published["README.md"].decode()
    assert f'load_dataset("{NAME}", split="train")' in card
    assert f"twdpo cache pull {NAME} weights_cache" in card
    assert "| judged tokens |" in card


def test_a_picture_is_drawn_of_the_pair_that_is_given(hub: Hub, call: Client, cache: Path) -> None:
    row = make_row(3, text=True)
    assert row.prompt is not None
    example = {"prompt": [{"role": role, "content": text} for role, text in row.prompt]}
    example |= {"chosen": row.chosen_text, "rejected": row.rejected_text}
    call("push", cache, NAME, example=example)
    assert hub.files(NAME)["example.svg"].startswith(b"<svg ")
    assert "](example.svg)" in hub.files(NAME)["README.md"].decode()
    stranger = {**example, "chosen": "another answer"}
    assert_refused(call("push", cache, NAME, example=stranger), "MissingRows")


def test_pushing_again_sends_nothing(hub: Hub, call: Client, cache: Path, published: dict[str, bytes]) -> None:
    before, commits = len(hub.uploads), len(hub.repositories[NAME].commits)
    again = call("push", cache, NAME)
    assert (again["files"], again["bytes"], again["deleted"]) == (0, 0, 0)
    assert again["commit"] == hub.repositories[NAME].branches["main"]
    assert len(hub.uploads) == before
    assert len(hub.repositories[NAME].commits) == commits


def test_more_pairs_send_only_what_is_new(
    hub: Hub, call: Client, cache: Path, published: dict[str, bytes], tmp_path: Path
) -> None:
    before = len(hub.uploads)
    fill(cache, range(14))
    again = call("push", cache, NAME)
    assert len(hub.uploads) - before == 1
    assert again["files"] == 3  # the shard, the manifest, the card
    call("pull", NAME, tmp_path / "pulled")
    assert rows(tmp_path / "pulled") == rows(cache)


def test_shards_compacted_since_are_deleted_and_strangers_stay(
    hub: Hub, call: Client, cache: Path, published: dict[str, bytes], tmp_path: Path
) -> None:
    strange = {"notes.txt": b"mine", "data/README": b"about", "pictures/a.png": b"png"}
    hub.repositories[NAME].commit({**published, **strange})
    before = rows(cache)
    merge_shards(cache)
    again = call("push", cache, NAME)
    assert again["deleted"] == 3
    assert set(hub.files(NAME)) == {*files(cache), *strange, ".gitattributes"}
    pulled = call("pull", NAME, tmp_path / "pulled")
    assert pulled["left_out"] == 4
    assert rows(tmp_path / "pulled") == before


def test_pairs_that_only_the_hub_has_are_not_deleted(hub: Hub, call: Client, cache: Path, tmp_path: Path) -> None:
    fill(tmp_path / "other", range(5, 30))
    call("push", tmp_path / "other", NAME)
    before = hub.files(NAME)
    assert_refused(call("push", cache, NAME), "CacheError", f"{NAME} holds 20 pairs that", "merge")
    assert hub.files(NAME) == before


def test_a_broken_upload_goes_on_where_it_stopped(hub: Hub, call: Client, cache: Path) -> None:
    hub.faults.uploads = 1
    assert_refused(call("push", cache, NAME), "HubUnavailable")
    assert "manifest.json" not in hub.files(NAME)
    assert len(hub.uploads) == 1
    hub.faults.uploads = None
    assert "error" not in call("push", cache, NAME)
    assert len(hub.uploads) == len(set(hub.uploads)) == 3


def test_what_is_no_part_of_the_cache_is_not_sent(hub: Hub, call: Client, cache: Path) -> None:
    for name in (".env", ".pull/parts/x", "data/.tmp-1", "data/.hidden.parquet", "data/notes.txt", "secret.txt"):
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(b"private")
    (cache / "data" / ".hidden.parquet").unlink()
    call("push", cache, NAME)
    assert b"private" not in hub.files(NAME).values()
    assert len(hub.files(NAME)) == 8


def test_a_damaged_cache_is_not_pushed(hub: Hub, call: Client, cache: Path) -> None:
    shard = list_shards(cache / "data")[0]
    damaged = bytearray(shard.read_bytes())
    damaged[100] ^= 1
    shard.write_bytes(damaged)
    assert_refused(call("push", cache, NAME), "CacheCorrupt", "was not pushed", shard.name)
    assert not hub.repositories
    assert_refused(call("push", cache / "nothing", NAME), "CacheError", "no such folder")
    fill(cache / "empty", ())
    assert_refused(call("push", cache / "empty", NAME), "CacheError", "holds no pairs yet")
    assert not hub.repositories


def test_a_shard_that_no_pull_would_take_is_refused(hub: Hub, call: Client, cache: Path) -> None:
    list_shards(cache / "data")[0].rename(cache / "data" / "my shard.parquet")
    assert_refused(call("push", cache, NAME), "CacheError", "my shard.parquet", "rename it")


def test_a_repository_of_something_else_is_refused(hub: Hub, call: Client, cache: Path, tmp_path: Path) -> None:
    with CacheWriter.open(tmp_path / "b", replace(RECIPE, judge_model="another", dtype="bfloat16")) as writer:
        writer.add(make_row(1))
    call("push", tmp_path / "b", NAME)
    assert_refused(call("push", cache, NAME), "RecipeMismatch", "judge_model, dtype")
    hub.add(f"{USER}/data", {"data/train-0.parquet": b"PAR1"})
    assert_refused(call("push", cache, f"{USER}/data"), "CacheError", "holds another data set")
    for text in (b'{"kind": "model"}', b"[]", b"\xff", b'{"kind": "weights", "schema_version": 1}'):
        hub.add(f"{USER}/site", {"manifest.json": text})
        assert_refused(call("push", cache, f"{USER}/site"), "CacheError", "manifest.json is no cache's")
    newer = {"kind": "weights", "schema_version": 99, "fingerprint": "x"}
    hub.add(f"{USER}/newer", {"manifest.json": json.dumps(newer).encode()})
    assert_refused(call("push", cache, f"{USER}/newer"), "SchemaTooNew")


def test_a_card_that_a_person_wrote_is_left_as_it_is(
    hub: Hub, call: Client, cache: Path, published: dict[str, bytes]
) -> None:
    edited = published["README.md"].replace(MARKER.encode(), b"Edited on the web page.")
    hub.repositories[NAME].commit({**published, "README.md": edited})
    fill(cache, range(14))
    assert call("push", cache, NAME)["card_kept"]
    assert hub.files(NAME)["README.md"] == edited
    assert hub.files(NAME)["manifest.json"] == (cache / "manifest.json").read_bytes()
    # The owner's own text in the folder goes out as it is.
    (cache / "README.md").write_text("---\nlicense: mit\n---\nMy own words.\n")
    assert not call("push", cache, NAME)["card_kept"]
    assert hub.files(NAME)["README.md"] == b"---\nlicense: mit\n---\nMy own words.\n"


def test_a_card_that_the_hub_refuses_is_told_in_one_line(hub: Hub, call: Client, cache: Path) -> None:
    (cache / "README.md").write_text("---\nlicense: [mit\n---\nMy own words.\n")
    assert_refused(call("push", cache, NAME), "CacheError", "does not take the card", "README.md")


def test_the_header_that_the_web_page_makes_is_no_card(hub: Hub, call: Client, cache: Path) -> None:
    hub.add(NAME, {"README.md": b"---\nlicense: mit\n---\n"})
    assert not call("push", cache, NAME)["card_kept"]
    assert MARKER in hub.files(NAME)["README.md"].decode()


def test_private_is_kept_private(hub: Hub, call: Client, cache: Path, tmp_path: Path) -> None:
    call("push", cache, NAME, private=True)
    assert hub.repositories[NAME].private
    assert "error" not in call("push", cache, NAME)
    assert_refused(call("pull", NAME, tmp_path / "out", token=None), "HubUnavailable", "log in")
    hub.add(f"{USER}/public", {})
    assert_refused(call("push", cache, f"{USER}/public", private=True), "CacheError", "everyone can read it")
    assert not hub.files(f"{USER}/public")


def test_a_branch_is_made_and_pulled_from(hub: Hub, call: Client, cache: Path, tmp_path: Path) -> None:
    call("push", cache, NAME, revision="draft")
    assert "manifest.json" in hub.files(NAME, "draft")
    assert "manifest.json" not in hub.files(NAME)
    assert_refused(call("pull", NAME, tmp_path / "main"), "CacheError", "holds no weights cache")
    call("pull", NAME, tmp_path / "draft", revision="draft")
    assert rows(tmp_path / "draft") == rows(cache)
    call("push", cache, NAME, revision="second")
    assert hub.files(NAME, "second").keys() == hub.files(NAME, "draft").keys()


def test_a_commit_in_between_is_not_overwritten(hub: Hub, call: Client, cache: Path) -> None:
    repository = hub.add(NAME, {"notes.txt": b"mine"})
    hub.faults.on_commit = lambda: repository.commit({"notes.txt": b"newer"})
    assert_refused(call("push", cache, NAME), "HubUnavailable", "changed by someone else")
    assert hub.files(NAME) == {"notes.txt": b"newer"}
    hub.faults.on_commit = None
    assert "error" not in call("push", cache, NAME)


def test_files_that_the_hub_leaves_out_are_told(hub: Hub, call: Client, cache: Path) -> None:
    hub.faults.ignored = {"rejects.jsonl"}
    assert_refused(call("push", cache, NAME), "CacheError", "rejects.jsonl", ".gitignore")


@pytest.mark.parametrize("name", ["weights", "me/", "/me/x", "me/../x", "me/a b", "a/b/c", "", "me/x.git", "me/x\n"])
def test_bad_names_are_refused_before_anything_is_asked(call: Client, cache: Path, tmp_path: Path, name: str) -> None:
    assert_refused(call("push", cache, name), "CacheError", "write owner/name")
    assert_refused(call("pull", name, tmp_path / "out"), "CacheError", "write owner/name")
    assert not (tmp_path / "out").exists()


def test_without_rights_nothing_is_sent(hub: Hub, call: Client, cache: Path) -> None:
    hub.add("other/weights", {})
    assert_refused(call("push", cache, NAME, token=None), "HubUnavailable", "hf auth login")
    assert_refused(call("push", cache, NAME, token="hf_wrong"), "HubUnavailable", "hf auth login")
    assert_refused(call("push", cache, "other/new"), "HubUnavailable", "you may not do this to other/new")
    assert_refused(call("push", cache, "other/weights"), "HubUnavailable", "you may not do this to other/weights")
    assert not hub.uploads
