"""The house rules: what is public, and which way imports point."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import twdpo

PACKAGE = Path(twdpo.__file__).parent
#: Part of the package → parts that it must not import.
FORBIDDEN = {
    "errors": ("twdpo.",),
    "preferences": ("twdpo.weights_cache", "twdpo.pipeline", "twdpo.inspect", "twdpo.cli", "torch", "transformers"),
    "weights_cache": (
        "twdpo.pipeline",
        "twdpo.inspect",
        "twdpo.cli",
        "torch",
        "transformers",
        "datasets",
        "accelerate",
    ),
    "pipeline/annotate": ("twdpo.pipeline.train", "twdpo.inspect", "twdpo.cli"),
    "pipeline/train": ("twdpo.pipeline.annotate", "twdpo.inspect", "twdpo.cli"),
    "pipeline": ("twdpo.integrations", "twdpo.inspect", "twdpo.cli"),
    "integrations": ("twdpo.pipeline.annotate", "twdpo.pipeline.importing", "twdpo.inspect", "twdpo.cli"),
    "pipeline/importing": ("twdpo.pipeline.annotate", "twdpo.pipeline.train", "twdpo.inspect", "twdpo.cli"),
    "evaluate": ("twdpo.integrations", "twdpo.inspect", "twdpo.cli"),
    "inspect": ("twdpo.pipeline", "twdpo.cli", "torch", "transformers"),
}


def imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_point_one_way(part: str) -> None:
    place = PACKAGE / part
    files = list(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    assert files
    for file in files:
        wrong = [
            name for name in imports(file) for bad in FORBIDDEN[part] if f"{name}.".startswith(f"{bad.rstrip('.')}.")
        ]
        assert not wrong, f"{file.name} imports {wrong}"


def test_public_names_are_exact_and_there() -> None:
    assert twdpo.__all__ == sorted(twdpo.__all__)
    assert set(twdpo.__all__) == set(twdpo._HOMES)
    assert all(getattr(twdpo, name) is not None for name in twdpo.__all__)
    with pytest.raises(AttributeError):
        _ = twdpo.nothing  # type: ignore[attr-defined]


def test_import_twdpo_is_light() -> None:
    code = (
        "import sys, twdpo; print(sorted({'torch', 'transformers', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert out.stdout.strip() == "[]"


def test_every_module_says_what_it_is_for() -> None:
    for file in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(file.read_text("utf-8"))), file


#: Longer files, where splitting would hide the flow.
MOST_LINES = {"loop.py": 400}


def test_files_stay_readable() -> None:
    lengths = {file.name: len(file.read_text("utf-8").splitlines()) for file in PACKAGE.rglob("*.py")}
    assert {name: n for name, n in lengths.items() if n > MOST_LINES.get(name, 350)} == {}
