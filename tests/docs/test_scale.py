"""docs/scale.md holds the model's own tables, and the model's arithmetic is what a hand computes."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("scale", "scale_model", "scale_failures")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The scripts as modules; they stand beside each other, not in a package."""
    import importlib

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


def test_the_page_holds_the_tables(scripts: dict[str, Any]) -> None:
    page = (ROOT / "docs/scale.md").read_text("utf-8")
    for name, make in scripts["scale"].TABLES.items():
        assert make() in page, f"docs/scale.md is not what `python benchmarks/scale.py table` prints: {name}"


def test_operations_of_a_pair_by_hand(scripts: dict[str, Any]) -> None:
    model = scripts["scale_model"]
    tokens = model.Tokens(prompt=100, head=10, shared=40, answers=20)
    assert tokens.computed == 150
    shape = model.decoder(hidden=4, layers=1, heads=1, kv_heads=1, head_dim=4, mlp=8, words=5)
    judge = model.Judge(name="", shape=shape, hidden=4, mlp=8, gpus=1, tied=True)
    # 4 · 16 parameters of attention, 3 · 32 of the MLP, 2 operations each; 4 a query entry and token attended to.
    linear = 2 * 160 * 150
    attended = 2 * (100 * 101 / 2) - 40 * 41 / 2 - 10 * 11 / 2
    assert judge.pair_flops(tokens) == linear + 4 * 4 * attended + 2 * 2 * 20


def test_lost_machines_simulated_and_by_formula(scripts: dict[str, Any]) -> None:
    failures = scripts["scale_failures"]
    machines = failures.Machines(count=2000, work=5000.0, every=60.0, rate=1 / 2500, restart=100.0)
    runs = [failures.simulate(machines, seed=seed) for seed in range(3)]
    formula = failures.expected(machines)
    for name in ("lost", "redone", "mean"):
        mean = sum(getattr(run, name) for run in runs) / len(runs)
        assert mean == pytest.approx(getattr(formula, name), rel=0.05)
    # A machine is lost every 2,500 s and has 30 s since its last shard to do again, on the mean.
    assert formula.lost == pytest.approx(2000 * 2, rel=0.02)
    assert formula.redone / formula.lost == pytest.approx(30, rel=0.02)


def test_the_unluckiest_of_many(scripts: dict[str, Any]) -> None:
    most = scripts["scale_failures"].most
    assert most(3.0, 1) == pytest.approx(3.0)
    # Of two Poisson numbers of mean m: E max = m + E|X − Y| / 2, by the sum over both.
    p = [math.exp(-1.0) / math.factorial(k) for k in range(30)]
    expected = sum(a * b * max(i, j) for i, a in enumerate(p) for j, b in enumerate(p))
    assert most(1.0, 2) == pytest.approx(expected)
