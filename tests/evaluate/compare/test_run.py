"""Comparisons of tiny models from end to end: the same pairs, the same summed weight, gone on with, reported."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.compare.world import PAIRS, attention, run_file, settings
from tests.fixtures.tiny_models import save_reward_model
from twdpo import cli
from twdpo.errors import Interrupted, TwdpoError, UsageError
from twdpo.evaluate.compare import CompareConfig, Comparison, Watch, compare
from twdpo.evaluate.compare.runs import RunResult


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


def test_an_arm_may_have_betas_and_a_loss_of_its_own(world: Path, done: Comparison, tmp_path: Path) -> None:
    config = settings(world, out=str(tmp_path / "out"), weights=str(attention(world)), betas=(0.1,))
    config["arms"] = {"simpo": {"loss": "simpo", "betas": [2.0, 0.1], "simpo_gamma": 0.3}}
    found = compare(CompareConfig(**config))
    assert found.frontier is not None
    assert list(found.frontier.points) == [("dpo", 0.1), ("simpo", 0.1), ("simpo", 2.0)]
    # Its beta is another thing than DPO's: there is nothing to be said of the same one.
    assert list(found.frontier.differences) == []
    assert list(found.frontier.at_equal_kl) == ["simpo"]
    run = RunResult.load(tmp_path / "out" / "runs" / "simpo" / "beta-2" / "seed-1" / "run.json")
    # A weighted mean knows no scale: there is none to be matched.
    assert run.trained_beta == 2.0
    assert "loss simpo" in (tmp_path / "out" / "comparison.md").read_text()


def test_a_run_that_broke_is_named_and_the_others_are_done(world: Path, done: Comparison, tmp_path: Path) -> None:
    config = settings(world, out=str(tmp_path / "out"), weights=str(attention(world)), betas=(0.1,), arms={"a": {}})
    config["arms"]["a"] = {"betas": [1e38, 0.2]}
    with pytest.raises(
        TwdpoError, match=r"^a at beta 1e\+38, seed 1, cannot be done \(.*leave the beta or the arm out"
    ):
        compare(CompareConfig(**config))
    assert len(list((tmp_path / "out").rglob("run.json"))) == 2


def test_pairs_that_came_since_take_part(world: Path, done: Comparison, tmp_path: Path) -> None:
    out, pairs = tmp_path / "out", tmp_path / "pairs.jsonl"
    shutil.copy(world / "pairs.jsonl", pairs)
    config = settings(world, out=str(out), dataset=str(pairs), betas=(0.1,), arms={"position": {"source": "position"}})
    assert compare(CompareConfig(**config)).executed == 2
    with pairs.open("a") as file:
        file.write(json.dumps({"prompt": "What is new?", "chosen": "This one.", "rejected": "Nothing at all."}) + "\n")
    assert compare(CompareConfig(**config)).executed == 2
    content = json.loads((out / "comparison.json").read_text())
    assert content["pairs"] + content["heldout"] == PAIRS + 1
    assert content["skipped"] == {}


def test_a_reward_model_scores_the_policies_own_answers(world: Path, done: Comparison, tmp_path: Path) -> None:
    config = settings(world, out=str(tmp_path / "out"), weights=str(attention(world)), betas=(0.1,))
    config |= {"reward_model": str(save_reward_model(tmp_path / "reward")), "max_new_tokens": 4}
    config["arms"] = {"attention": {}, "shuffled": {"source": "shuffled"}}
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
    assert "## Difference from the controls at equal KL" in text
    assert list(found.frontier.less_controls) == [("attention", "shuffled")]
    assert re.search(r"Of 24 answers of all runs \d+ were cut there, and \d+ are empty", text)
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
