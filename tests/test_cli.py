"""The command line as a user types it: what is printed, what is wrong in one line, exit codes."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.tiny_models import save_tiny
from twdpo.cli import main

ROWS = [
    {"prompt": f"Say {i}", "chosen": f"The number is {i}.", "rejected": f"Perhaps it is {i + 1}, perhaps not."}
    for i in range(6)
]
SHORT = "{question}\n[A]{answer_a}\n[B]{answer_b}\nBetter:"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", "llama", layers=4, context=2048)


@pytest.fixture
def workplace(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with good and bad files, as the current one."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl", ROWS)
    write_rows(tmp_path / "columns.jsonl", [{"text": "a", "label": 1}])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "latin1.jsonl").write_bytes('{"prompt": "é", "chosen": "a", "rejected": "b"}\n'.encode("latin-1"))
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": \n')
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 this is none")
    (tmp_path / "folder").mkdir()
    (tmp_path / "template.txt").write_text(SHORT)
    (tmp_path / "tiny").symlink_to(tiny)
    (tmp_path / "bad.yaml").write_text("datset: pairs.jsonl\n")
    return tmp_path


ANNOTATE = ["annotate", "--model", "tiny", "--judge-template", "template.txt", "--max-length", "512"]
TRAIN = ["train", "--max-length", "256", "--eval-split", "none", "--device", "cpu", "--dtype", "float32"]

#: (arguments, exit code, what the one line on stderr says)
MISTAKES: list[tuple[list[str], int, str]] = [
    ([*ANNOTATE, "--dataset", "none.jsonl"], 1, "none.jsonl"),
    ([*ANNOTATE, "--dataset", "empty.jsonl"], 1, "empty"),
    ([*ANNOTATE, "--dataset", "columns.jsonl"], 1, "text, label"),
    ([*ANNOTATE, "--dataset", "latin1.jsonl"], 1, "UTF-8"),
    ([*ANNOTATE, "--dataset", "broken.jsonl"], 1, "line 2"),
    ([*ANNOTATE, "--dataset", "broken.parquet"], 1, "broken.parquet"),
    ([*ANNOTATE, "--dataset", "folder"], 1, "folder"),
    ([*ANNOTATE, "--dataset", "ultrafedback"], 1, "ultrafeedback"),
    ([*ANNOTATE, "--dataset", "pairs.jsonl", "--split", "test"], 1, "split"),
    (["annotate"], 2, "--dataset is missing"),
    (["annotate", "--dataset", "demo", "--config", "bad.yaml"], 2, "unknown key 'datset'; did you mean dataset?"),
    (["annotate", "--dataset", "demo", "--config", "none.yaml"], 2, "--config none.yaml: no such file"),
    (["annotate", "--dataset", "demo", "--limit", "0"], 2, "--limit 0 is too small"),
    (["annotate", "--dataset", "demo", "--shard", "3/3"], 2, "--shard 3/3: there is no such part"),
    (["annotate", "--dataset", "demo", "--shard", "half"], 2, "--shard 'half' is not understood"),
    (["annotate", "--dataset", "demo", "--device-map", "auto", "--device", "cpu"], 2, "leave --device cpu out"),
    (["annotate", "--dataset", "demo", "--runner", "slurm"], 2, "--runner slurm is not known"),
    (["annotate", "--dataset", "demo", "--workers", "2"], 2, "--workers is how many engines --runner ray starts"),
    (["annotate", "--dataset", "demo", "--limit", "many"], 2, "Invalid value for '--limit'"),
    (["annotate", "--datset", "demo"], 2, "No such option: --datset"),
    (["annotate", "--dataset", "demo", "--dtype", "int4"], 2, "--dtype int4 is not known"),
    (["annotate", "--dataset", "demo", "--judge-template", "none.txt"], 2, "--judge-template none.txt: no such file"),
    (["annotate", "--dataset", "demo", "--judge-template", "bad.yaml"], 2, "must each stand in it once"),
    (["annotate", "--dataset", "demo", "--chat-template-kwargs", "{"], 2, "is no JSON object"),
    (["annotate", "--dataset", "demo", "--model", "folder"], 1, "folder is a folder but holds no model"),
    (["annotate", "--dataset", "demo", "--model", "pairs.jsonl"], 1, "pairs.jsonl is a file but no model"),
    (["annotate", "--dataset", "demo", "--model", "./none"], 1, "model folder './none' does not exist"),
    (["annotate", "--dataset", "demo", "--model", "no-such/model"], 1, "cannot get the"),
    (["annotate", "--dataset", "demo", "--source", "atention"], 2, "--source atention is not known; choose one of"),
    (["annotate", "--dataset", "demo", "--source-options", "seed=1"], 2, "--source attention has no option 'seed'"),
    (["annotate", "--dataset", "demo", "--source", "position", "--source-options", "gamma=1.5"], 2, "gamma must be"),
    (["annotate", "--dataset", "demo", "--source", "random", "--source-options", "seed=-1"], 2, "seed must not be"),
    (["annotate", "--dataset", "demo", "--base", "folder"], 2, "--base is for sources that rework a cache (shuffled"),
    (["annotate", "--dataset", "demo", "--source", "shuffled", "--base", "folder"], 1, "folder is no weights cache"),
    (["annotate", "--dataset", "demo", "--source", "shuffled", "--base", "x", "--layers", "1"], 2, "as --base has it"),
    (["annotate", "--dataset", "demo", "--source", "uniform", "--layers", "all"], 2, "leave --layers out"),
    (["annotate", "--dataset", "demo", "--source", "uniform", "--engine", "vllm"], 2, "leave --engine vllm out"),
    (["annotate", "--dataset", "demo", "--source", "rollout", "--engine", "vllm"], 2, "cannot be read in vLLM"),
    (["annotate", "--dataset", "demo", "--source", "tis", "--source-options", "low=2"], 2, "low must be below high"),
    (["annotate", "--dataset", "demo", "--source", "tis", "--model", "./none"], 1, "model folder './none' does not"),
    ([*ANNOTATE, "--dataset", "demo", "--source", "rollout", "--layers", "9"], 2, "the judge has 4 layers, 0 to 3"),
    ([*ANNOTATE, "--dataset", "demo", "--device", "cuda:7"], 2, "--device cuda:7 cannot be used here"),
    ([*ANNOTATE, "--dataset", "demo", "--layers", "9"], 2, "the judge has 4 layers, 0 to 3"),
    ([*ANNOTATE, "--dataset", "demo", "--out", "folder/../pairs.jsonl"], 1, "pairs.jsonl"),
    ([*ANNOTATE, "--dataset", "pairs.jsonl", "--out", "."], 1, "is not empty and holds no weights cache"),
    ([*TRAIN], 1, "weights_cache is no weights cache"),
    ([*TRAIN, "--weights", "folder"], 1, "folder is no weights cache"),
    ([*TRAIN, "--beta", "0"], 2, "--beta 0"),
    ([*TRAIN, "--missing", "skip"], 2, "--missing skip is not known"),
    ([*TRAIN, "--scheduler", "step"], 2, "--scheduler step is not known; choose cosine or linear or constant"),
    ([*TRAIN, "--lora-rank", "0"], 2, "--lora-rank 0 is too small"),
    ([*TRAIN, "--load-in-4bit"], 2, "--load-in-4bit needs --lora-rank"),
    ([*TRAIN, "--merge-adapter"], 2, "--merge-adapter needs --lora-rank"),
    ([*TRAIN, "--lora-alpha", "32"], 2, "--lora-alpha needs --lora-rank"),
    ([*TRAIN, "--lora-rank", "4", "--lora-alpha", "-1"], 2, "--lora-alpha -1.0 must be a number above 0"),
    (["inspect", "folder"], 1, "folder is no weights cache"),
    (["cache", "verify", "none"], 1, "none is no weights cache"),
    (["cache", "wash"], 2, "No such command"),
    (["nonsense"], 2, "No such command"),
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
    assert "Traceback" not in error


@pytest.fixture
def annotated(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main([*ANNOTATE, "--dataset", "pairs.jsonl"]) == 0
    assert "next: twdpo train --weights weights_cache/" in capsys.readouterr().out
    return workplace


def test_annotate_then_train_with_no_further_arguments(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Data set and model come from the manifest; the folder from the default."""
    assert main([*TRAIN, "--weights", "weights_cache/", "--batch-size", "2"]) == 0
    shown = capsys.readouterr().out
    assert "6 pairs" in shown
    assert "trained/" in shown
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(annotated / "trained")
    AutoTokenizer.from_pretrained(annotated / "trained")
    lines = [json.loads(line) for line in (annotated / "trained/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert {"loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"} <= lines[0].keys()
    assert {"logps/chosen", "logps/weighted_chosen", "rewards/weighted_margins"} <= lines[0].keys()


@pytest.mark.parametrize("options", [["--limit", "4"], ["--limit", "4", "--seed", "3"]])
def test_annotate_some_then_train(workplace: Path, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    """What was not asked for is not missing; what was asked for must be there."""
    assert main([*ANNOTATE, "--dataset", "pairs.jsonl", *options]) == 0
    assert main([*TRAIN, "--out", "some"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "4 pairs" in shown
    assert "left out 2 × not among the pairs that were annotated" in shown
    assert (workplace / "some/model.safetensors").stat().st_mode == (workplace / "some/train.yaml").stat().st_mode


def test_every_source_makes_a_cache_that_trains_and_shows(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line: a control of the cache that is there, and one that runs its own passes."""
    plain = [*ANNOTATE, "--dataset", "pairs.jsonl"]
    short = ["annotate", "--dataset", "pairs.jsonl", "--source", "shuffled", "--base", "weights_cache"]
    assert main([*short, "--out", "shuffled"]) == 0
    assert main([*plain, "--source", "rollout", "--out", "rollout", "--include-text"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "weighed now 6 layers 0, 1, 2, 3" not in shown
    assert "judge prefers chosen" in shown
    assert "judged now 6" in shown
    position = [*plain, "--source", "position", "--source-options", "gamma=0.9", "--out", "position"]
    assert main(position) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "weighed now 6" in shown
    assert "speed" not in shown
    for name in ("shuffled", "rollout", "position"):
        assert main(["cache", "verify", name]) == 0
        assert main(["inspect", name, "--example", "0", "--dataset", "pairs.jsonl"]) == 0
    for name in ("shuffled", "position"):
        assert main([*TRAIN, "--weights", name, "--out", f"trained-{name}", "--batch-size", "6"]) == 0
        assert "6 pairs" in capsys.readouterr().out
    assert main(["inspect", "position"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "up to 512 tokens, layers 0, weights by position (gamma 0.9)" in shown
    assert "after the sink fix" not in shown
    assert "fall from token to token" in (annotated / "position/README.md").read_text()


def test_train_an_adapter_and_go_on_from_it(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = [*TRAIN, "--lora-rank", "2"]
    assert main([*lora, "--out", "adapter", "--lora-targets", "q_proj,up_proj"]) == 0
    assert (annotated / "adapter/adapter_model.safetensors").is_file()
    assert main([*TRAIN, "--model", "adapter", "--out", "whole"]) == 0
    assert (annotated / "whole/model.safetensors").is_file()
    capsys.readouterr()
    for arguments, code, message in [
        ([*lora, "--out", "adapter"], 2, "adapter holds a finished run"),
        ([*lora, "--model", "adapter", "--out", "other"], 2, "adapter is an adapter itself"),
        ([*lora, "--lora-targets", "query", "--out", "other"], 2, "--lora-targets query: the model has no such module"),
    ]:
        assert main(arguments) == code
        error = capsys.readouterr().err.strip()
        assert message in error
        assert error.startswith("twdpo: ")
        assert error.count("\n") == 0, error


def test_another_recipe(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ANNOTATE, "--dataset", "pairs.jsonl", "--max-length", "400"]) == 1
    error = capsys.readouterr().err
    assert "max_length: 512 in the cache, 400 asked for" in error
    assert "--out" in error


def test_a_cache_with_missing_pairs(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [*ROWS, {"prompt": "New", "chosen": "yes yes", "rejected": "no no"}]
    write_rows(annotated / "pairs.jsonl", more)
    assert main([*TRAIN]) == 1
    error = capsys.readouterr().err
    assert "1 of 7 pairs" in error
    assert "--missing" in error
    assert main([*TRAIN, "--missing", "drop", "--out", "dropped"]) == 0
    assert "6 pairs" in capsys.readouterr().out
    assert main([*TRAIN, "--missing", "uniform", "--out", "uniform"]) == 0
    assert "7 pairs, 1 with even weights" in " ".join(capsys.readouterr().out.split())


def test_training_on_some_of_the_parts_is_noticed(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ANNOTATE, "--dataset", "pairs.jsonl", "--shard", "0/2"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "part 0/2;" in shown
    assert "next: the other parts, then twdpo train" in shown
    assert main([*TRAIN]) == 1
    assert "of 6 pairs have no weights in weights_cache" in capsys.readouterr().err
    assert main([*TRAIN, "--streaming", "--out", "streamed"]) == 1
    assert "have no weights in weights_cache" in capsys.readouterr().err
    assert main([*ANNOTATE, "--dataset", "pairs.jsonl", "--shard", "1/2"]) == 0
    assert main([*TRAIN]) == 0
    assert "6 pairs" in capsys.readouterr().out


def test_flags_win_over_the_file_and_the_result_says_what_was_used(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "run.yaml").write_text(
        "dataset: pairs.jsonl\nmodel: tiny\njudge-template: template.txt\nmax-length: 512\n"
        "limit: 5\ninclude-text: true\n"
    )
    assert main(["annotate", "--config", "run.yaml", "--limit", "3", "--no-include-text"]) == 0
    import yaml

    saved = yaml.safe_load((workplace / "weights_cache/annotate.yaml").read_text())
    assert (saved["limit"], saved["max_length"], saved["include_text"]) == (3, 512, False)
    assert main(["annotate", "--config", "weights_cache/annotate.yaml"]) == 0


def marks_gone(shown: str) -> str:
    """The text of a pair drawn without colour."""
    return shown.translate(str.maketrans("", "", "‹›«»⟪⟫"))


def test_inspect_sums_a_cache_up_on_one_screen(
    annotated: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["inspect", "weights_cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 23
    assert max(map(len, lines)) <= 80
    shown = " ".join(" ".join(lines).split())
    for text in (
        "judge prefers chosen",
        "verdict flips",
        "pairs.jsonl",
        "tiny at ",
        "float32, up to 512 tokens",
        "layer 3",
    ):
        assert text in shown, text
    assert main(["inspect", "weights_cache", "--layer", "mean:1,2"]) == 0
    assert "mean of layers 1, 2" in capsys.readouterr().out
    for arguments, message in [
        (["--layer", "9"], "--layer 9: layer 9 is not in the cache, which holds 0, 1, 2, 3"),
        (["--layer", "deep"], "--layer 'deep' is not understood"),
        (["--orders"], "--orders needs --example"),
    ]:
        assert main(["inspect", "weights_cache", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_inspect_as_json(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "weights_cache", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["pairs"], summary["rejected"], summary["layers"]) == (6, 0, [3])
    assert summary["recipe"]["judge_model"] == "tiny"
    assert summary["sources"][0]["name"] == "pairs.jsonl"
    assert summary["both_right"] + summary["both_wrong"] + summary["verdict_flips"] == pytest.approx(1)
    assert len(summary["deciles"]) == 10


def test_inspect_shows_a_pair(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "weights_cache", "--example", "2", "--layer", "1"]) == 0
    shown = capsys.readouterr().out
    assert "The number is 2." in marks_gone(shown)
    assert "layer 1, raw weights" in shown
    key = shown.split()[2]
    assert main(["inspect", "weights_cache", "--example", key, "--sink-fix", "--layer", "last"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"pair 2  {key}")
    assert "layer 3, sink-fixed weights" in shown
    assert main(["inspect", "weights_cache", "--example", "6"]) == 2
    assert "the cache holds 6 pairs, 0 to 5" in capsys.readouterr().err
    assert main(["inspect", "weights_cache", "--example", "zz"]) == 2
    (annotated / "pairs.jsonl").rename(annotated / "elsewhere.jsonl")
    capsys.readouterr()
    assert main(["inspect", "weights_cache", "--example", "random"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "pass --dataset" in shown
    assert "characters 0–" in shown
    assert main(["inspect", "weights_cache", "--example", "2", "--dataset", "elsewhere.jsonl"]) == 0
    assert "The number is 2." in marks_gone(capsys.readouterr().out)
    assert main(["inspect", "weights_cache", "--example", "2", "--orders"]) == 1
    assert "--orders needs the texts of the pair" in capsys.readouterr().err


def test_inspect_judges_a_pair_again(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "weights_cache", "--example", "1", "--orders", "--device", "cpu"]) == 0
    shown = " ".join(marks_gone(capsys.readouterr().out).split())
    assert "chosen, read first" in shown
    assert "rejected, read first" in shown
    differences = re.findall(r"differs from the cache by at most (\S+)", shown)
    assert len(differences) == 2
    assert all(float(difference) < 2**-10 for difference in differences)
    (annotated / "tiny").unlink()
    assert main(["inspect", "weights_cache", "--example", "1", "--orders"]) == 1
    assert "cannot get the" in capsys.readouterr().err


@pytest.mark.model
def test_inspect_judges_a_pair_of_the_embedded_model_again(
    workplace: Path, capsys: pytest.CaptureFixture[str], embedded_model: str
) -> None:
    annotate = ["annotate", "--dataset", "demo", "--limit", "2", "--device", "cpu", "--model", embedded_model]
    assert main([*annotate, "--out", "real"]) == 0
    capsys.readouterr()
    assert main(["inspect", "real", "--example", "1", "--orders", "--device", "cpu", "--layer", "mean"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    stored = re.findall(r"differs from the cache by at most (\S+) \(token #\d+, weight (\S+)\)", shown)
    assert len(stored) == 2
    # Weights are stored with a relative error under 2^-12; batches of another size change the last bits too.
    assert all(float(difference) <= 2**-10 * max(1.0, float(weight)) for difference, weight in stored)


def test_info_and_verify(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "info", "weights_cache"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["layers"] == [0, 1, 2, 3]
    assert main(["cache", "verify", "weights_cache"]) == 0
    assert "6 rows in 1 shards, all sound" in capsys.readouterr().out
    shard = next((annotated / "weights_cache/data").glob("*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    assert main(["cache", "verify", "weights_cache"]) == 1


def run_twdpo(arguments: list[str], folder: Path, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "twdpo", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_full_disk(workplace: Path) -> None:
    """A limit on the size of files stands for a full disk: the write fails in the same place."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    process = run_twdpo([*ANNOTATE, "--dataset", "pairs.jsonl"], workplace, preexec_fn=limit)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1, error
    last = error.strip().splitlines()[-1]
    assert last.startswith("twdpo: cannot write weights_cache")
    assert "Traceback" not in error
    assert main([*ANNOTATE, "--dataset", "pairs.jsonl"]) == 0  # with room again, the same command goes on


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(workplace: Path, stop: signal.Signals) -> None:
    rows = [
        {"prompt": f"Say {i}", "chosen": f"long answer {i} " * 60, "rejected": f"other {i} " * 60} for i in range(3000)
    ]
    write_rows(workplace / "many.jsonl", rows)
    process = run_twdpo([*ANNOTATE, "--dataset", "many.jsonl", "--max-length", "1024"], workplace)
    _wait_for(lambda: (workplace / "weights_cache/manifest.json").exists(), process)
    time.sleep(2.0)
    process.send_signal(stop)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    last = error.strip().splitlines()[-1]
    assert "run the same command again to go on" in last
    assert "Traceback" not in error
    kept = int(last.split("stopped; ")[1].split()[0])
    from twdpo.weights_cache import WeightsCache

    with WeightsCache.open(workplace / "weights_cache") as cache:
        assert len(cache) == kept < 3000


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if condition():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    raise AssertionError("it never happened")


def test_a_bug_keeps_its_traceback(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import twdpo.weights_cache.verification as verification

    def bug(*_arguments: object, **_options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("twdpo.weights_cache.verify", bug)
    assert verification is not None
    with pytest.raises(ZeroDivisionError):
        main(["cache", "verify", "folder"])


def test_help_and_version_are_quick_and_light() -> None:
    """`import twdpo` and `twdpo --help` import neither torch nor transformers; help answers in under half a second."""
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "import twdpo\nfrom twdpo.cli import main\nmain(['--help']); main(['train', '--help'])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'accelerate'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), time.perf_counter() - start)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    best = 9.0
    for _ in range(3):  # the least of three: other processes may be at work
        out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        last = out.stdout.strip().splitlines()[-1]
        assert last.startswith("HEAVY []"), last
        best = min(best, float(last.split()[-1]))
    assert best < 0.5


def test_every_option_has_a_help_text() -> None:
    from dataclasses import fields

    from twdpo.pipeline.annotate.config import HELP as ANNOTATE_HELP
    from twdpo.pipeline.annotate.config import AnnotateConfig
    from twdpo.pipeline.train.config import HELP as TRAIN_HELP
    from twdpo.pipeline.train.config import TrainConfig

    for kind, texts in ((AnnotateConfig, ANNOTATE_HELP), (TrainConfig, TRAIN_HELP)):
        assert [field.name for field in fields(kind)] == list(texts)
        assert all(text.endswith(".") for text in texts.values())


def test_no_hub_gives_one_line(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ANNOTATE, "--dataset", "ultrafeedback", "--limit", "2"]) == 1
    error = capsys.readouterr().err.strip()
    assert "hub" in error
    assert error.count("\n") == 0
