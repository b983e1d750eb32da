"""`twdpo annotate --engine vllm` as a user types it: caches of both engines, a quiet terminal, mistakes in one line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.fixtures.tiny_models import save_tiny
from twdpo.cli import main
from twdpo.pipeline.annotate import AnnotateConfig, annotate

REPOSITORY = Path(__file__).resolve().parents[2]


def rows_of(cache: Path) -> dict[str, dict[str, Any]]:
    rows = (row for file in sorted(cache.glob("data/*.parquet")) for row in pq.read_table(file).to_pylist())
    return {row["example_hash"]: row for row in rows}


def count(line: str, output: str) -> int:
    found = re.search(rf"^{line} +([\d,]+)", output, re.MULTILINE)
    assert found, output
    return int(found[1])


@pytest.mark.model
def test_a_run_goes_on_with_either_engine(
    tmp_path: Path, embedded_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three pairs by vLLM, then two by transformers, then one by vLLM: a cache like that of transformers alone."""
    mixed, alone = tmp_path / "mixed", tmp_path / "alone"
    common = ["annotate", "--dataset", "demo", "--model", embedded_model, "--device", "cpu"]
    first = ["--engine", "vllm", "--limit", "3", "--out", str(mixed)]
    command = [sys.executable, "-m", "twdpo", *common, *first]
    run = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert count("judged now", run.stdout) == 3
    assert not re.search("vllm|INFO|WARN|gloo|NUMA|Triton", run.stdout + run.stderr, re.IGNORECASE), run.stderr
    assert all(re.match(r"\d+ of 3 pairs", line) for line in run.stderr.splitlines()), run.stderr
    for engine, limit, new in (("transformers", "5", 2), ("vllm", "6", 1)):
        assert main([*common, "--engine", engine, "--limit", limit, "--out", str(mixed)]) == 0
        assert count("judged now", capsys.readouterr().out) == new
    assert main([*common, "--limit", "6", "--out", str(alone)]) == 0
    got, expected = rows_of(mixed), rows_of(alone)
    assert got.keys() == expected.keys()
    for key, row in expected.items():
        for name, value in row.items():
            if "_weights_" in name:  # stored with 12 bits: at the most one step of them apart
                np.testing.assert_allclose(got[key][name], value, rtol=1 / 2047, atol=1e-6)
            elif isinstance(value, float):
                assert got[key][name] == pytest.approx(value, abs=2e-5), name
            else:
                assert got[key][name] == value, name


def test_without_the_verdict(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "tiny", "llama", layers=4, context=2048, hidden_size=128, head_dim=32)
    settings: dict[str, Any] = {"dataset": "demo", "model": str(model), "limit": 3, "layers": "1,3", "device": "cpu"}
    for engine in ("vllm", "transformers"):
        result = annotate(AnnotateConfig(engine=engine, verdict=False, out=str(tmp_path / engine), **settings))
        assert result.judge_accuracy is None
        assert result.counts.written == 3
    got, expected = rows_of(tmp_path / "vllm"), rows_of(tmp_path / "transformers")
    for key, row in expected.items():
        for name in ("chosen_weights_1", "rejected_weights_3"):
            np.testing.assert_allclose(got[key][name], row[name], rtol=1 / 1000, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--device", "cuda"], 2, "--device cuda cannot be used: this vLLM runs on cpu; use --engine transformers"),
        (["--device", "cpu:1"], 2, "this vLLM runs on cpu; say which with CUDA_VISIBLE_DEVICES"),
        (["--max-length", "4096"], 2, "--max-length 4096 is more than the judge's context of 2048 tokens"),
        (["--layers", "1,7"], 2, "--layers 1,7: the judge has 4 layers, 0 to 3"),
        (["--model", "./nowhere"], 1, "model folder './nowhere' does not exist"),
        (["--model", "judge.gguf"], 1, "judge.gguf is a GGUF file, which --engine vllm does not load"),
        (["--tensor-parallel", "3"], 1, "vLLM cannot load tiny: Total number of attention heads (4) must be divisible"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "tiny", "llama", layers=4, context=2048, hidden_size=128, head_dim=32)
    capsys.readouterr()
    assert main(["annotate", "--dataset", "demo", "--engine", "vllm", "--model", "tiny", *options]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert told in lines[0]
