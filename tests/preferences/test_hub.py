"""The hub through the real `datasets`, against a small hub on this machine, one that is gone, and one that hangs.

In processes of their own, since the libraries read the hub's address when they are imported.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.utils
import pytest
from huggingface_hub.utils.tqdm import are_progress_bars_disabled

from tests.preferences.fake_hub import COMMIT, serve
from tests.preferences.processes import environment
from twdpo.errors import DataError, HubUnavailable
from twdpo.preferences import Pair, Source, hub, load

SCRIPT = """
import json, sys
from dataclasses import asdict
from twdpo.errors import HubUnavailable, TwdpoError
from twdpo.preferences import load, resolve
for name, revision in json.loads(sys.argv[1]):
    try:
        stream = load(resolve(name, revision=revision))
        answers = [item.chosen for item in stream]
        result = {"source": asdict(stream.source), "total": stream.total, "answers": answers}
    except TwdpoError as error:
        result = {"error": str(error), "unavailable": isinstance(error, HubUnavailable)}
    print(json.dumps(result))
"""
Name = tuple[str, str | None]
Results = dict[Name, dict[str, Any]]

#: What the small hub serves, and what is wrong with the rest.
WORKING: list[Name] = [
    ("org/pairs", None),
    ("org/pairs[test_prefs]", None),
    ("org/pairs:default[train_prefs]", COMMIT),
    ("org/two-configs:harmless", None),
]
FAILING: dict[Name, tuple[bool, str]] = {
    ("org/pairs[train]", None): (False, "no split 'train'; it has: train_prefs, test_prefs"),
    ("org/pairs", "v9"): (True, "no revision 'v9'"),
    ("org/two-configs", None): (
        False,
        "has several configurations: write org/two-configs:NAME, NAME out of: helpful, harmless",
    ),
    ("org/two-configs:wrong", None): (False, "no configuration 'wrong'"),
    ("org/no-pairs", None): (False, "org/no-pairs has the columns text; expected `chosen` and `rejected`"),
    ("org/nothing", None): (True, "no data set org/nothing on the hub that you may read"),
    ("org/gated", None): (True, "org/gated is gated or private on the hub: ask for access"),
    ("org/busy", None): (True, "cannot be reached for org/busy"),
}


def load_all(home: Path, names: list[Name], **settings: str) -> Results:
    """What loading each name (and revision) gives in one new process, which must write nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(names)],
        env=environment(HF_HOME=str(home), **settings),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return dict(zip(names, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf_home")


@pytest.fixture(scope="module")
def online(home: Path) -> Results:
    """What every name gives while the small hub runs; afterwards it is gone, and `home` holds what was downloaded."""
    with serve() as endpoint:
        return load_all(home, [*WORKING, *FAILING], HF_ENDPOINT=endpoint)


def test_a_data_set_is_downloaded_and_its_split_and_commit_are_told(online: Results) -> None:
    result = online["org/pairs", None]
    assert result["answers"] == [f"train {i}" for i in range(5)]
    assert result["total"] == 5
    assert (result["source"]["split"], result["source"]["revision"]) == ("train_prefs", COMMIT)


def test_split_configuration_and_revision_choose_what_is_read(online: Results) -> None:
    assert online["org/pairs[test_prefs]", None]["answers"] == ["test 0", "test 1"]
    assert online["org/pairs:default[train_prefs]", COMMIT]["total"] == 5
    assert online["org/two-configs:harmless", None]["answers"] == [f"harmless {i}" for i in range(4)]


@pytest.mark.parametrize("name", FAILING)
def test_what_is_wrong_comes_as_one_line(online: Results, name: Name) -> None:
    unavailable, message = FAILING[name]
    result = online[name]
    assert message in result["error"]
    assert "\n" not in result["error"]
    assert result["unavailable"] == unavailable


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"HF_ENDPOINT": "http://127.0.0.1:9"}, "refused"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")],
)
def test_a_hub_that_is_gone_is_told_within_seconds(tmp_path: Path, settings: dict[str, str], why: str) -> None:
    started = time.monotonic()
    results = load_all(tmp_path, [("ultrafeedback", None), ("org/pairs", None)], **settings)
    assert time.monotonic() - started < 15
    for where, result in zip(("HuggingFaceH4/ultrafeedback_binarized", "org/pairs"), results.values(), strict=True):
        assert result["unavailable"]
        assert f"the hub cannot be reached for {where} (" in result["error"]
        assert why in result["error"]
        assert "--dataset demo" in result["error"]
        assert "\n" not in result["error"]
    assert "there is no local org/pairs" in results["org/pairs", None]["error"]


@pytest.mark.parametrize("settings", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_what_was_downloaded_is_read_without_the_hub(online: Results, home: Path, settings: dict[str, str]) -> None:
    names: list[Name] = [("org/pairs", None), ("org/pairs[test_prefs]", None), ("org/pairs", COMMIT)]
    offline = load_all(home, [*names, ("org/pairs", "b" * 40)], **settings)
    for name in names:
        assert offline[name]["answers"] == online[name if name in online else ("org/pairs", None)]["answers"]
        assert offline[name]["source"]["revision"] == COMMIT
    assert offline["org/pairs", "b" * 40]["unavailable"]  # another revision than the one in the cache


def test_a_hub_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        script = f"from twdpo.preferences import hub\nhub._TIMEOUT = 0.5\n{SCRIPT}"
        monkeypatch.setattr(sys.modules[__name__], "SCRIPT", script)
        started = time.monotonic()
        (result,) = load_all(tmp_path, [("org/pairs", None)], HF_ENDPOINT=endpoint).values()
    assert result["unavailable"]
    assert time.monotonic() - started < 15


SOURCE = Source(name="org/pairs", kind="hub", location="org/pairs")


def test_a_full_disk_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from OSError(
            28, "No space left on device"
        )

    monkeypatch.setattr(hub, "_commit", lambda source: COMMIT)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *args, **kwargs: ["train"])
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(Exception, match="the disk is full"):
        load(SOURCE)


def settings_of_the_libraries() -> tuple[int, bool, bool, int, bool]:
    return (
        datasets.logging.get_verbosity(),
        datasets.are_progress_bars_disabled(),
        datasets.config.HF_HUB_OFFLINE,
        huggingface_hub.utils.logging.get_verbosity(),
        are_progress_bars_disabled(),
    )


def test_the_libraries_talk_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    during = []

    def fail(source: Source) -> str:
        during.append(settings_of_the_libraries())
        raise DataError("anything")

    before = settings_of_the_libraries()
    monkeypatch.setattr(hub, "_commit", fail)
    with pytest.raises(DataError, match="anything"):
        load(SOURCE)
    assert settings_of_the_libraries() == before
    assert during[0][1]
    assert during[0][4]


def test_pairs_come_from_what_datasets_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    held = datasets.Dataset.from_dict({"prompt": ["q"] * 3, "chosen": ["a"] * 3, "rejected": ["b", "", "c"]})
    monkeypatch.setattr(hub, "_commit", lambda source: COMMIT)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *args, **kwargs: ["train", "test"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: held)
    stream = load(SOURCE, limit=2)
    assert stream.source.split == "train"
    first, second = stream
    assert isinstance(first, Pair)
    assert not isinstance(second, Pair)
    assert (second.row, second.reason) == (1, "the rejected answer is empty")


def test_an_unreachable_hub_is_an_error_of_data() -> None:
    assert issubclass(HubUnavailable, DataError)
