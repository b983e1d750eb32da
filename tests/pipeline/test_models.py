"""Loading models by name: folders, the embedded default, and what is wrong in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.fixtures.tiny_models import save_tiny, tiny_model
from twdpo.errors import HubUnavailable, ModelError, UsageError
from twdpo.pipeline.model_files import cache_folder
from twdpo.pipeline.models import context_length, load_model, load_tokenizer, pick_device, resolve_dtype


def test_a_folder_and_what_identifies_it(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "a", "llama")
    loaded = load_model(str(folder), device="cpu")
    assert (loaded.dtype, loaded.name) == ("float32", str(folder))
    assert not loaded.model.training
    again = load_model(str(folder), device="cpu", dtype="bfloat16")
    assert again.model.dtype == torch.bfloat16
    assert again.revision == loaded.revision
    other = save_tiny(tmp_path / "b", "llama", seed=1)
    assert load_model(str(other), device="cpu").revision != loaded.revision


def test_the_embedded_model_is_converted_once_and_saves(embedded_model: str, tmp_path: Path) -> None:
    loaded = load_model(embedded_model, device="cpu")
    assert sum(p.numel() for p in loaded.model.parameters()) == 134_515_008
    assert list((cache_folder() / "models").glob("smollm2-135m-*/model.safetensors"))
    assert not list((cache_folder() / "models").glob(".tmp-*"))
    loaded.model.save_pretrained(tmp_path / "saved")
    loaded.tokenizer.save_pretrained(tmp_path / "saved")
    back = load_model(str(tmp_path / "saved"), device="cpu")
    assert torch.equal(back.model.model.norm.weight, loaded.model.model.norm.weight)
    assert back.tokenizer.chat_template == loaded.tokenizer.chat_template


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no model"):
        load_model(str(tmp_path / "empty"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(str(tmp_path / "broken"))
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown/config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(ModelError, match="cannot load the model") as raised:
        load_model(str(tmp_path / "unknown"))
    assert "\n" not in str(raised.value)
    with pytest.raises(ModelError, match="does not exist"):
        load_model(str(tmp_path / "none"))


def test_a_hub_out_of_reach() -> None:
    with pytest.raises(HubUnavailable, match="pass a local folder"):
        load_tokenizer("no-such/model")


def test_devices_and_types() -> None:
    assert pick_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="--device warp cannot be used here"):
        pick_device("warp")
    assert resolve_dtype("auto", "cpu") == "float32"
    assert resolve_dtype("auto", "cuda") == "bfloat16"
    with pytest.raises(UsageError, match="--dtype int8"):
        resolve_dtype("int8", "cpu")


def test_context_length() -> None:
    assert context_length(tiny_model(context=128).config) == 128
