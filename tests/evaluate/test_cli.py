"""`twdpo generate` and `twdpo judge` as a user types them: what is printed, mistakes in one line; a real model."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.evaluate.benchmarks.samples import alpaca_rows, mt_bench_rows, read_json, write_json
from tests.fixtures.tiny_models import save_tiny
from twdpo.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", "llama", context=1024)


@pytest.fixture
def workplace(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with questions, answers and a model, as the current one."""
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "mt.jsonl", mt_bench_rows())
    write_json(tmp_path / "alpaca.json", alpaca_rows())
    write_json(tmp_path / "few.json", alpaca_rows(7))
    (tmp_path / "template.txt").write_text("{question}\n[A]{answer_a}\n[B]{answer_b}\nBetter:")
    (tmp_path / "tiny").symlink_to(tiny)
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.yaml").write_text("bechmark: mt_bench\n")
    return tmp_path


MT = ["generate", "--benchmark", "mt_bench", "--model", "tiny", "--questions", "mt.jsonl", "--max-new-tokens", "4"]
ALPACA = ["generate", "--benchmark", "alpaca_eval", "--model", "tiny"]
JUDGE = ["judge", "few.json", "few.json", "--model", "tiny"]

#: (arguments, exit code, what the one line on stderr says)
MISTAKES: list[tuple[list[str], int, str]] = [
    (["generate"], 2, "--benchmark, --model is missing"),
    (["generate", "--benchmark", "mmlu", "--model", "tiny"], 2, "choose one of alpaca_eval, mt_bench, arena_hard"),
    ([*MT, "--engine", "llama.cpp"], 2, "choose one of transformers, vllm"),
    ([*MT, "--limit", "0"], 2, "--limit 0 is too small"),
    ([*MT, "--temperature", "-1"], 2, "--temperature -1 must be between 0 and 10"),
    ([*MT, "--name", "my/model"], 2, "--name 'my/model' would be a file's name"),
    ([*MT, "--dtype", "int4"], 2, "--dtype int4 is not known"),
    ([*MT, "--tensor-parallel", "2"], 2, "--tensor-parallel is for --engine vllm"),
    ([*MT, "--gpu-memory-utilization", "2"], 2, "must be more than 0 and at most 1"),
    ([*MT, "--config", "bad.yaml"], 2, "did you mean benchmark?"),
    ([*MT, "--chat-template-kwargs", "[]"], 2, "is no JSON object"),
    ([*MT, "--model", "folder"], 1, "holds no model"),
    ([*MT, "--out", "mt.jsonl"], 1, "a file is in the way"),
    ([*ALPACA, "--questions", "none.json"], 2, "--questions none.json: no such file"),
    ([*ALPACA, "--questions", "few.json"], 1, "has 7 questions and AlpacaEval has 805"),
    ([*ALPACA, "--questions", "mt.jsonl"], 1, "no file of AlpacaEval's questions"),
    ([*ALPACA], 1, "download it where the hub can be reached and pass it with --questions"),
    (["generate", "--benchmark", "arena_hard", "--model", "tiny", "--arena-version", "v3"], 2, "v0.1, v2.0, legacy"),
    (["judge", "few.json"], 2, "B is missing"),
    (["judge", "none.json", "few.json"], 2, "none.json: no such file"),
    (["judge", "mt.jsonl", "few.json"], 1, "is no answer file"),
    ([*JUDGE, "--max-length", "8"], 2, "--max-length 8 is too small"),
    ([*JUDGE, "--judge-template", "bad.yaml"], 2, "must each stand in it once"),
    ([*JUDGE, "--limit", "0"], 2, "--limit 0 is too small"),
    ([*JUDGE, "--model", "./none"], 1, "model folder './none' does not exist"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), MISTAKES, ids=[" ".join(case[0])[-60:] for case in MISTAKES])
def test_a_mistake_gets_one_line(
    workplace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(arguments) == code
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.count("\n") == 0, error
    assert error.startswith("twdpo: ")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed: tests/vllm tries it")
def test_without_vllm_its_engine_is_refused(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MT, "--engine", "vllm"]) == 2
    assert capsys.readouterr().err.startswith("twdpo: --engine vllm needs vLLM")


def test_two_runs_and_a_judge(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        assert main([*MT, "--name", name, "--limit", "4", "--seed", "3" if name == "a" else "4"]) == 0
        out = capsys.readouterr().out
        assert "4 of 80 of MT-Bench" in out
        assert "cannot be judged officially" in out
    files = [f"answers/trials/mt_bench-{name}-first-4.jsonl" for name in "ab"]
    texts = [[row["choices"] for row in read_json(Path(file))] for file in files]
    assert texts[0] != texts[1]
    judge = ["judge", *files, "--questions", "mt.jsonl", "--model", "tiny", "--judge-template", "template.txt"]
    judge += ["--max-length", "512"]
    assert main(judge) == 0
    assert "win rate of A" in capsys.readouterr().out
    assert main([*judge, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["a"], result["b"], result["questions"]) == ("a", "b", 4)
    assert set(result["turns"]) == {"1", "2"}
    assert main([*MT, "--name", "a", "--limit", "4", "--seed", "4"]) == 2
    assert "seed: 3 there, 4 now" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.model
def test_a_killed_run_of_a_real_model_ends_in_the_same_answers(
    tmp_path: Path, shared: Path, embedded_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both turns of real questions, sampled; killed once some are kept; judged against itself it is a tie."""
    questions = str(shared / "data/benchmarks/mt_bench/question.jsonl")
    common = ["generate", "--benchmark", "mt_bench", "--model", embedded_model, "--questions", questions]
    common += ["--limit", "4", "--max-new-tokens", "24", "--batch-size", "2", "--device", "cpu"]
    assert main([*common, "--out", str(tmp_path / "whole")]) == 0
    command = [sys.executable, "-m", "twdpo", *common, "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    rows = tmp_path / f"killed/work/mt_bench-{embedded_model}-first-4/rows.jsonl"
    deadline = time.monotonic() + 120
    while not (rows.is_file() and rows.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < len(rows.read_bytes().splitlines()) <= 4
    assert main([*common, "--out", str(tmp_path / "killed")]) == 0
    assert "were there before" in capsys.readouterr().out
    name = f"trials/mt_bench-{embedded_model}-first-4.jsonl"
    whole, killed = (read_json(tmp_path / folder / name) for folder in ("whole", "killed"))
    assert [row["choices"] for row in whole] == [row["choices"] for row in killed]
    assert all(len(row["choices"][0]["turns"]) == 2 and all(row["choices"][0]["turns"]) for row in whole)
    files, out = (
        [str(tmp_path / folder / name) for folder in ("whole", "killed")],
        ["--out", str(tmp_path / "verdicts")],
    )
    assert (
        main(["judge", *files, "--questions", questions, "--max-length", "1024", "--limit", "2", "--json", *out]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert (result["overall"]["ties"], result["overall"]["verdicts"]) == (4, 4)
