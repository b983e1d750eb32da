"""Judges whose parts are spread over devices, memory and disk: the same weights as in one piece."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.fixtures.tiny_models import save_tiny
from tests.weights_cache.states import state
from twdpo.errors import ModelError, UsageError
from twdpo.pipeline.annotate import AnnotateConfig, annotate
from twdpo.pipeline.annotate.engines.transformers import TransformersEngine
from twdpo.pipeline.models import input_device, load_model

ON_DISK = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.layers.3": "disk",
    "model.norm": "cpu",
    "lm_head": "cpu",
}


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    rows = [{"prompt": f"question {i}", "chosen": f"good answer {i}", "rejected": "bad " * i} for i in range(1, 7)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_tiny(tmp_path / "judge", "llama", layers=4, context=2048)
    return str(tmp_path / "pairs.jsonl")


@pytest.mark.parametrize("embedding", ["cpu", "disk"])
def test_parts_on_disk_give_the_same_weights(dataset: str, tmp_path: Path, embedding: str) -> None:
    judge = str(tmp_path / "judge")
    whole = load_model(judge, dtype="float32", device="cpu")
    spread = load_model(judge, dtype="float32", device_map=ON_DISK | {"model.embed_tokens": embedding})
    weights = dict(spread.model.named_parameters())
    assert weights["model.layers.2.mlp.up_proj.weight"].device.type == "meta", "nothing was offloaded"
    assert input_device(spread.model) == torch.device("cpu")
    for loaded, out in ((whole, "whole"), (spread, "spread")):
        config = AnnotateConfig(dataset=dataset, out=str(tmp_path / out))
        annotate(config, engine=TransformersEngine(loaded.model), tokenizer=loaded.tokenizer)
    ours, expected = state(tmp_path / "spread").rows, state(tmp_path / "whole").rows
    assert len(ours) == 6
    assert ours == expected


def test_auto_is_one_piece_where_it_fits(dataset: str, tmp_path: Path) -> None:
    config = AnnotateConfig(
        dataset=dataset, out=str(tmp_path / "out"), model=str(tmp_path / "judge"), device_map="auto", limit=3
    )
    assert annotate(config).counts.written == 3


def test_what_does_not_go_together_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--device-map auto places the judge itself: leave --device cpu out"):
        AnnotateConfig(dataset="demo", device_map="auto", device="cpu")
    with pytest.raises(UsageError, match="--device-map everywhere is not known; choose one of auto,"):
        AnnotateConfig(dataset="demo", device_map="everywhere")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter, which --device-map cannot place"):
        load_model(str(tmp_path), device_map="auto")
