"""A comparison's file: what it means, and what is wrong with it in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from twdpo.errors import UsageError
from twdpo.evaluate.compare import load_config
from twdpo.evaluate.compare.arms import folder_name

GOOD = "dataset: pairs.jsonl\narms: {attention: {}}\n"


def write(folder: Path, text: str) -> str:
    path = folder / "compare.yaml"
    path.write_text(text)
    return str(path)


def test_dpo_is_added_and_stands_first(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert [(arm.name, arm.source, arm.uncovered) for arm in config.expanded] == [
        ("dpo", "uniform", "one"),
        ("attention", "attention", "zero"),
    ]


def test_lists_are_multiplied_out(tmp_path: Path) -> None:
    text = (
        "dataset: d\nbaseline: a-uncovered=one-sink_fix=True\n"
        "arms: {a: {uncovered: [zero, one], sink-fix: [true, false], attn_source: mean}}\n"
    )
    arms = load_config(write(tmp_path, text)).expanded
    assert [(arm.uncovered, arm.sink_fix, arm.attn_source) for arm in arms] == [
        ("one", True, "mean"),
        ("zero", True, "mean"),
        ("zero", False, "mean"),
        ("one", False, "mean"),
    ]


def test_what_differs_in_its_end_has_a_folder_of_its_own() -> None:
    """Instructions are longer than a folder's name may be."""
    one, two = (folder_name(f"tis-positive={'well ' * 80},mu={mu}") for mu in (1, 2))
    assert one != two
    assert max(map(len, (one, two))) < 120
    assert folder_name("position-gamma=0.98") == "position-gamma=0.98"
    assert folder_name("a b") != folder_name("a/b")


def test_an_even_arm_is_even_on_the_policys_own_tokens(tmp_path: Path) -> None:
    """Whatever tokens the judge has: stored ones alone would be spread over the policy's."""
    config = load_config(write(tmp_path, GOOD + "judge: another/model\n"))
    baseline, attention = (config.train_config(arm, weights="w", out="o").uniform_mix for arm in config.expanded)
    assert (baseline, attention) == (1.0, 0.0)


def test_an_arms_own_betas_are_one_setting(tmp_path: Path) -> None:
    text = "dataset: d\narms: {simpo: {loss: simpo, betas: [2.5, 1e0], uncovered: [zero, one]}}\n"
    config = load_config(write(tmp_path, text))
    assert [(arm.name, config.betas_of(arm)) for arm in config.expanded] == [
        ("dpo", (0.01, 0.03, 0.1, 0.3)),
        ("simpo-uncovered=zero", (1.0, 2.5)),
        ("simpo-uncovered=one", (1.0, 2.5)),
    ]


def test_numbers_as_yaml_reads_them(tmp_path: Path) -> None:
    text = GOOD + "betas: [1e-1, 0.01, 1]\ntrain: {learning_rate: 1e-5, eval_split: 20}\n"
    config = load_config(write(tmp_path, text), out="elsewhere")
    assert config.betas == (0.01, 0.1, 1)
    training = config.train_config(config.expanded[1], weights="w", out="o", beta=0.1, seed=5)
    assert (training.learning_rate, training.eval_split, training.seed, training.split_seed) == (1e-5, "20", 5, 0)
    assert config.out == "elsewhere"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "expected dataset:, arms:"),
        ("arms: {attention: {}}\n", "dataset is missing"),
        ("dataset: d\n", "arms is missing"),
        ("dataset: d\narms: [attention]\n", "arms must be a mapping such as {name: value}"),
        ("dataset: d\narms: {attention: zero}\n", "attention must be settings such as"),
        ("dataset: d\narms: {a/b: {}}\n", "'a/b' names a folder"),
        ("dataset: d\narms: {a: {uncoverd: one}}\n", "did you mean uncovered?"),
        ("dataset: d\narms: {a: {uncovered: maybe}}\n", "--uncovered maybe is not known"),
        ("dataset: d\narms: {dpo: {source: uniform}}\n", "nothing to compare"),
        (GOOD + "baseline: sft\n", "baseline: sft is no arm; there are attention"),
        (GOOD + "betas: []\n", "betas is empty"),
        (GOOD + "betas: [0.1, 0]\n", "must be numbers above 0"),
        (GOOD + "betas: [a]\n", "must be numbers above 0"),
        (GOOD + "betas: [0.1, 0.1]\n", "names one twice"),
        ("dataset: d\narms: {a: {betas: 0.1}}\n", "arms: a: betas must be a list such as [1, 2], not 0.1"),
        ("dataset: d\narms: {a: {betas: []}}\n", "arms: a: betas is empty"),
        ("dataset: d\narms: {a: {betas: [0.1, 0.1]}}\n", "arms: a: betas: [0.1, 0.1] names one twice"),
        ("dataset: d\narms: {a: {betas: [true]}}\n", "must be numbers above 0"),
        ("dataset: d\narms: {a: {simpo_gamma: 1}}\n", "--simpo-gamma needs --loss simpo"),
        (GOOD + "train: {simpo_gamma: 1}\n", "train: simpo_gamma is decided by the comparison; set it with an arm"),
        (GOOD + "train: {eval_split: test_prefs}\n", "train: eval_split: test_prefs is neither a share nor a count"),
        (GOOD + "train: {eval_split: none}\n", "train: eval_split: none is neither a share nor a count"),
        ("dataset: d\narms: {..: {}}\n", "'..' names a folder"),
        (GOOD + "seeds: [-1]\n", "must be whole numbers from 0 on"),
        (GOOD + "resamples: 5\n", "the least is 100"),
        (GOOD + "train: {beta: 0.1}\n", "train: beta is decided by the comparison; set it with betas: at the top"),
        (GOOD + "train: {learning_rat: 1}\n", "did you mean learning_rate?"),
        (GOOD + "annotate: {out: x}\n", "annotate: out is decided by the comparison"),
        (GOOD + "annotate: {dtype: int8}\n", "--dtype int8 is not known"),
    ],
)
def test_mistakes_are_one_line_that_names_the_file(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UsageError) as raised:
        load_config(file)
    assert said in str(raised.value)
    assert str(raised.value).startswith(file)
    assert "\n" not in str(raised.value)
