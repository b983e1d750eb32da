"""The package's list of exports, and that it is light to import."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import twdpo.preferences
from tests.preferences.processes import environment


def test_all_names_are_listed_and_no_others() -> None:
    public = {
        name
        for name, value in vars(twdpo.preferences).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public == set(twdpo.preferences.__all__)
    assert len(twdpo.preferences.__all__) == len(set(twdpo.preferences.__all__))


def test_importing_it_imports_no_heavy_library() -> None:
    script = (
        "import sys, twdpo.preferences as p\n"
        "p.resolve('demo'); list(p.load(p.resolve('demo')))\n"
        "print(*{'torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []
