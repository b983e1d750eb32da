"""What the tests of real vLLM share: they are skipped where it is not installed, and run by `make test-vllm`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
INSTALLED = importlib.util.find_spec("vllm") is not None

# A GiB of keys and values is enough for the pairs here. Two workers may share the cores.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """vLLM and what it imports warn on their own account."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


# Of the session, so that it comes before fixtures of modules, which load models.
@pytest.fixture(autouse=True, scope="session")
def _installed() -> None:
    if not INSTALLED:
        pytest.skip("needs vLLM, which has an environment of its own: make test-vllm")


@pytest.fixture
def load() -> Iterator[Callable[..., Any]]:
    """Loads an engine of vLLM, and ends it after the test."""
    from twdpo.pipeline.annotate.engines.vllm import VllmOptions, load_vllm

    engines = []

    def make(**options: Any) -> Any:
        engine = load_vllm(VllmOptions(**options)).engine
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()
