"""Pushing a finished model through the real huggingface_hub, against a stand-in hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.fixtures.hub import USER, Faults, Hub
from tests.pipeline.train.conftest import World
from tests.weights_cache.sharing.client import Client, client
from tests.weights_cache.sharing.looking import assert_refused

NAME = f"{USER}/model"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Client]]:
    hub = Hub()
    with hub.serve() as endpoint, client(tmp_path_factory.mktemp("home"), HF_ENDPOINT=endpoint) as process:
        yield hub, process


@pytest.fixture
def hub(running: tuple[Hub, Client]) -> Hub:
    """The stand-in, empty and in order."""
    found = running[0]
    found.repositories.clear()
    found.blobs.clear()
    found.uploads.clear()
    found.faults = Faults()
    return found


@pytest.fixture
def call(running: tuple[Hub, Client]) -> Client:
    return running[1]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder as a run leaves it, and what must stay at home."""
    files = ("config.json", "model.safetensors", "README.md", "best/config.json", "trackers/run/events.1", ".env")
    for name in files:
        path = tmp_path / "trained" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} of this run")
    (tmp_path / "trained" / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    return tmp_path / "trained"


SENT = ["config.json", "model.safetensors", "README.md", "best/config.json"]


def test_a_run_ends_on_the_hub(hub: Hub, call: Client, world: World) -> None:
    config = asdict(world.config(max_steps=4, tracker="tensorboard", push=NAME, private=True))
    result = call("train", **config)
    assert result["pushed"] == f"{hub.endpoint}/{NAME}"
    out = Path(config["out"])
    local = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    kept = {name for name in local if name.startswith("trackers/")}
    assert kept
    assert {name: path.read_bytes() for name, path in local.items() if name not in kept} == {
        name: content for name, content in hub.files(NAME).items() if name != ".gitattributes"
    }
    assert {"config.json", "README.md", "train.yaml", "metrics.jsonl"} <= set(hub.files(NAME))
    assert f'from_pretrained("{NAME}"' in hub.files(NAME)["README.md"].decode()
    assert hub.repositories[NAME].private


def test_what_stands_in_the_way_is_told_before_anything_is_trained(hub: Hub, call: Client, world: World) -> None:
    config = asdict(world.config(push=NAME))
    for options, token, kind, words in (
        ({}, None, "HubUnavailable", "hf auth login"),
        ({}, "hf_wrong", "HubUnavailable", "hf auth login"),
        ({"push": "other/model"}, "hf_of_me", "HubUnavailable", "you may not do this to other/model"),
        ({"push": "model"}, "hf_of_me", "UsageError", "--push 'model' is no name of a model on the hub"),
    ):
        assert_refused(call("train", **config | options, token=token), kind, words)
        assert not (Path(config["out"]) / "metrics.jsonl").exists()
    assert not hub.uploads


def test_a_repository_that_is_there_must_be_writable_and_as_private_as_asked(hub: Hub, call: Client) -> None:
    hub.add("other/model", {"config.json": b"{}"})
    assert_refused(call("open_model", "other/model"), "HubUnavailable", "you may not do this to other/model")
    hub.add(NAME, {"config.json": b"{}"})
    assert call("open_model", NAME) == "open"
    assert_refused(call("open_model", NAME, private=True), "UsageError", "everyone can read it")
    hub.repositories[NAME].private = True
    assert call("open_model", NAME) == "open"
    hub.faults.status = 503
    assert_refused(call("open_model", NAME), "HubUnavailable", "answers 503")


def test_only_the_files_that_are_named_are_sent(hub: Hub, call: Client, finished: Path) -> None:
    assert call("open_model", NAME) == "open"
    assert not hub.repositories[NAME].private
    assert call("publish", finished, NAME, SENT) == f"{hub.endpoint}/{NAME}"
    assert set(hub.files(NAME)) == {*SENT, ".gitattributes"}
    assert hub.files(NAME)["best/config.json"] == b"best/config.json of this run"


def test_an_earlier_model_there_leaves_no_parts_behind(hub: Hub, call: Client, finished: Path) -> None:
    earlier = dict.fromkeys(
        ("model-00001-of-00002.safetensors", "adapter_config.json", "best/model.safetensors", "notes.md", "eval.json"),
        b"earlier",
    )
    hub.add(NAME, earlier)
    call("publish", finished, NAME, SENT)
    assert set(hub.files(NAME)) == {*SENT, "notes.md", "eval.json"}
    assert len(hub.repositories[NAME].commits) == 2


def test_a_push_that_fails_at_the_end_keeps_the_model_and_says_how_to_go_on(
    hub: Hub, call: Client, finished: Path
) -> None:
    hub.add(NAME, {})
    for status, why in ((409, "changed by someone else"), (401, "does not know you")):
        hub.faults.status = status
        answer = call("publish", finished, NAME, SENT)
        assert_refused(answer, "HubUnavailable", f"kept in {finished}", why, f"hf upload {NAME} {finished} . --exclude")
        assert "same command again" not in answer["error"]
    assert (finished / "model.safetensors").exists()


def test_a_hub_that_does_not_answer_is_told_before_training(tmp_path: Path, world: World) -> None:
    with client(tmp_path, HF_ENDPOINT="http://127.0.0.1:9") as call:
        assert_refused(call("train", **asdict(world.config(push=NAME))), "HubUnavailable", "cannot be reached")
    with client(tmp_path, HF_HUB_OFFLINE="1") as call:
        assert_refused(call("open_model", NAME), "HubUnavailable", "HF_HUB_OFFLINE is set")
