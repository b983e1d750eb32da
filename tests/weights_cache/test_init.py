"""The public names of the package, and what importing it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import twdpo.weights_cache as package

ROOT = Path(__file__).resolve().parents[2]


def test_the_export_list_is_exact() -> None:
    assert sorted(package.__all__) == sorted(package._HOMES)
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)


def test_no_public_name_is_hidden_by_a_submodule() -> None:
    # `from twdpo.weights_cache.x import y` binds x in the package, whatever it is called.
    for name in package.__all__:
        assert not inspect.ismodule(getattr(package, name))
        assert not Path(package.__path__[0], f"{name}.py").exists()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("twdpo.weights_cache", ["torch", "transformers", "datasets", "pyarrow", "numpy"]),
        ("twdpo.weights_cache.verification", ["torch", "transformers", "datasets"]),
        ("twdpo.weights_cache.reference", ["torch", "transformers", "datasets"]),
        ("twdpo.weights_cache.writer", ["torch", "transformers", "datasets"]),
    ],
)
def test_importing_brings_in_no_more_than_it_must(module: str, forbidden: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {forbidden} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
