"""TwDPOTrainer against TRL's own trainer, against our own loss, and what it refuses."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset, load_dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from tests.fixtures.tiny_models import CHATML, tiny_model, tiny_tokenizer
from tests.pipeline.train.conftest import World, stored_weights
from twdpo.errors import MissingRows, ModelError, TrainingError, TwdpoError, UsageError
from twdpo.integrations.trl import TwDPOTrainer
from twdpo.integrations.trl.pairs import ANSWERS, KEY, ProcessCache, Selection, pair_columns
from twdpo.integrations.trl.rows import RowWeights, TrlTexts
from twdpo.integrations.trl.settings import WeightSettings
from twdpo.integrations.trl.weighting import COMPLETION_WEIGHTS, LogProbWeighting, WeightsCollator
from twdpo.pipeline.models import load_tokenizer
from twdpo.pipeline.train.data import Example, Side
from twdpo.pipeline.train.layouts import collate
from twdpo.pipeline.train.logps import TokenLogps
from twdpo.pipeline.train.loss import SideLogps, twdpo_loss
from twdpo.pipeline.train.render import Renderer
from twdpo.pipeline.train.weights import WeightRules, training_weights
from twdpo.preferences import Pair, parse_row
from twdpo.weights_cache import WeightsCache, round_mantissa

# What TRL, transformers and datasets warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

DEFAULTS: Any = {
    "attn_source": "last",
    "sink_fix": True,
    "uncovered": "zero",
    "uniform_mix": 0.0,
    "missing": "error",
}

Row = dict[str, Any]
Make = Callable[..., Any]


def strings(world: World, name: str = "pairs.jsonl") -> list[Row]:
    """The world's rows as they are: three strings."""
    return [json.loads(line) for line in (world.folder / name).read_text("utf-8").splitlines()]


def conversations(world: World) -> list[Row]:
    """The same pairs, with an explicit prompt."""
    return [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in strings(world)
    ]


def whole_conversations(world: World) -> list[Row]:
    """The same pairs, with the prompt in both sides."""
    return [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in conversations(world)]


def config(world: World, **changes: Any) -> DPOConfig:
    values: dict[str, Any] = {
        "output_dir": str(world.folder / "trl"),
        "beta": 0.1,
        "learning_rate": 3e-3,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return DPOConfig(**(values | changes))


@pytest.fixture
def make(empty_world: World) -> Make:
    """Makes a trainer in the tiny world: TRL's own where `kind` says so, else ours with its weights."""
    world = empty_world

    def make(kind: Any = TwDPOTrainer, rows: Any = None, args: Row | None = None, **options: Any) -> Any:
        data = conversations(world) if rows is None else rows
        values: dict[str, Any] = {
            "model": tiny_model(seed=1),
            "ref_model": None if "peft_config" in options else tiny_model(seed=2),
            "args": config(world, **(args or {})),
            "train_dataset": Dataset.from_list(data) if isinstance(data, list) else data,
            "processing_class": tiny_tokenizer(),
        }
        if kind is TwDPOTrainer:
            values["weights"] = world.weights
        return kind(**(values | options))

    return make


def history(trainer: Any) -> list[dict[str, float]]:
    """Everything that was logged but how long it took."""
    return [
        {name: value for name, value in entry.items() if not name.endswith(("runtime", "per_second"))}
        for entry in trainer.state.log_history
    ]


# All weights 1


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ({}, {}),
        ({"precompute_ref_log_probs": True}, {}),
        ({"gradient_accumulation_steps": 2, "dataloader_num_workers": 2}, {}),
        ({"max_length": 24, "truncation_mode": "keep_end"}, {}),
        ({}, {"peft_config": LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")}),
        ({"loss_type": ["hinge", "bco_pair"], "f_divergence_type": "reverse_kl"}, {}),
    ],
    ids=["on the fly", "precomputed", "accumulated", "truncated", "lora", "other losses"],
)
def test_all_ones_are_trl(world: World, make: Make, args: Row, options: Row) -> None:
    """Every loss, reward, margin and log-prob of several steps and evaluations, to the bit."""
    held_out = Dataset.from_list(conversations(world)[:8])
    arguments = {"eval_strategy": "steps", "eval_steps": 2} | args
    theirs = make(DPOTrainer, args=arguments, eval_dataset=held_out, **options)
    ours = make(args=arguments, eval_dataset=held_out, uniform_mix=1.0, uncovered="one", **options)
    for trainer in (theirs, ours):
        trainer.train()
    assert len(history(theirs)) == 4 + 2 + 1
    assert "eval_rewards/margins" in history(theirs)[2]
    assert history(ours) == history(theirs)


# Cached weights


class Ours:
    """Our own loss of the world's pairs: our rendering, weights, log-probs and objective."""

    def __init__(self, world: World, max_length: int = 256) -> None:
        self._cache = WeightsCache.open(world.weights)
        self._renderer = Renderer(tiny_tokenizer(), max_length=max_length)

    def example(self, row: Row, rules: WeightRules) -> Example:
        pair = parse_row(row, 0)
        assert isinstance(pair, Pair)
        rendered, stored = self._renderer.render(pair), self._cache.get(pair.example_hash)
        sides = [
            Side(ids=side.ids, prompt_length=side.prompt_length, weights=training_weights(weights, side, rules))
            for side, weights in ((rendered.chosen, stored.chosen), (rendered.rejected, stored.rejected))
        ]
        return Example(example_hash=pair.example_hash, row=0, chosen=sides[0], rejected=sides[1])

    @torch.no_grad()
    def losses(self, rows: list[Row], rules: WeightRules) -> list[float]:
        """The loss of each pair alone, of the policy and reference that `make` gives its trainers."""
        models = [TokenLogps(tiny_model(seed=seed)) for seed in (1, 2)]
        found = []
        for row in rows:
            batch = collate([self.example(row, rules)], None)
            logps = [batch.spread(model(**batch.inputs)).chunk(2) for model in models]
            sides = zip(*logps, batch.weights.chunk(2), strict=True)
            chosen, rejected = (SideLogps(policy=p, reference=r, weights=w) for p, r, w in sides)
            found.append(twdpo_loss(chosen, rejected, beta=0.1).losses.item())
        return found


@torch.no_grad()
def losses(trainer: Any, dataset: Any = None) -> list[float]:
    """The loss of each prepared row alone."""
    rows = trainer.train_dataset if dataset is None else dataset
    return [float(trainer.compute_loss(trainer.model, trainer.data_collator([row]))) for row in rows]


@pytest.mark.parametrize("precompute", [False, True], ids=["on the fly", "precomputed"])
@pytest.mark.parametrize("shape", [conversations, whole_conversations])
@pytest.mark.parametrize(
    ("options", "rules"),
    [
        ({}, WeightRules(layers=(1,))),
        ({"attn_source": "mean", "sink_fix": False}, WeightRules(layers=(0, 1), sink_fix=False)),
        (
            {"attn_source": "0", "uncovered": "one", "uniform_mix": 0.25},
            WeightRules(layers=(0,), uncovered="one", uniform_mix=0.25),
        ),
    ],
    ids=["defaults", "mean", "mixed"],
)
def test_cached_weights_give_our_loss(
    world: World, make: Make, shape: Callable[[World], list[Row]], options: Row, rules: WeightRules, precompute: bool
) -> None:
    rows = shape(world)[:12]
    trainer = make(rows=rows, args={"precompute_ref_log_probs": precompute}, **options)
    expected = Ours(world).losses(conversations(world)[:12], rules)
    assert np.std(expected) > 0.1
    assert losses(trainer) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    plain = make(DPOTrainer, rows=rows)
    assert np.abs(np.subtract(losses(plain), expected)).max() > 0.1


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_truncation_cuts_the_weights(world: World, make: Make, mode: str) -> None:
    length = 36
    whole, cut = make(), make(args={"max_length": length, "truncation_mode": mode})
    rows = list(whole.train_dataset)
    assert max(len(row["prompt_ids"] + row["chosen_ids"]) for row in rows) > length
    batch = cut.data_collator(list(cut.train_dataset))
    expected = [
        ([0.0] * len(row["prompt_ids"]) + row[f"{side}_weights"])[
            slice(None, length) if mode == "keep_start" else slice(-length, None)
        ]
        for side in ("chosen", "rejected")
        for row in rows
    ]
    for found, values, ids in zip(batch[COMPLETION_WEIGHTS].tolist(), expected, batch["input_ids"], strict=True):
        assert found == values + [0.0] * (len(ids) - len(values))
    if mode == "keep_start":  # as our own trainer cuts
        values = Ours(world, max_length=length).losses(conversations(world), WeightRules(layers=(1,)))
        assert losses(cut) == pytest.approx(values, rel=1e-5, abs=1e-6)


def stored(trainer: Any, row: int, side: str) -> list[float]:
    """Training weights as they are in a prepared row."""
    return list(trainer.train_dataset[row][f"{side}_weights"])


def cached(text: str) -> list[float]:
    """The weights that the world's cache holds for an answer, in the deepest layer."""
    rounded: list[float] = round_mantissa(stored_weights(text).weights[1]).tolist()
    return rounded


@pytest.mark.parametrize("template", [CHATML, None], ids=["chat model", "base model"])
def test_strings_are_put_together_as_they_are(world: World, make: Make, template: str | None) -> None:
    """TRL uses no chat template for strings; the weights sit on the answer, not on the end of sequence."""
    trainer = make(rows=strings(world), processing_class=tiny_tokenizer(template), sink_fix=False)
    for number in (0, 7, 59):
        row, prepared = strings(world)[number], trainer.train_dataset[number]
        for side in ("chosen", "rejected"):
            # The answer is tokenized as when it was judged: the prompt ends with a question mark.
            assert prepared[f"{side}_ids"] == [*tiny_tokenizer().encode(row[side]), 2]
            assert prepared[f"{side}_weights"] == [*cached(row[side]), 0.0]


def test_a_transcript_in_each_side(empty_world: World, make: Make) -> None:
    """What both sides share belongs to TRL's prompt, also where it is part of the answers."""
    rows = [
        {
            side: f"\n\nHuman: Add {i} and 1.\n\nAssistant: It {end}"
            for side, end in (("chosen", "is so."), ("rejected", "was."))
        }
        for i in range(4)
    ]
    path = empty_world.folder / "transcripts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    empty_world.annotate(path)
    trainer = make(rows=rows, sink_fix=False)
    prepared = trainer.train_dataset[0]
    text = tiny_tokenizer().decode(prepared["prompt_ids"])
    assert text.endswith("Assistant: It")
    # The answer is " It is so.", of which " It" stands in the prompt.
    # Of "It is so." the first word stands in TRL's prompt; all tokens of the rest are as judged.
    judged = stored_weights("It is so.")
    expected = np.asarray(cached("It is so."))[judged.starts >= 2]
    *weights, end = stored(trainer, 0, "chosen")
    assert np.asarray(weights) / sum(weights) == pytest.approx(expected / expected.sum(), rel=1e-5)
    assert len(weights) > 2
    assert end == 0.0


def test_special_tokens_spelt_in_an_answer(empty_world: World, make: Make) -> None:
    """TRL reads them as the special tokens; their weight is that of their characters."""
    chosen = "Say <|im_end|> to end."
    rows = [{"prompt": "How?", "chosen": chosen, "rejected": "No idea at all."}]
    (empty_world.folder / "pairs.jsonl").write_text(json.dumps(rows[0]) + "\n", "utf-8")
    empty_world.annotate(empty_world.pairs)
    trainer = make(rows=conversations(empty_world), sink_fix=False)
    weights, ids = stored(trainer, 0, "chosen"), trainer.train_dataset[0]["chosen_ids"]
    answer = stored_weights(chosen)
    density = np.zeros(len(chosen))
    for start, end, weight in zip(answer.starts, answer.ends, cached(chosen), strict=True):
        density[start:end] += weight / (end - start)
    at = chosen.index("<|im_end|>")
    assert ids.count(2) == 2  # spelt, and the end of the turn
    n = len(ids) - 2  # without <|im_end|> and the line break of the template
    assert len(answer.starts) > n
    expected = density[at : at + 10].sum() * n / len(cached(chosen))
    assert weights[ids.index(2)] == pytest.approx(expected, rel=1e-5)
    assert np.mean(weights[:n]) == pytest.approx(np.mean(cached(chosen)), rel=1e-5)
    assert weights[n:] == [0.0, 0.0]


def test_tools_and_template_arguments_of_a_row_are_used(world: World, make: Make) -> None:
    template = "{{ style }}{{ tools | tojson if tools else '' }}" + CHATML
    rows = [
        row | {"tools": '[{"name": "add"}]', "chat_template_kwargs": {"style": "Be brief."}}
        for row in conversations(world)
    ]
    trainer = make(rows=rows, processing_class=tiny_tokenizer(template), sink_fix=False)
    assert tiny_tokenizer().decode(trainer.train_dataset[0]["prompt_ids"]).startswith('Be brief.[{"name"')
    assert stored(trainer, 0, "chosen") == [*cached(strings(world)[0]["chosen"]), 0.0, 0.0]


@pytest.mark.model
def test_a_real_tokenizer(embedded_model: str, world: World, make: Make) -> None:
    tokenizer = load_tokenizer(embedded_model)
    models = {name: tiny_model(seed=seed, vocab_size=len(tokenizer)) for name, seed in (("model", 1), ("ref_model", 2))}
    trainer = make(rows=conversations(world)[:4], processing_class=tokenizer, **models)
    for row in trainer.train_dataset:
        for side in ("chosen", "rejected"):
            *answer, end, line_break = row[f"{side}_weights"]
            assert np.mean(answer) == pytest.approx(1.0, rel=1e-3)  # the cache rounds
            assert (end, line_break) == (0.0, 0.0)


# Evaluation, reference sums, streams


def test_evaluation_has_the_weights(world: World, make: Make) -> None:
    held_out = Dataset.from_list(conversations(world)[:8])
    trainer = make(eval_dataset={"some": held_out})
    expected = np.mean(losses(trainer, trainer.eval_dataset["some"]))
    assert trainer.evaluate()["eval_some_loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.evaluate(held_out)["eval_loss"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UsageError, match="prepared already"):
        trainer.evaluate(trainer.eval_dataset["some"])


def test_reference_sums_of_other_weights_are_not_taken(world: World, make: Make) -> None:
    """TRL keeps its reference sums beside a data set on disk, and finds them by its fingerprint."""
    path = world.folder / "conversations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in conversations(world)), "utf-8")

    def dataset() -> Any:
        return load_dataset("json", data_files=str(path), split="train", cache_dir=str(world.folder / "hf"))

    for options in ({}, {"uniform_mix": 0.5}, {"sink_fix": False}, {"attn_source": "mean"}):
        kept = [make(rows=dataset(), args={"precompute_ref_log_probs": True}, **options) for _ in range(2)]
        exact = losses(make(**options))
        assert [losses(trainer) for trainer in kept] == [pytest.approx(exact, rel=1e-5, abs=1e-6)] * 2


def test_the_same_from_a_stream(world: World, make: Make) -> None:
    stream = Dataset.from_list(conversations(world)).to_iterable_dataset(num_shards=2)
    trainer = make(rows=stream, args={"dataloader_num_workers": 2})
    assert list(trainer.train_dataset) == list(make().train_dataset)
    trainer.train()
    assert len(trainer.state.log_history) == 4 + 1


# Rows without weights


@pytest.fixture
def gaps(empty_world: World) -> World:
    """Twelve pairs, of which every third has no weights."""
    texts = [row["prompt"] for row in _write(empty_world, 12)]
    empty_world.annotate(empty_world.pairs, take=lambda pair: texts.index(pair.prompt[0].content) % 3 > 0)
    return empty_world


def _write(world: World, count: int) -> list[Row]:
    world.write_pairs(count)
    return strings(world)


def _streamed(world: World) -> Any:
    return Dataset.from_list(conversations(world)).to_iterable_dataset()


def test_missing_rows_are_an_error(gaps: World, make: Make) -> None:
    with pytest.raises(
        MissingRows, match=r"^4 of 12 pairs have no weights in .*\(for example row 0, [0-9a-f]{32}\); run"
    ):
        make()
    with pytest.raises(MissingRows, match=r"^a pair has no weights in .*\(for example row 0, "):
        make(rows=_streamed(gaps))


@pytest.mark.parametrize("streamed", [False, True])
def test_missing_rows_are_dropped(gaps: World, make: Make, caplog: pytest.LogCaptureFixture, streamed: bool) -> None:
    with caplog.at_level(logging.WARNING):
        trainer = make(rows=_streamed(gaps) if streamed else None, missing="drop")
    kept = list(trainer.train_dataset)
    expected = [row["chosen"] for i, row in enumerate(strings(gaps)) if i % 3]
    assert [tiny_tokenizer().decode(row["chosen_ids"]) for row in kept] == [f"{text}<|im_end|>\n" for text in expected]
    reported = "4 rows of the train data set are left out: 4 no weights in the cache (missing='drop')"
    assert (reported in caplog.messages) is not streamed


@pytest.mark.parametrize("streamed", [False, True])
def test_missing_rows_weigh_evenly(gaps: World, make: Make, streamed: bool) -> None:
    trainer = make(rows=_streamed(gaps) if streamed else None, missing="uniform")
    rows = list(trainer.train_dataset)
    assert len(rows) == 12
    for number, row in enumerate(rows):
        *answer, end, line_break = row["chosen_weights"]
        assert (set(answer) == {1.0}) is (number % 3 == 0)
        assert (end, line_break) == (0.0, 0.0)


@pytest.mark.parametrize("streamed", [False, True])
def test_rows_that_are_no_pairs_are_left_out(
    world: World, make: Make, caplog: pytest.LogCaptureFixture, streamed: bool
) -> None:
    rows = conversations(world)
    rows[3]["rejected"] = rows[3]["chosen"]
    data = Dataset.from_list(rows)
    with caplog.at_level(logging.WARNING):
        trainer = make(rows=data.to_iterable_dataset() if streamed else data)
    assert len(list(trainer.train_dataset)) == 59
    reported = "1 rows of the train data set are left out: 1 both answers are the same"
    assert (reported in caplog.messages) is not streamed


# What is refused


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ({"loss_type": "ipo"}, {}, "loss_type='ipo' has no token-weighted form here: it divides by the number"),
        ({"loss_type": ["sigmoid", "sft"]}, {}, "loss_type='sft' has no token-weighted form here: it is no ratio"),
        ({"loss_type": "sigmoid_norm"}, {}, "loss_type='sigmoid_norm' has no token-weighted form here: it divides"),
        ({"ld_alpha": 0.5}, {}, "ld_alpha weighs tokens by their place"),
        ({"use_weighting": True}, {}, "use_weighting (WPO) takes unweighted log-probs"),
        ({"padding_free": True}, {}, "padding_free has no place for weights per token"),
        ({"use_liger_kernel": True}, {}, "use_liger_kernel replaces the forward pass"),
        ({}, {"data_collator": print}, "a data_collator of your own would leave the weights behind"),
        ({}, {"uncovered": "none"}, "uncovered='none' is not understood; give 'zero' or 'one'"),
        ({}, {"missing": "skip"}, "missing='skip' is not understood; give 'error', 'drop' or 'uniform'"),
        ({}, {"uniform_mix": 1.5}, "uniform_mix=1.5 is outside 0 to 1"),
        ({}, {"attn_source": "7"}, "--attn-source 7: layer 7 is not in the cache, which holds 0, 1"),
        ({}, {"weights": "nowhere"}, "nowhere"),
        ({"max_length": 4}, {}, "no pair is left to train on: every prompt fills max_length=4"),
    ],
)
def test_settings_that_are_refused(world: World, make: Make, args: Row, options: Row, message: str) -> None:
    with pytest.raises(TwdpoError) as caught:
        make(args=args, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _rows(**columns: Any) -> Any:
    return Dataset.from_list([columns])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (_rows(prompt="a", chosen="b", rejected="c", images=["x"]), "the train data set holds images"),
        (
            _rows(prompt="a", chosen="b", rejected="c", chosen_weights=[1.0]),
            "the train data set has been prepared already",
        ),
        (
            _rows(
                prompt="a",
                chosen=[{"role": "assistant", "content": "b"}],
                rejected=[{"role": "assistant", "content": "c"}],
            ),
            "trl takes text or messages, not both, but in the train data set `prompt` is text, `chosen` is messages, ",
        ),
        (_rows(prompt="a", chosen="b", rejected="b"), "no pair is left to train on: 1 both answers are the same"),
        (_rows(prompt="a", chosen="b", rejected="b").select([]), "the train data set is empty"),
    ],
)
def test_data_sets_that_are_refused(world: World, dataset: Any, message: str) -> None:
    trainer = object.__new__(TwDPOTrainer)
    trainer._settings = WeightSettings.of(world.weights, **DEFAULTS)
    with pytest.raises(TwdpoError) as caught:
        trainer._prepare_dataset(dataset, tiny_tokenizer(), config(world), "train")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_what_gives_no_offsets_is_refused(world: World, make: Make) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="the tokenizer Slow gives no character offsets"):
        TrlTexts(Slow())
    trainer = object.__new__(TwDPOTrainer)
    with pytest.raises(UsageError, match=r"pass processor\.tokenizer as processing_class"):
        trainer._prepare_dataset(Dataset.from_list(conversations(world)), object(), config(world), "train")


def test_tokens_of_another_text_are_refused() -> None:
    row = {
        "prompt": "a",
        "chosen": "b",
        "twdpo_chosen": "b",
        "prompt_ids": tiny_tokenizer().encode("a"),
        "chosen_ids": tiny_tokenizer().encode("c"),
    }
    with pytest.raises(ModelError, match="the tokens that trl made of a row are not those of its text"):
        TrlTexts(tiny_tokenizer()).of(row, "chosen")


def test_tokens_that_the_tokenizer_adds_around_a_text_cover_nothing() -> None:
    ids = tiny_tokenizer().encode("What b")
    row = {
        "prompt": "What",
        "chosen": " b",
        "twdpo_chosen": " b",
        "prompt_ids": [0, *ids[:-1]],
        "chosen_ids": [ids[-1], 2],
    }
    text, tokens = TrlTexts(tiny_tokenizer()).of(row, "chosen")
    assert text.text == "What b"
    assert (tokens.starts[0], tokens.ends[0], tokens.starts[-1]) == (-1, -1, -1)
    assert [int(tokens.starts[1]), int(tokens.ends[-2])] == [0, 6]


# The hook


class Outputs:
    def __init__(self, log_probs: torch.Tensor) -> None:
        self.log_probs = log_probs


class Model(torch.nn.Module):
    def forward(self, shape: tuple[int, int]) -> Outputs:
        return Outputs(torch.ones(shape))


def test_only_a_batch_in_hand_is_weighted() -> None:
    weighting, model = LogProbWeighting(), Model()
    weighting.attach(model)
    weighting.attach(model)
    weighting.attach(None)
    weights = torch.tensor([[9.0, 2.0, 0.0], [9.0, 0.5, 3.0]])
    assert model((2, 2)).log_probs.sum() == 4
    with weighting.of({COMPLETION_WEIGHTS: weights, "input_ids": 1}, passes=2) as batch:
        assert batch == {"input_ids": 1}
        assert torch.equal(model((2, 2)).log_probs, weights[:, 1:])
        # Virtual tokens of prompt learning come first.
        assert torch.equal(model((2, 5)).log_probs, weights[:, 1:])
    assert model((2, 2)).log_probs.sum() == 4


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (4, 2)])
def test_log_probs_of_another_shape_are_refused(shape: tuple[int, int]) -> None:
    weighting, model = LogProbWeighting(), Model()
    weighting.attach(model)
    with (
        pytest.raises(TrainingError, match="don't fit weights"),
        weighting.of({COMPLETION_WEIGHTS: torch.ones(2, 3)}, 1),
    ):
        model(shape)
    assert model((1, 1)).log_probs.sum() == 1


def test_a_loss_that_goes_past_the_weights_is_noticed() -> None:
    weighting = LogProbWeighting()
    batch = {COMPLETION_WEIGHTS: torch.ones(2, 3)}
    with pytest.raises(TrainingError, match="trl weighted 0 of 2 forward passes"), weighting.of(batch, passes=2):
        pass
    with pytest.raises(TrainingError, match="a batch came without weights"), weighting.of({}, passes=2):
        pass


# Runs


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_loss_falls(world: World, make: Make, lora: bool) -> None:
    options = {"peft_config": LoraConfig(r=8, task_type="CAUSAL_LM")} if lora else {"ref_model": tiny_model(seed=1)}
    args = {"max_steps": 30, "learning_rate": 1e-2, "dataloader_num_workers": 1, "logging_steps": 5}
    trainer = make(args=args, **options)
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert found[-1] < 0.5 * found[0]
    assert trainer.state.log_history[-2]["rewards/accuracies"] > 0.9


def test_the_example_of_the_documentation_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "trl.md").read_text("utf-8")
    code = page.partition('```python title="dpo.py"\n')[2].partition("```")[0]
    on_cpu = code.replace("DPOConfig(", "DPOConfig(use_cpu=True, bf16=False, ")  # as the page says
    (world.folder / "policy").symlink_to(world.model)
    monkeypatch.chdir(world.folder)
    names: dict[str, Any] = {}
    exec(compile(on_cpu, "docs/trl.md", "exec"), names)
    assert names["trainer"].state.log_history[-1]["train_loss"] == pytest.approx(np.log(2), rel=0.01)


def test_what_other_processes_get_can_be_pickled(world: World, make: Make) -> None:
    trainer = make()
    rows = list(trainer.train_dataset)[:3]
    collator = pickle.loads(pickle.dumps(trainer.data_collator))
    assert isinstance(collator, WeightsCollator)
    assert torch.equal(collator(rows)[COMPLETION_WEIGHTS], trainer.data_collator(rows)[COMPLETION_WEIGHTS])
    cache = ProcessCache(WeightSettings.of(world.weights, **DEFAULTS))
    assert cache.here is cache.here
    weights = RowWeights(tiny_tokenizer(), cache, WeightRules(layers=(1,)))
    selection = Selection(cache, "error")
    row = pair_columns(conversations(world)[0], 0)
    assert selection.wants(row)
    there = pickle.loads(pickle.dumps((weights, selection)))
    assert there[1].wants(row)
    prepared = make(DPOTrainer, rows=[conversations(world)[0]]).train_dataset.add_column("twdpo_hash", [row[KEY]])
    batch = (prepared[:] | {name: [row[name]] for name in ANSWERS.values()},)
    assert there[0](*batch) == weights(*batch)
    assert there[0](*batch)["chosen_weights"] == [stored(trainer, 0, "chosen")]


def test_without_trl_one_line_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['trl'] = None\n"
        "import twdpo.integrations\n"
        "from twdpo.errors import UsageError\n"
        "try: import twdpo.integrations.trl\n"
        "except UsageError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.startswith(
        "twdpo.integrations.trl needs trl 1.16 or newer; install it with: pip install 'twdpo[trl]'"
    )
    assert out.stdout.count("\n") == 1


def test_importing_the_adapters_imports_no_trainer() -> None:
    code = "import sys, twdpo.integrations; print(sorted({'trl', 'torch', 'transformers'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
