"""Scripts of benchmarks/ as modules; they stand beside each other, not in a package."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@contextmanager
def loaded(names: Sequence[str]) -> Iterator[dict[str, ModuleType]]:
    """Import `names`, those that others import included, and forget them afterwards."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in (file.stem for file in BENCHMARKS.glob("*.py")):
            sys.modules.pop(name, None)
