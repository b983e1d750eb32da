"""What a test needs to start a Python of its own."""

from __future__ import annotations

import os
import sys


def environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of the hub, for a new Python that finds the same packages."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path), **more}
