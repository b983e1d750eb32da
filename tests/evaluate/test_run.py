"""`twdpo eval` on finished runs: the run's own held-out pairs and figures again, overlap said, files, win rates."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fixtures.tiny_models import save_reward_model, save_tiny, tiny_model, tiny_tokenizer
from tests.pipeline.train.conftest import World
from twdpo.cli import main
from twdpo.errors import DataError, MissingRows, ModelError, UsageError
from twdpo.evaluate import EvalConfig, evaluate
from twdpo.evaluate.against import read_evaluation
from twdpo.evaluate.generation import Answer, GenerationSettings, answer_all
from twdpo.evaluate.heldout import PairFigures, logps_of, measure
from twdpo.evaluate.result import EvalResult, RewardResult
from twdpo.evaluate.reward import Answers, RewardModel, win_rates
from twdpo.evaluate.statistics import Bootstrap
from twdpo.evaluate.trained import run_of
from twdpo.pipeline.models import load_model
from twdpo.pipeline.train import TrainResult, train
from twdpo.pipeline.train.data import Example
from twdpo.pipeline.train.layouts import Logps
from twdpo.pipeline.train.render import Renderer
from twdpo.preferences import Message, Pair, load, resolve

QUICK: dict[str, Any] = {"device": "cpu", "resamples": 100}


def run_eval(model: Path | str, **changes: Any) -> EvalResult:
    return evaluate(EvalConfig(model=str(model), **(QUICK | changes)))


@pytest.fixture(autouse=True, scope="module")
def no_pictures() -> Iterator[None]:
    """Curves take longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twdpo.pipeline.train.finish.write_curves", lambda *_arguments, **_options: False)
        yield


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, no_pictures: None
) -> tuple[World, TrainResult]:
    """A run that nothing changes any more, and its world."""
    world = World(folder=tmp_path_factory.mktemp("finished"), model=tiny_folder)
    world.annotate(world.write_pairs(60))
    return world, train_briefly(world, uncovered="one")


def train_briefly(world: World, **changes: Any) -> TrainResult:
    """A run of a second, in the folder `trained` unless told otherwise."""
    settings: dict[str, Any] = {"max_steps": 2, "save_every": 0, "eval_every": 0}
    return train(world.config(**(settings | changes)))


@pytest.mark.parametrize("streaming", [False, True], ids=["resident", "streamed"])
def test_the_runs_own_pairs_and_figures(finished: tuple[World, TrainResult], streaming: bool, tmp_path: Path) -> None:
    """Nothing given: what the run wrote of its last evaluation comes out again."""
    world, done = finished
    if streaming:
        done = train_briefly(world, streaming=True, out=str(tmp_path / "streamed"))
    found = run_eval(done.out)
    assert len(found.figures) == done.heldout == 8
    metrics = {name: estimate.value for name, estimate in found.metrics.items()}
    for name, logged in (
        ("reward_margin", "rewards/margins"),
        ("weighted_reward_margin", "rewards/weighted_margins"),
        ("accuracy", "rewards/accuracies"),
        ("weighted_accuracy", "rewards/weighted_accuracies"),
    ):
        assert metrics[name] == pytest.approx(done.after[f"eval_{logged}"], rel=1e-3, abs=1e-5), name
    assert metrics["margin"] == pytest.approx(metrics["reward_margin"] / 0.1)
    assert metrics["kl_per_token"] > 0.0
    assert found.figures.chosen_characters is not None
    assert (found.trained_pairs, found.trained_prompts) == (0, 0)
    assert found.rows()["trained on"] == "none of them"


def test_what_is_written_can_be_compared_with(finished: tuple[World, TrainResult], tmp_path: Path) -> None:
    """eval.json lies beside the model, holds every pair, and changes neither the model nor what it is known by."""
    world, first = finished
    second = train_briefly(world, out=str(tmp_path / "second"), loss="simpo", beta=2.0, uncovered="one")
    identity = load_model(str(first.out), device="cpu").revision
    here = run_eval(first.out)
    assert load_model(str(first.out), device="cpu").revision == identity
    written = json.loads((first.out / "eval.json").read_text("utf-8"))
    assert written["metrics"]["margin"]["value"] == here.metrics["margin"].value
    assert written["per_pair"]["hashes"] == list(here.figures.hashes)
    other = read_evaluation(str(first.out))
    assert (other.figures.plain(), other.beta) == (here.figures.plain(), 0.1)
    there = run_eval(second.out, against=str(first.out))
    expected = there.metrics["margin"].value - here.metrics["margin"].value
    assert there.differences["margin"].value == pytest.approx(expected, abs=1e-9)
    assert there.beta is None  # SimPO's is no factor of ratios
    assert "reward_margin" in here.metrics
    assert "reward_margin" not in there.metrics
    assert any(name.startswith("difference: ") for name in there.rows())
    assert "weighted_margin" in there.differences
    assert there.unlike == {}
    with pytest.raises(UsageError, match="made on other pairs"):
        run_eval(second.out, limit=3, against=str(first.out))


def test_only_what_can_be_compared_is(
    finished: tuple[World, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another reference and another reading of weights are named; other tokens are refused before a forward pass."""
    world, done = finished
    before, other = str(tmp_path / "before.json"), str(save_tiny(tmp_path / "other", seed=5))
    run_eval(done.out, out=before)
    found = run_eval(done.out, against=before, reference=other, dtype="bfloat16", sink_fix=False, out=before + ".2")
    written = json.loads(Path(before + ".2").read_text("utf-8"))
    assert written["unlike"]["reference"] == {"there": str(world.model), "here": other}
    assert written["unlike"].keys() == {"reference", "dtype", "weight_rules"}
    assert (written["weight_rules"]["sink_fix"], written["weight_rules"]["uncovered"]) == (False, "one")
    assert {"weighted_margin", "margin"} <= found.metrics.keys()
    assert "margin" in found.differences
    assert not any(name.startswith("weighted") for name in found.differences)
    rows = found.rows()
    assert rows["another dtype"] == "float32 there, bfloat16 here"
    assert "sink_fix True" in rows["another weighting, so no weighted differences"]
    monkeypatch.setattr("twdpo.evaluate.run.measure", lambda *_arguments, **_options: 1 / 0)
    with pytest.raises(UsageError, match="other tokens of the same pairs: cut at --max-length 256, these at 40; eval"):
        run_eval(done.out, against=before, max_length=40)


def test_pairs_that_just_fit_are_not_cut(finished: tuple[World, TrainResult], tmp_path: Path) -> None:
    world, done = finished
    renderer = Renderer(tiny_tokenizer(), max_length=1000)
    rendered = [renderer.render(pair) for pair in load(resolve(str(world.pairs))) if isinstance(pair, Pair)]
    lengths = [max(len(pair.chosen.ids), len(pair.rejected.ids)) for pair in rendered]
    given: dict[str, Any] = {"dataset": str(world.pairs), "kl": False, "out": str(tmp_path / "e.json")}
    for length in (max(lengths), max(lengths) - 1):
        found = run_eval(done.out, max_length=length, **given)
        over = sum(one > length for one in lengths)
        assert found.truncated == over
        assert ("cut to the maximal length" in found.rows()["pairs"]) == (over > 0)


def test_log_probs_that_are_no_numbers_end_it(
    finished: tuple[World, TrainResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one token or of all, of policy or reference: one line with the reason, exit code 1, and no file."""
    world, done = finished
    out = tmp_path / "e.json"
    common = ["--dataset", str(world.pairs), "--limit", "5", "--device", "cpu", "--out", str(out)]

    def error(policy: Path, reference: Path, *more: str) -> str:
        assert main(["eval", str(policy), "--reference", str(reference), *common, *more]) == 1
        return capsys.readouterr().err.splitlines()[-1]

    broken = save_broken(tmp_path / "broken", "get_input_embeddings", tiny_tokenizer().convert_tokens_to_ids("What"))
    message = f"twdpo: log-probs of 5 pairs are not numbers; check the weights of {broken}"
    assert error(broken, world.model, "--no-kl") == message
    assert error(done.out, broken, "--dtype", "bfloat16") == f"{message}, or try --dtype float32"
    lost = save_broken(tmp_path / "lost", "get_output_embeddings", 7)
    assert error(lost, world.model) == "twdpo: the logits of this LlamaForCausalLM are not numbers; check its weights"
    assert not out.exists()


def test_a_kl_that_is_not_finite_ends_it(
    finished: tuple[World, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where one of the models gives a token no probability at all."""
    _, done = finished

    def measured(*arguments: Any, **options: Any) -> PairFigures:
        figures = measure(*arguments, **options)
        return replace(figures, rejected_kl=np.where(np.arange(len(figures)) < 2, np.inf, figures.rejected_kl))

    monkeypatch.setattr("twdpo.evaluate.run.measure", measured)
    with pytest.raises(ModelError, match="the KL of 2 pairs is not finite, .*; --no-kl leaves it out"):
        run_eval(done.out, out=str(tmp_path / "e.json"))


def save_broken(folder: Path, embeddings: str, token: int) -> Path:
    """A tiny model with a weight of one token that is not a number."""
    model = tiny_model()
    with torch.no_grad():
        getattr(model, embeddings)().weight[token, 0] = torch.nan
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_pairs_that_were_trained_on_are_counted(finished: tuple[World, TrainResult], tmp_path: Path) -> None:
    """A data set of the run's own 60 pairs, one new answer to an old prompt, and one pair of its own."""
    world, done = finished
    rows = [json.loads(line) for line in world.pairs.read_text("utf-8").splitlines()]
    more = [rows[0] | {"rejected": "Who knows?"}, {"prompt": "New?", "chosen": "Yes, it is.", "rejected": "No."}]
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows + more), "utf-8")
    found = run_eval(done.out, dataset=str(path))
    heldout = set(run_eval(done.out).figures.hashes)
    assert found.trained_pairs == 60 - len(heldout)
    assert found.trained_prompts == 1 - (rows[0]["prompt"] in _prompts(done, found))
    assert "OF THESE PAIRS WERE TRAINED ON" in found.rows()["trained on"]
    assert found.weights is None
    assert not any(name.startswith("weighted") for name in found.metrics)
    with pytest.raises(MissingRows, match="2 of 62 pairs have no weights"):
        run_eval(done.out, dataset=str(path), weights=str(world.weights))


@pytest.mark.parametrize("streaming", [False, True], ids=["resident", "streamed"])
def test_prompts_of_a_named_split_may_have_been_trained_on(empty_world: World, streaming: bool) -> None:
    """Of the split's five pairs one stands in the other split, too, and is left out there; two share its prompts."""
    world, folder = empty_world, empty_world.folder / "splits"
    folder.mkdir()
    rows = [json.loads(line) for line in world.write_pairs(20).read_text("utf-8").splitlines()]
    apart = [rows[18], *({**rows[i], "rejected": "Who knows?"} for i in (3, 4)), rows[19] | {"chosen": "38."}]
    apart.append({"prompt": "New?", "chosen": "Yes, it is.", "rejected": "No."})
    for file, content in (
        (folder / "train.jsonl", rows[:19]),
        (folder / "test.jsonl", apart),
        (world.pairs, rows + apart[1:]),
    ):
        file.write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
    world.annotate(world.pairs)
    done = train_briefly(world, dataset=str(folder), split="train", eval_split="test", streaming=streaming)
    found = run_eval(done.out)
    assert (len(found.figures), found.trained_pairs, found.trained_prompts) == (5, 0, 2)
    assert found.rows()["trained on"] == "none of them, but 2 have the prompt of a pair that was"
    assert run_eval(done.out, limit=2).trained_prompts == 1


def _prompts(done: TrainResult, found: EvalResult) -> set[str]:
    """Prompts that the run held out, by their places in the data set."""
    heldout = set(run_eval(done.out).figures.hashes)
    return {f"What is {i} plus {i}?" for i, key in enumerate(found.figures.hashes[:60]) if key in heldout}


def test_weights_of_a_named_data_set_are_read_as_the_run_did(finished: tuple[World, TrainResult]) -> None:
    """Which gave uncovered tokens the weight 1; with even weights all tokens have it then."""
    world, done = finished
    given: dict[str, Any] = {"dataset": str(world.pairs), "weights": str(world.weights), "limit": 4}
    even = run_eval(done.out, uniform_mix=1.0, **given)
    assert even.figures.weighted_margins == pytest.approx(even.figures.margins)
    for changes in ({}, {"uniform_mix": 1.0, "uncovered": "zero"}):
        other = run_eval(done.out, **given, **changes)
        assert other.figures.weighted_margins != pytest.approx(other.figures.margins)


def test_stored_reference_log_probs_do(
    finished: tuple[World, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without KL nothing is computed of the reference that is stored; what is not is added; no store is needed."""
    world, done = finished
    exact = run_eval(done.out)
    computed: list[int] = []

    def counted(model: Any, examples: Sequence[Example], **options: Any) -> dict[str, Logps]:
        computed.append(len(examples))
        return logps_of(model, examples, **options)

    monkeypatch.setattr("twdpo.evaluate.run.logps_of", counted)
    given: dict[str, Any] = {"kl": False, "out": str(tmp_path / "e.json")}
    found = run_eval(done.out, **given)
    np.testing.assert_allclose(found.figures.margins, exact.figures.margins, atol=1e-3)
    assert found.figures.kl is None
    store = {"reference_cache": str(tmp_path / "logps")}
    first = run_eval(done.out, **given, **store, limit=3)
    more = run_eval(done.out, **given, **store)
    again = run_eval(done.out, **given, **store)
    assert computed == [0, 3, 5, 0]
    np.testing.assert_allclose(first.figures.margins, exact.figures.margins[:3], atol=1e-3)
    for one in (more, again):
        np.testing.assert_allclose(one.figures.margins, exact.figures.margins, atol=1e-3)
    named: dict[str, Any] = {"reference": str(world.model), "dataset": str(world.pairs), "limit": 4}
    without = run_eval(save_tiny(tmp_path / "other", seed=5), **given, **named)  # not a model of a run
    assert computed[4:] == [4]
    whole = run_eval(tmp_path / "other", **(given | named | {"kl": True}))
    np.testing.assert_allclose(without.figures.margins, whole.figures.margins, atol=1e-3)


@pytest.mark.slow
def test_an_adapter_is_measured_from_its_base(world: World) -> None:
    pytest.importorskip("peft")
    done = train_briefly(world, lora_rank=2)
    found = run_eval(done.out)
    assert found.metrics["weighted_reward_margin"].value == pytest.approx(
        done.after["eval_rewards/weighted_margins"], rel=1e-3, abs=1e-5
    )
    (done.out / "train.yaml").unlink()
    again = run_eval(done.out, dataset=str(world.pairs), limit=3)
    assert again.reference == str(world.model)
    assert (again.trained_pairs, again.beta) == (None, None)
    assert again.rows()["trained on"] == "not known"


def test_the_best_model_is_of_the_same_run(finished: tuple[World, TrainResult]) -> None:
    """`best/` has no train.yaml of its own."""
    _, done = finished
    here, best = run_of(str(done.out)), run_of(str(done.out / "best"))
    assert here is not None
    assert best is not None
    assert best.config == here.config
    assert run_of(str(done.out / "checkpoints")) is None


def test_what_is_missing_is_said(world: World, tmp_path: Path) -> None:
    model = str(world.model)
    with pytest.raises(UsageError, match="pass --reference"):
        run_eval(model)
    with pytest.raises(UsageError, match="pass --dataset"):
        run_eval(model, reference=model)
    with pytest.raises(UsageError, match="no such evaluation"):
        run_eval(model, reference=model, against=str(tmp_path / "none"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match="no evaluation of this twdpo eval"):
        run_eval(model, reference=model, against=str(tmp_path / "bad.json"))
    other = save_tiny(tmp_path / "other", vocab_size=420)
    with pytest.raises(ModelError, match="another vocabulary"):
        run_eval(model, reference=str(other), dataset=str(world.pairs))
    with pytest.raises(UsageError, match="more than the policy's context"):
        run_eval(model, reference=model, dataset=str(world.pairs), max_length=4096)
    done = train_briefly(world, eval_split="none")
    with pytest.raises(UsageError, match="held out no pairs"):
        run_eval(done.out)
    world.weights.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="pass --weights"):
        run_eval(done.out)
    found = run_eval(done.out, dataset=str(world.pairs), limit=2)
    assert found.rows()["trained on"] == "not known"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "float16"}, "--dtype float16 is not known"),
        ({"limit": 0}, "--limit 0 is too small"),
        ({"level": 1.0}, "--level 1.0 is outside"),
        ({"resamples": 5}, "--resamples 5 is too small"),
        ({"beta": -1.0}, "--beta -1.0 must be"),
        ({"uniform_mix": 2.0}, "--uniform-mix 2.0 is outside"),
        ({"split": "test"}, "--split needs --dataset"),
        ({"temperature": -1.0}, "--temperature -1.0 is too small"),
        ({"uncovered": "two"}, "--uncovered two is not known"),
        ({"reference_cache": "logps"}, "--reference-cache needs --no-kl"),
        ({"temperature": 0.0}, "--temperature needs --reward-model"),
        ({"max_new_tokens": 512}, "--max-new-tokens needs --reward-model"),
        ({"dataset": "d", "attn_source": "last"}, "--attn-source needs --weights"),
        ({"dataset": "d", "sink_fix": False}, "--sink-fix needs --weights"),
        ({"dataset": "d", "uncovered": "zero"}, "--uncovered needs --weights"),
        ({"dataset": "d", "uniform_mix": 0.0}, "--uniform-mix needs --weights"),
        ({"reference_revision": "main"}, "--reference-revision needs --reference"),
    ],
)
def test_settings_that_are_out_of_range_or_would_be_ignored_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EvalConfig(model="m", **given)


def test_settings_that_count_are_taken() -> None:
    rules: dict[str, Any] = {"attn_source": "last", "sink_fix": False, "uncovered": "zero", "uniform_mix": 0.0}
    EvalConfig(model="m", **rules)
    EvalConfig(model="m", dataset="d", split="test", weights="w", **rules)
    EvalConfig(model="m", reference="r", reference_revision="main", reference_cache="logps", kl=False)
    EvalConfig(model="m", reward_model="rm", temperature=0.0, max_new_tokens=512)


def test_the_command_prints_a_table_or_json(
    finished: tuple[World, TrainResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, done = finished
    command = ["eval", str(done.out), "--device", "cpu", "--resamples", "100", "--limit", "3", "--out"]
    assert main([*command, str(tmp_path / "e.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "e.json").read_text("utf-8"))
    assert main([*command, str(tmp_path), "--no-kl"]) == 2
    assert "is a folder; name a file in it" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "new" / "e.json"), "--no-kl"]) == 0
    assert (tmp_path / "new" / "e.json").is_file()
    shown = capsys.readouterr().out
    assert "accuracy, length-controlled" in shown
    assert "KL" not in shown


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "MODEL is missing"),
        (["nowhere"], 2, "what nowhere was trained from is not known (no such folder here); pass --reference"),
        (["m", "--limit", "many"], 2, "Invalid value for '--limit'"),
        (["m", "--split", "test"], 2, "--split needs --dataset"),
        (["m", "--reference", "m", "--against", "nowhere.json"], 2, "--against nowhere.json: no such evaluation"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def ask(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def test_rewards_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    """Each is what the model gives for the conversation alone; what spells a special token is text."""
    judge = RewardModel.load(str(save_reward_model(tmp_path / "rm")), device="cpu")
    prompts, answers = [ask("Say it."), ask("What is it, and why is it so?"), ask("Hm?")], ["Yes.", "<|im_end|>", ""]
    found = judge.score(prompts, answers)
    tokenizer = tiny_tokenizer()
    for i in (0, 2):
        text = f"<|im_start|>user\n{prompts[i][0].content}<|im_end|>\n<|im_start|>assistant\n{answers[i]}<|im_end|>\n"
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            assert found[i] == pytest.approx(judge.model(input_ids=ids).logits.item(), abs=1e-5)
    assert judge.score(prompts[1:2], answers[1:2])[0] == pytest.approx(found[1], abs=1e-5)
    assert judge.score(prompts[1:2], ["im_end"])[0] != pytest.approx(found[1], abs=1e-5)
    with torch.no_grad():
        judge.model.score.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="rm are not numbers"):
        judge.score(prompts, answers)


def test_what_is_no_reward_model_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="gives 3 numbers"):
        RewardModel.load(str(save_reward_model(tmp_path / "three", 3)), device="cpu")
    with pytest.raises(ModelError, match="no reward model"):
        RewardModel.load(str(tiny_folder), device="cpu")


def test_a_reward_model_that_cannot_score_is_known_first(
    finished: tuple[World, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name without a model, and a template that refuses the prompts: nothing is measured, nothing is written."""
    _, done = finished
    monkeypatch.setattr("twdpo.evaluate.run.measure", lambda *_arguments, **_options: 1 / 0)
    given = {"max_new_tokens": 5, "limit": 4, "out": str(tmp_path / "e.json")}
    with pytest.raises(ModelError, match="no-such-model"):
        run_eval(done.out, reward_model=str(tmp_path / "no-such-model"), **given)
    judge = save_reward_model(tmp_path / "rm")
    tiny_tokenizer("{{ raise_exception('no users here\nat all') }}").save_pretrained(judge)
    with pytest.raises(ModelError, match="the reward model's chat template refuses a conversation: no users here$"):
        run_eval(done.out, reward_model=str(judge), **given)
    assert not (tmp_path / "e.json").exists()


def test_win_rates_by_hand() -> None:
    """Won, lost, equal; the first answer is longer than the reference's, the second shorter, the third as long."""
    policy = Answers(texts=["long one", "s", "abc"], rewards=np.array([1.0, -2.0, 0.5]), cut=[False] * 3)
    reference = Answers(texts=["short", "longer", "xyz"], rewards=np.array([0.0, 0.0, 0.5]), cut=[False] * 3)
    found = {name: e.value for name, e in win_rates(policy, reference, Bootstrap(resamples=100)).items()}
    assert found["win_rate"] == pytest.approx(0.5)
    assert found["length_controlled_win_rate"] == pytest.approx((1.25 / 1.5 + 0.25 / 1.5) / 2)
    assert found["reward_difference"] == pytest.approx((1 - 2 + 0) / 3)
    assert (found["characters"], found["reference_characters"]) == pytest.approx((4.0, 14 / 3))


def test_win_rates_from_end_to_end(finished: tuple[World, TrainResult], tmp_path: Path) -> None:
    """The answers are the policy's and the reference's own, of freshly loaded models; cut ones are counted and said."""
    world, done = finished
    judge = save_reward_model(tmp_path / "rm")
    out = tmp_path / "e.json"
    found = run_eval(done.out, reward_model=str(judge), max_new_tokens=5, limit=4, out=str(out))
    assert found.rewards is not None
    prompts = [[Message(**turn) for turn in row["prompt"]] for row in found.rewards.answers]
    assert len(prompts) == 4
    expected = {
        name: answer_all(load_model(str(model), device="cpu"), prompts, GenerationSettings(max_new_tokens=5))
        for name, model in (("answer", done.out), ("reference_answer", world.model))
    }
    for name, answers in expected.items():
        assert [row[name] for row in found.rewards.answers] == [answer.text for answer in answers]
    assert expected["answer"] != expected["reference_answer"]
    cut, theirs = (sum(answer.cut for answer in answers) for answers in expected.values())
    empty = [sum(not answer.text for answer in answers) for answers in expected.values()]
    assert cut > 0
    assert found.rows()["answers cut at the most tokens"] == f"{cut} of 4, and {theirs} of the reference's"
    assert {"win_rate", "reward_difference", "kl_per_token_sampled"} <= found.rewards.metrics.keys()
    written = json.loads(out.read_text("utf-8"))["reward_model"]
    assert written["model"] == str(judge)
    assert written["cut"] == {"policy": cut, "reference": theirs}
    assert written["empty"] == dict(zip(("policy", "reference"), empty, strict=True))
    assert [row["cut"] for row in written["answers"]] == [answer.cut for answer in expected["answer"]]
    assert "win rate" in found.rows()


@pytest.mark.parametrize("whose", ["policy", "reference"])
def test_only_own_empty_answers_are_left_out_of_the_kl(
    finished: tuple[World, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """Of three prompts one gets an empty answer from one of the two."""
    _, done = finished
    given = iter([["It is 6."] * 3, ["Perhaps."] * 3])

    def answers(*_arguments: Any) -> list[Answer]:
        texts = next(given)
        if (texts[0] == "It is 6.") == (whose == "policy"):
            texts[1] = ""
        return [Answer(text=text) for text in texts]

    monkeypatch.setattr("twdpo.evaluate.run.answer_all", answers)
    judge = str(save_reward_model(tmp_path / "rm"))
    found = run_eval(done.out, reward_model=judge, limit=3, out=str(tmp_path / "e.json"))
    assert found.rewards is not None
    assert found.rewards.metrics["kl_per_token_sampled"].count == (2 if whose == "policy" else 3)
    assert found.rows()["KL per token of own answers, nats"].endswith("over 2 of 3 answers") == (whose == "policy")


def test_cut_and_empty_answers_are_told_where_there_are_any() -> None:
    about: dict[str, Any] = {"model": "rm", "metrics": {}, "answers": [{}] * 9}
    assert RewardResult(**about, cut=(0, 0), empty=(0, 0)).rows() == {"reward model": "rm"}
    assert RewardResult(**about, cut=(0, 2), empty=(1, 0)).rows() == {
        "reward model": "rm",
        "answers cut at the most tokens": "0 of 9, and 2 of the reference's",
        "answers empty": "1 of 9, and 0 of the reference's",
    }
