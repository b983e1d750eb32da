"""The model card: a header that the hub takes, all that a repetition needs, and no path of this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import ModelCard

from tests.pipeline.train.conftest import World
from tests.weights_cache.samples import RECIPE
from twdpo import __version__
from twdpo.pipeline.train import TrainConfig, train
from twdpo.pipeline.train.card import RunFacts, model_card
from twdpo.pipeline.train.metrics import NAMES
from twdpo.pipeline.train.retention import Best
from twdpo.weights_cache import Manifest

SOURCE = {
    "name": "ultrafeedback",
    "kind": "hub",
    "location": "HuggingFaceH4/ultrafeedback_binarized",
    "split": "train_prefs",
    "revision": "abc123",
    "licence": "MIT",
}


def evaluation(step: int, loss: float) -> dict[str, float]:
    return {"step": step, **{f"eval_{name}": loss for name in NAMES}}


def facts(**changes: Any) -> RunFacts:
    """A run of 40 steps, evaluated before, in the middle and after, best in the middle."""
    options = changes.pop("config", {})
    values: dict[str, Any] = {
        "config": TrainConfig(model="org/base", out="runs/mine", dtype="bfloat16", **options),
        "manifest": Manifest(recipe=RECIPE, sources=(SOURCE,)),
        "model_revision": "0123456789",
        "pairs": 1234,
        "heldout": 25,
        "steps": 40,
        "evaluations": {0: evaluation(0, 0.6931), 20: evaluation(20, 0.5), 40: evaluation(40, 0.55)},
        "last": {"step": 40, **dict.fromkeys(NAMES, 0.125)},
        "best": Best(step=20, checkpoint=Path("anywhere")),
    }
    return RunFacts(**values | changes)


def header(card: str) -> dict[str, Any]:
    """The header as the hub reads it."""
    return ModelCard(card).data.to_dict()


def test_the_header_names_what_the_hub_knows() -> None:
    assert header(model_card(facts())) == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "datasets": ["HuggingFaceH4/ultrafeedback_binarized"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["twdpo", "dpo", "preference-optimization", "attentionpo"],
    }


def test_the_header_names_nothing_that_the_hub_does_not_know(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: llama3\n---\n# Base\n", "utf-8")
    source = {"name": "pairs.jsonl", "kind": "file", "location": str(tmp_path / "pairs.jsonl")}
    run = facts(config={}, manifest=Manifest(recipe=RECIPE, sources=(source,)))
    run = replace(run, config=replace(run.config, model=str(base), out=str(tmp_path / "mine")))
    card = model_card(run)
    assert header(card).keys() == {"license", "library_name", "pipeline_tag", "tags"}
    assert header(card)["license"] == "llama3"
    assert str(tmp_path) not in card
    assert "data: pairs.jsonl" in card
    assert "policy and reference: base, revision 0123456789" in card
    (base / "README.md").write_text("---\nlicense: [\n---\n", "utf-8")
    assert "license" not in header(model_card(run))


def test_the_embedded_model_goes_by_its_name_on_the_hub() -> None:
    run = facts()
    found = header(model_card(replace(run, config=replace(run.config, model="smollm2-135m"))))
    assert (found["base_model"], found["license"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")


@pytest.mark.parametrize(
    ("options", "relation", "library"),
    [({"lora_rank": 8}, "adapter", "peft"), ({"lora_rank": 8, "merge_adapter": True}, "finetune", "transformers")],
    ids=["adapter", "merged"],
)
def test_adapters_say_so(options: dict[str, Any], relation: str, library: str) -> None:
    card = model_card(facts(config=options))
    assert (header(card)["base_model_relation"], header(card)["library_name"]) == (relation, library)
    assert "LoRA of rank 8, alpha 16, on all-linear" in card
    assert ("It is an adapter" in card) == (relation == "adapter")


def test_all_that_a_repetition_needs_is_there() -> None:
    card = model_card(facts(has_curves=True, config={"label_smoothing": 0.1, "uniform_mix": 0.25}))
    for text in (
        "1,234 pairs trained on, 25 held out",
        "data: HuggingFaceH4/ultrafeedback_binarized (split train_prefs, revision abc123, licence MIT)",
        f"fingerprint of the weights' recipe: `{RECIPE.fingerprint}`",
        f"judge {RECIPE.judge_model}",
        "attention source last, sink fix on, uncovered tokens zero, uniform mix 0.25",
        "policy and reference: org/base, revision 0123456789",
        "40 steps of 32 pairs",
        "beta 0.005, label smoothing 0.1",
        "learning rate 1e-06, cosine, warm-up 0.1; adamw",
        "bfloat16, max length 2048, seed 42, 1 process\n",
        f"twdpo {__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
        "](curves.png)",
        "[train.yaml](train.yaml)",
    ):
        assert text in card, text
    assert "curves.png" not in model_card(facts())


def test_the_figures_stand_in_the_order_of_the_run() -> None:
    card = model_card(facts())
    assert "| metric | last training step | held out, before | held out, step 20 | held out, after |" in card
    assert "| rewards/margins | 0.125 | 0.6931 | 0.5 | 0.55 |" in card
    assert "The held-out loss is 0.5500 after the last step, 40. It was lowest, 0.5000 after step 20: that" in card
    assert "| rewards/accuracies | 0.125 | – | 0.5 | 0.55 |" in card
    alone = model_card(facts(evaluations={}, best=None))
    assert "| metric | last training step |\n|---|---|\n" in alone
    assert "held-out loss" not in alone


def test_how_to_load_it() -> None:
    local, pushed = model_card(facts()), model_card(facts(config={"push": "me/mine"}), is_best=True)
    assert 'from_pretrained("mine", dtype="auto")' in local
    assert 'the same with `subfolder="best"`' in local
    assert 'from_pretrained("me/mine", subfolder="best")' in pushed
    assert pushed.count("../metrics.jsonl") == 1
    assert "# mine, after step 20 of 40" in pushed


def test_the_card_of_a_run_is_taken_by_the_hubs_own_check(world: World) -> None:
    result = train(world.config(max_steps=2))
    card = ModelCard.load(result.out / "README.md")
    assert card.data.library_name == "transformers"
    assert "52 pairs trained on, 8 held out" in card.text
    assert str(world.folder) not in card.content
