"""What identifies a model's files, and the packaged model's conversion."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.tiny_models import save_tiny, tiny_model
from twdpo.errors import ModelError
from twdpo.pipeline.extras import quiet_peft
from twdpo.pipeline.model_files import content_identity, forget_quantization
from twdpo.pipeline.models import load_model


def test_a_models_identity_is_that_of_its_content(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "a", "llama")
    identity = content_identity(str(folder))
    assert identity == load_model(str(folder), device="cpu").revision
    folder.rename(tmp_path / "moved")
    assert content_identity(str(tmp_path / "moved")) == identity
    assert content_identity(str(save_tiny(tmp_path / "b", "llama", seed=1))) != identity
    assert content_identity("someone/some-model", "main") is None
    with pytest.raises(ModelError, match="does not exist"):
        content_identity(str(folder))


def test_an_adapters_identity_is_also_its_bases(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = save_tiny(tmp_path / "base", "llama")
    with quiet_peft():
        model = peft.get_peft_model(
            load_model(str(base), device="cpu").model, peft.LoraConfig(r=2, target_modules=["q_proj"])
        )
        model.peft_config["default"].base_model_name_or_path = str(base)
        model.save_pretrained(tmp_path / "adapter")
    identity = content_identity(str(tmp_path / "adapter"))
    assert identity == load_model(str(tmp_path / "adapter"), device="cpu").revision
    assert identity != content_identity(str(base))
    save_tiny(base, "llama", seed=1)
    assert content_identity(str(tmp_path / "adapter")) != identity


def test_forgetting_quantization_leaves_others_alone() -> None:
    model = tiny_model()
    forget_quantization(model)
    assert not hasattr(model, "hf_quantizer")
