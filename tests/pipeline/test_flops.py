"""Operations counted by hand for two known models, and peaks by the names that drivers give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.fixtures.tiny_models import tiny_model
from twdpo.pipeline.flops import DecoderShape, peak_flops, peak_of, shape_of


def on_meta(kind: str, **sizes: Any) -> Any:
    import transformers

    with torch.device("meta"):
        make: Any = transformers.AutoModelForCausalLM.from_config
        return make(getattr(transformers, kind)(**sizes))


SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
LLAMA3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("sizes", "linear", "width", "head"),
    [
        # q and o 576², k and v 576·192, gate, up and down 576·1536.
        (SMOLLM2, 2 * 331_776 + 2 * 110_592 + 3 * 884_736, 576, 28_311_552),
        # q and o 4096², k and v 4096·1024, gate, up and down 4096·14336.
        (LLAMA3_8B, 2 * 16_777_216 + 2 * 4_194_304 + 3 * 58_720_256, 4096, 525_336_576),
    ],
    ids=["SmolLM2-135M", "Llama-3-8B"],
)
def test_by_hand(sizes: dict[str, Any], linear: int, width: int, head: int) -> None:
    shape = shape_of(on_meta("LlamaConfig", **sizes))
    layers = sizes["num_hidden_layers"]
    assert shape == DecoderShape(linear=(linear,) * layers, width=width, windows=(None,) * layers, head=head)
    tokens = 1000
    by_hand = layers * (2 * tokens * linear + 4 * width * tokens * 1001 // 2)
    assert shape.prompt_flops(tokens) == by_hand
    ids = np.arange(tokens, dtype=np.int32)
    assert shape.flops([ids], heads=True) == by_hand + 2 * head
    assert shape.flops([ids], heads=False, layers=8) == by_hand * 8 / layers


def test_llama_3_8b_over_a_thousand_tokens_is_about_fourteen_tera() -> None:
    shape = shape_of(on_meta("LlamaConfig", **LLAMA3_8B))
    assert shape is not None
    assert shape.prompt_flops(1000) == pytest.approx(2 * 6.98e9 * 1000, rel=0.03)


def test_what_prompts_begin_with_alike_counts_once() -> None:
    shape = DecoderShape(linear=(10, 10), width=4, windows=(None, None), head=7)
    first, second = np.array([1, 2, 3, 4, 5]), np.array([1, 2, 3, 9])
    # Two layers, 20 a token; attention: 5 tokens see 15, of the second the last alone is new and sees 4.
    assert shape.flops([first, second], heads=False) == 2 * (5 * 20 + 16 * 15) + 2 * (20 + 16 * 4)
    assert shape.flops([first, second], heads=True) == shape.flops([first, second], heads=False) + 2 * 2 * 7
    assert shape.flops([first, first], heads=False) == shape.flops([first], heads=False)


def test_a_sliding_window_sees_less() -> None:
    shape = DecoderShape(linear=(0,), width=1, windows=(3,), head=0)
    assert shape.prompt_flops(5) == 4 * (1 + 2 + 3 + 3 + 3)
    gemma = shape_of(tiny_model("gemma3", layers=6))
    assert gemma is not None
    assert gemma.windows == (16, 16, 16, 16, 16, None)


def test_of_experts_those_count_that_a_token_goes_through() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = on_meta(
        "Qwen3MoeConfig",
        **sizes,
        vocab_size=100,
        head_dim=8,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_experts=8,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
    )
    shape = shape_of(model)
    assert shape is not None
    # q and o 32², k and v 32·16, the router 32·8, and two experts of three matrices 32·16.
    assert shape.linear == (2 * 1024 + 2 * 512 + 256 + 2 * 3 * 512,) * 2


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "phi3", "gpt_neox", "cohere", "granite"])
def test_every_family_has_a_shape(family: str) -> None:
    model = tiny_model(family)
    shape = shape_of(model)
    assert shape is not None
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    assert sum(shape.linear) == sum(p.numel() for p in matrices)


@pytest.mark.parametrize(
    ("name", "half", "single"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, 19.5),
        ("NVIDIA A10", 125, 31.2),
        ("NVIDIA H100 80GB HBM3", 989.4, 67),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA H100 NVL", 835.5, 60),
        ("NVIDIA H200", 989.4, 67),
        ("NVIDIA GH200 480GB", 989.4, 67),
        ("NVIDIA B200", 2250, 75),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA L40S", 362.05, 91.6),
        ("NVIDIA GeForce RTX 3090", 71, 35.6),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("NVIDIA GeForce RTX 5090", 209.5, 104.8),
        ("AMD Instinct MI300X", 1307.4, 163.4),
    ],
)
def test_peaks_by_name(name: str, half: float, single: float) -> None:
    assert peak_flops(name, "bfloat16") == peak_flops(name, "float16") == half * 1e12
    assert peak_flops(name, "float32") == single * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A10G",
        "NVIDIA A100X",
        "NVIDIA H800",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "",
    ],
)
def test_a_device_that_only_looks_alike_has_no_peak(name: str) -> None:
    assert peak_flops(name, "bfloat16") is None


def test_what_has_no_peak() -> None:
    assert peak_flops("Tesla T4", "bfloat16") is None
    assert peak_flops("Tesla T4", "float16") == 65e12
    assert peak_flops("NVIDIA H200", "float64") is None
    assert peak_of([torch.device("cpu")], "float32") is None
