"""The recipes that come with the program: each is valid, found by its name, and explained line by line."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.pipeline.train.conftest import World
from tests.pipeline.train.conftest import empty_world as empty_world
from tests.pipeline.train.conftest import tiny_folder as tiny_folder
from tests.pipeline.train.conftest import world as world
from twdpo import recipes
from twdpo.cli import main
from twdpo.config import resolve
from twdpo.errors import UsageError
from twdpo.pipeline.importing.attentionpo import JUDGES
from twdpo.pipeline.train import TrainConfig, launch
from twdpo.pipeline.train.config import FREE_ON_RESUME

ROOT = Path(__file__).resolve().parents[1]
PAPERS = ("llama3-8b-base", "llama3-8b-instruct")


def load(name: str) -> TrainConfig:
    return resolve(TrainConfig, recipes.find(name), {})


def test_they_are_all_there() -> None:
    assert recipes.names() == ["laptop", "llama3-8b-base", "llama3-8b-instruct", "lora-single-gpu"]


@pytest.mark.parametrize("name", recipes.names())
def test_each_is_a_configuration_with_a_reason_on_every_line(name: str) -> None:
    text = Path(recipes.find(name)).read_text("utf-8")
    config = load(name)
    content = yaml.safe_load(text)
    assert all(getattr(config, key) == value for key, value in content.items())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(content)
    assert [line for line in lines if not re.fullmatch(r"\w+: \S+  # \S.*", line)] == []
    assert f"--config {name}" in text


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_hyper_parameters(name: str) -> None:
    config = load(name)
    assert (config.beta, config.learning_rate, config.scheduler, config.warmup_ratio) == (0.005, 1e-6, "cosine", 0.1)
    assert (config.epochs, config.batch_size, config.max_length) == (1.0, 32, 2048)
    assert (config.dtype, config.optimizer, config.sink_fix, config.uncovered) == (
        "bfloat16",
        "adamw_8bit",
        True,
        "zero",
    )
    assert config.dataset is not None
    assert JUDGES[config.dataset] == config.model


def test_what_is_named_like_a_default_is_the_default() -> None:
    """The defaults are the published values, so the paper's recipes may differ from them in few fields."""
    for name in PAPERS:
        config, default = load(name), TrainConfig().settled()
        differing = {field for field in TrainConfig.__slots__ if getattr(config, field) != getattr(default, field)}
        named = {"model", "dataset", "split", "attn_source", "dtype", "optimizer", "gradient_checkpointing"}
        assert differing - FREE_ON_RESUME == {*named, "eval_split"}


@pytest.mark.parametrize("name", recipes.names())
def test_the_command_in_a_recipe_can_be_started(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options go together, on a machine with as many GPUs as it asks for."""
    text = Path(recipes.find(name)).read_text("utf-8")
    [line] = [line.lstrip("# ") for line in text.split("\n") if line.startswith("#   twdpo train")]
    words = shlex.split(line)[2:]
    flags = {key.lstrip("-").replace("-", "_"): value for key, value in zip(words[::2], words[1::2], strict=True)}
    assert flags.pop("config") == name
    processes = int(flags.pop("num_processes", "1"))
    config = resolve(TrainConfig, recipes.find(name), flags | {"num_processes": processes})
    monkeypatch.setattr(launch, "_gpus", lambda _device: processes)
    workers = launch.needed(config)
    assert (workers.processes if workers else 1) == processes


def test_the_lora_recipe_trains_adapters() -> None:
    config = load("lora-single-gpu")
    assert (config.lora_rank, config.dtype, config.gradient_checkpointing) == (16, "bfloat16", True)
    assert config.learning_rate > TrainConfig().learning_rate


def test_a_file_wins_over_a_recipe_and_paths_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(recipes.find("laptop")).is_file()
    (tmp_path / "laptop").write_text("beta: 0.3\n")
    for text in ("laptop", "laptop.yaml", "./nothing", "folder/laptop", str(tmp_path / "x")):
        assert recipes.find(text) == text


def test_an_unknown_name_lists_those_that_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        recipes.find("labtop")
    message = str(caught.value)
    assert message.startswith("--config labtop: no such file, and no recipe of that name; did you mean laptop?")
    assert all(name in message for name in recipes.names())


def test_only_train_knows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["annotate", "--dataset", "demo", "--config", "laptop"]) == 2
    assert "--config laptop: no such file" in capsys.readouterr().err
    assert main(["train", "--config", "labtop"]) == 2
    assert "did you mean laptop?" in capsys.readouterr().err


def test_the_laptop_recipe_runs_and_flags_win(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    out = world.folder / "trained"
    flags = ["--model", str(world.model), "--weights", str(world.weights), "--out", str(out)]
    flags += ["--max-steps", "3", "--max-length", "256", "--save-every", "2"]
    assert main(["train", "--config", "laptop", *flags]) == 0, capsys.readouterr().err
    used = resolve(TrainConfig, str(out / "train.yaml"), {})
    assert (used.max_steps, used.save_every, used.batch_size, used.beta) == (3, 2, 4, 0.1)
    assert (out / "config.json").is_file()


def test_the_wheel_takes_all_files_of_the_package() -> None:
    """Nothing there is left out by name; files that git ignores would be."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build == {"packages": ["twdpo"]}
    ignored = (ROOT / ".gitignore").read_text("utf-8").split()
    assert not {"*.yaml", "*.yml", "recipes/", "twdpo/"} & set(ignored)
