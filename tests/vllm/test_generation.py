"""`twdpo generate --engine vllm`: prompts, ends and seeds through real vLLM, greedy answers as with transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.tiny_models import save_tiny
from twdpo.evaluate.benchmarks.config import GenerateConfig
from twdpo.evaluate.generation import GenerationSettings, Request, TransformersGenerator
from twdpo.pipeline.models import load_model
from twdpo.preferences import Message

TEXTS = ("What is two and two?", "Say <|im_end|> and go on.", "Name a colour. " * 20)


def requests(temperature: float) -> list[Request]:
    return [
        Request(messages=(Message(role="user", content=text),), temperature=temperature, key=text) for text in TEXTS
    ]


def test_answers_are_those_of_transformers(tmp_path: Path) -> None:
    from twdpo.evaluate.generation_vllm import load_vllm_generator

    model = str(save_tiny(tmp_path / "tiny", "llama", context=512, hidden_size=128, head_dim=32))
    config = GenerateConfig(benchmark="mt_bench", model=model, dtype="float32")
    settings = GenerationSettings(max_new_tokens=24, seed=3)
    generator, revision, dtype = load_vllm_generator(config, settings)
    try:
        greedy = generator.answer(requests(0.0))
        drawn = [generator.answer(requests(1.0)) for _ in range(2)]
        too_long = Request(messages=(Message(role="user", content="word " * 600),), temperature=0.0, key="")
        [failed] = generator.answer([too_long])
    finally:
        generator.close()
    loaded = load_model(model, dtype="float32", device="cpu")
    assert (revision, dtype) == (loaded.revision, "float32")
    assert greedy == TransformersGenerator(loaded, settings).answer(requests(0.0))
    assert drawn[0] == drawn[1]
    assert drawn[0] != greedy
    assert failed.failure is not None
    assert "fill the model's context of 512" in failed.failure


@pytest.mark.parametrize("name", ["model.gguf", "adapter"])
def test_what_vllm_does_not_load_is_told(tmp_path: Path, name: str) -> None:
    from twdpo.errors import ModelError
    from twdpo.evaluate.generation_vllm import load_vllm_generator

    if name == "adapter":
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    config = GenerateConfig(benchmark="mt_bench", model=str(tmp_path / name))
    with pytest.raises(ModelError, match="which --engine vllm does not load"):
        load_vllm_generator(config, GenerationSettings())
