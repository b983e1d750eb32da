"""A stand-in hub, a process that talks to it, and a small cache to share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.hub import Faults, Hub
from tests.weights_cache.samples import RECIPE, SOURCE, fill
from tests.weights_cache.sharing.client import Client, client
from tests.weights_cache.sharing.looking import NAME
from twdpo.weights_cache import CacheWriter


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
    found.downloads.clear()
    found.faults = Faults()
    return found


@pytest.fixture
def call(running: tuple[Hub, Client]) -> Client:
    return running[1]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A small cache of three shards, with a reject."""
    folder = tmp_path / "cache"
    fill(folder, range(10))
    with CacheWriter.open(folder, RECIPE, dataset=SOURCE) as writer:
        writer.reject(7, "no such answer", None, "demo")
    (folder / "annotate.yaml").write_text("model: a/judge\n")
    return folder


@pytest.fixture
def published(hub: Hub, call: Client, cache: Path) -> dict[str, bytes]:
    """The files of the cache on the hub."""
    assert "error" not in call("push", cache, NAME)
    hub.downloads.clear()
    return hub.files(NAME)
