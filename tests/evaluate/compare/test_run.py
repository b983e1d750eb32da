"""Comparisons of tiny models from end to end: the same pairs, the same summed weight, gone on with, reported."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fixtures.tiny_models import save_reward_model, save_tiny
from twdpo import cli
from twdpo.errors import Interrupted, TwdpoError, UsageError
from twdpo.evaluate.compare import CompareConfig, Comparison, Watch, compare
from twdpo.evaluate.compare.runs import RunResult
from twdpo.evaluate.compare.together import claimed, joined
from twdpo.results import compare_rows

PAIRS = 24


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and pairs."""
    folder = tmp_path_factory.mktemp("compare")
    save_tiny(folder / "model", "llama")
    (folder / "template.txt").write_text("{question} A: {answer_a} B: {answer_b} The better one?")
    rows = [
        {"prompt": f"What is {i} plus {i}?", "chosen": f"It is {2 * i}, of course.", "rejected": f"Maybe {i}1 or so."}
        for i in range(PAIRS)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(world: Path, **changes: Any) -> dict[str, Any]:
    return {
        "dataset": str(world / "pairs.jsonl"),
        "model": str(world / "model"),
        "out": str(world / "comparison"),
        "betas": (0.1, 1.0),
        "seeds": (1,),
        "resamples": 200,
        # With even weights on every token, attention is DPO.
        "arms": {"attention": {}, "even": {"uniform_mix": 1.0, "uncovered": "one"}},
        "annotate": {"max_length": 512, "judge_template": str(world / "template.txt")},
        "train": {"eval_split": "8", "batch_size": 8, "learning_rate": 3e-3, "max_length": 256, "device": "cpu"},
    } | changes


@pytest.fixture(scope="module", autouse=True)
def one_thread_in_all() -> Iterator[None]:
    """Runs of this module are compared to the last bit, which the number of threads decides, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def done(world: Path, one_thread_in_all: None) -> Comparison:
    return compare(CompareConfig(**settings(world)))


def run_file(world: Path, arm: str, beta: str, seed: int) -> Path:
    return world / "comparison" / "runs" / arm / f"beta-{beta}" / f"seed-{seed}" / "run.json"


def test_every_arm_is_run_at_every_beta_and_seed(world: Path, done: Comparison) -> None:
    assert (done.runs, done.executed, done.seeds) == (6, 6, (1,))
    assert done.frontier is not None
    assert {arm for arm, _ in done.frontier.points} == {"dpo", "attention", "even"}
    assert all(path.is_file() for path in done.files)
    # Only what was measured is kept.
    assert not list((world / "comparison" / "runs").rglob("*.safetensors"))


def test_even_weights_are_dpo_to_the_last_bit(world: Path, done: Comparison) -> None:
    for beta in ("0.1", "1"):
        one, two = (RunResult.load(run_file(world, arm, beta, 1)) for arm in ("dpo", "even"))
        assert one.figures.hashes == two.figures.hashes
        assert len(one.figures) == 8
        np.testing.assert_array_equal(one.figures.margins, two.figures.margins)
        np.testing.assert_array_equal(one.figures.kl, two.figures.kl)
        assert abs(one.figures.margins).max() > 0.01
    attention = RunResult.load(run_file(world, "attention", "0.1", 1))
    assert not np.array_equal(attention.figures.margins, one.figures.margins)


def test_weights_are_scaled_to_the_summed_weight_of_dpo(world: Path, done: Comparison) -> None:
    """Attention weighs n tokens n, and leaves out the end of turn, which DPO weighs 1."""
    content = json.loads((world / "comparison" / "comparison.json").read_text())
    arms = {arm["name"]: arm for arm in content["arms"]}
    assert arms["dpo"]["scale"] == 1
    assert arms["even"]["scale"] == pytest.approx(1, abs=1e-7)
    figures = RunResult.load(run_file(world, "attention", "0.1", 1)).figures
    tokens, answers = figures.tokens.sum(), 2 * len(figures)
    # The held-out answers are as long as the others, give or take a token.
    assert arms["attention"]["scale"] == pytest.approx(tokens / (tokens - 2 * answers), rel=0.05)
    run = RunResult.load(run_file(world, "attention", "0.1", 1))
    assert run.trained_beta == pytest.approx(0.1 * arms["attention"]["scale"])


def test_a_second_call_does_only_what_is_missing(world: Path, done: Comparison) -> None:
    path = run_file(world, "attention", "1", 1)
    before = RunResult.load(path)
    path.unlink()
    again = compare(CompareConfig(**settings(world)))
    assert again.executed == 1
    np.testing.assert_array_equal(RunResult.load(path).figures.margins, before.figures.margins)
    fewer = compare(CompareConfig(**settings(world, betas=(0.1,))))
    assert (fewer.executed, fewer.seeds) == (0, (1,))


def test_ctrl_c_keeps_finished_runs(world: Path, done: Comparison) -> None:
    class Stops(Watch):
        def ran(self, result: RunResult) -> None:
            raise KeyboardInterrupt

    config = CompareConfig(**settings(world, out=str(world / "stopped"), weights=str(attention(world))))
    with pytest.raises(Interrupted, match="run the same command again"):
        compare(config, Stops())
    with pytest.raises(Interrupted):
        compare(config, Stops())
    assert len(list((world / "stopped").rglob("run.json"))) == 2
    assert not (world / "stopped" / "comparison.md").exists()
    assert not (world / "stopped" / "caches" / "attention").exists()


def test_several_processes_share_the_runs(world: Path, done: Comparison) -> None:
    """The second one comes while the first is between two runs, and leaves it nothing to do."""
    config = CompareConfig(**settings(world, out=str(world / "shared"), weights=str(attention(world))))
    others: list[Comparison] = []

    class Joined(Watch):
        seen = 0

        def ran(self, result: RunResult) -> None:
            self.seen += 1
            if self.seen == 2:
                others.append(compare(config))

    watch = Joined()
    first = compare(config, watch)
    assert [(each.executed, each.elsewhere) for each in (first, *others)] == [(2, 0), (4, 0)]
    assert watch.seen == 6
    for path in (world / "comparison" / "runs").rglob("run.json"):
        same = RunResult.load(world / "shared" / path.relative_to(world / "comparison"))
        np.testing.assert_array_equal(same.figures.margins, RunResult.load(path).figures.margins)


def test_a_run_that_another_process_is_at_is_left_to_it(world: Path, done: Comparison) -> None:
    config = CompareConfig(**settings(world, out=str(world / "held"), weights=str(attention(world)), betas=(0.1,)))
    folder = world / "held" / "runs" / "attention" / "beta-0.1" / "seed-1"
    with claimed(folder) as mine:
        assert mine
        (world / "held" / "compare.yaml").touch()
        left = compare(config)
        assert (left.executed, left.elsewhere, left.seeds, left.files) == (2, 1, (), ())
        assert "1 runs; the last process writes the report" in compare_rows(left)["elsewhere"]
    assert (compare(config).executed, compare(config).elsewhere) == (1, 0)
    assert (world / "held" / "comparison.md").is_file()


def test_another_comparison_in_the_same_folder_has_to_wait(world: Path, done: Comparison) -> None:
    with joined(CompareConfig(**settings(world))), pytest.raises(UsageError, match="with other settings is writing to"):
        compare(CompareConfig(**settings(world, resamples=300)))


def test_a_run_is_known_by_the_content_of_its_model_and_pairs(world: Path, done: Comparison, tmp_path: Path) -> None:
    """Moved, they give nothing to do; the same name with another content does everything anew."""
    out = tmp_path / "out"
    shutil.copytree(world / "comparison", out)
    shutil.copytree(world / "model", tmp_path / "model")
    shutil.copy(world / "pairs.jsonl", tmp_path / "moved.jsonl")
    moved = settings(world, out=str(out), weights=str(attention(world)), betas=(0.1,))
    moved |= {"dataset": str(tmp_path / "moved.jsonl"), "model": str(tmp_path / "model"), "judge": str(world / "model")}
    assert compare(CompareConfig(**moved)).executed == 0
    save_tiny(tmp_path / "model", "llama", seed=1)
    assert compare(CompareConfig(**moved)).executed == 3


def test_an_arm_may_have_betas_and_a_loss_of_its_own(world: Path, done: Comparison, tmp_path: Path) -> None:
    config = settings(world, out=str(tmp_path / "out"), weights=str(attention(world)), betas=(0.1,))
    config["arms"] = {"simpo": {"loss": "simpo", "betas": [2.0, 0.1], "simpo_gamma": 0.3}}
    found = compare(CompareConfig(**config))
    assert found.frontier is not None
    assert list(found.frontier.points) == [("dpo", 0.1), ("simpo", 0.1), ("simpo", 2.0)]
    assert list(found.frontier.differences) == [("simpo", 0.1)]
    run = RunResult.load(tmp_path / "out" / "runs" / "simpo" / "beta-2" / "seed-1" / "run.json")
    # A weighted mean knows no scale: there is none to be matched.
    assert run.trained_beta == 2.0
    assert "loss simpo" in (tmp_path / "out" / "comparison.md").read_text()


def test_a_run_that_broke_is_named(world: Path, done: Comparison, tmp_path: Path) -> None:
    config = settings(world, out=str(tmp_path / "out"), weights=str(attention(world)), betas=(0.1,))
    config["train"] = config["train"] | {"learning_rate": 1e30, "max_grad_norm": 1e30}
    with pytest.raises(TwdpoError, match=r"^dpo at beta 0.1, seed 1, cannot be measured .* not numbers.*learning_rate"):
        compare(CompareConfig(**config))


def attention(world: Path) -> Path:
    return world / "comparison" / "caches" / "attention"


def test_a_reward_model_scores_the_policies_own_answers(world: Path, done: Comparison, tmp_path: Path) -> None:
    config = settings(world, out=str(tmp_path / "out"), weights=str(attention(world)), betas=(0.1,))
    config |= {"reward_model": str(save_reward_model(tmp_path / "reward")), "max_new_tokens": 4}
    config["arms"] = {"attention": {}}
    found = compare(CompareConfig(**config))
    assert found.frontier is not None
    run = RunResult.load(tmp_path / "out" / "runs" / "attention" / "beta-0.1" / "seed-1" / "run.json")
    assert run.rewarded is not None
    assert len(run.rewarded.rewards) == len(run.figures)
    assert len(set(run.rewarded.rewards)) > 1
    assert found.frontier.points["attention", 0.1]["reward"].value == pytest.approx(np.mean(run.rewarded.rewards))
    # Four tokens are soon at an end, and that is told.
    assert 0 < run.rewarded.cut <= run.rewarded.answers == 8
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| reward |" in text
    assert re.search(r"Of 16 answers of all runs \d+ were cut there, and \d+ are empty", text)
    # The same policy has been measured without a reward model.
    np.testing.assert_array_equal(
        run.figures.margins, RunResult.load(run_file(world, "attention", "0.1", 1)).figures.margins
    )


def test_weights_of_other_pairs_are_refused(world: Path, done: Comparison, tmp_path: Path) -> None:
    rows = (world / "pairs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "pairs.jsonl").write_text(
        "".join(rows[:-4]) + json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"})
    )
    config = settings(world, out=str(tmp_path / "out"), weights=str(attention(world)))
    with pytest.raises(UsageError, match="are they|are .* of the same pairs"):
        compare(CompareConfig(**config | {"dataset": str(tmp_path / "pairs.jsonl")}))


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"source": "magic"}, "--source magic is not known"),
        ({"source": "position", "source_options": "gamma=2"}, "gamma must be above 0 and at most 1"),
    ],
)
def test_sources_are_looked_at_before_the_first_is_made(
    world: Path, tmp_path: Path, arm: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        compare(CompareConfig(**settings(world, out=str(tmp_path / "out"), arms={"attention": {}, "other": arm})))
    assert not list((tmp_path / "out" / "caches").iterdir())


def test_a_folder_of_something_else_is_left_alone(world: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds no comparison"):
        compare(CompareConfig(**settings(world, out=str(tmp_path))))


def test_the_command_prints_the_result_and_its_files(
    world: Path, done: Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    file = tmp_path / "compare.yaml"
    content = {k: list(v) if isinstance(v, tuple) else v for k, v in settings(world).items()}
    file.write_text(yaml.safe_dump(content))
    assert cli.main(["compare", str(file)]) == 0
    out, err = capsys.readouterr()
    assert "attention, at equal KL" in out
    assert str(world / "comparison" / "comparison.md") in out
    assert "0 of 6 runs to do" in err
    text = (world / "comparison" / "comparison.md").read_text()
    assert text.count("| even | 0.1 |") == 2  # where it stands, and its difference
    assert "+0.00 [+0.00, +0.00]" in text
    assert cli.main(["compare", str(tmp_path / "absent.yaml")]) == 2
    assert capsys.readouterr().err.strip().endswith("absent.yaml: no such file")
