"""Floating-point operations that a decoder's forward passes need, and what devices can do in a second.

Model FLOP utilisation is the one over the other: how much of the hardware a run uses, whatever it spends its time on.
Pure functions. Not for: measuring (`benchmarks/`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twdpo.pipeline.tokens import common_beginning


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """What decides a decoder's operations.

    linear: for each layer the parameters that every token is multiplied with, of experts those that a token goes
    through. width: of all query heads together. windows: for each layer how far back it attends, None for the whole
    prompt. head: parameters of the output head.
    """

    linear: tuple[int, ...]
    width: int
    windows: tuple[int | None, ...]
    head: int

    def prompt_flops(self, tokens: int, *, layers: int | None = None) -> float:
        """Of the first `layers` layers (all unless given) over a prompt of so many tokens, the head left out.

        Two operations a parameter and token; four a query entry and token that it attends to, for scores and values.
        """
        deep = len(self.linear) if layers is None else layers
        linear = 2.0 * tokens * sum(self.linear[:deep])
        return linear + 4.0 * self.width * sum(_attended(tokens, window) for window in self.windows[:deep])

    def flops(self, prompts: Sequence[NDArray[np.integer[Any]]], *, layers: int | None = None, heads: bool) -> float:
        """Of prompts, given as token ids, computed one after another; what one begins with as the last did counts once.

        heads: whether the output head is applied, to one position a prompt.
        """
        total = 0.0
        last: NDArray[np.integer[Any]] | None = None
        for ids in prompts:
            shared = 0 if last is None else common_beginning(last, ids)
            total += self.prompt_flops(len(ids), layers=layers) - self.prompt_flops(shared, layers=layers)
            last = ids
        return total + (2.0 * self.head * len(prompts) if heads else 0.0)


def _attended(tokens: int, window: int | None) -> float:
    """Over all tokens of a prompt, how many each attends to, itself included."""
    full = tokens if window is None else min(tokens, window)
    return full * (full + 1) / 2 + (tokens - full) * full


def shape_of(model: Any) -> DecoderShape | None:
    """The shape of a loaded model (a transformers causal language model), None where its layers are not found."""
    config = model.config.get_text_config()
    count = int(config.num_hidden_layers)
    linear = [0] * count
    for name, parameter in model.named_parameters():
        layer = re.search(r"\.(?:layers|h|blocks|block)\.(\d+)\.", f".{name}")
        if layer is None or parameter.ndim < 2 or int(layer[1]) >= count:
            continue
        linear[int(layer[1])] += int(parameter.numel() * _share(name, parameter.ndim, config))
    if not all(linear):
        return None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * count
    window = getattr(config, "sliding_window", None)
    return DecoderShape(
        linear=tuple(linear),
        width=int(config.num_attention_heads * head_dim),
        windows=tuple(int(window) if window and kind == "sliding_attention" else None for kind in kinds),
        head=int(model.get_output_embeddings().weight.numel()),
    )


def _share(name: str, axes: int, config: Any) -> float:
    """Of a parameter, the share that one token is multiplied with: experts take turns."""
    is_expert = axes == 3 or re.search(r"\.experts\.", name) is not None
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    chosen = getattr(config, "num_experts_per_tok", None)
    return chosen / experts if is_expert and experts and chosen else 1.0


#: Dense matrix multiplication in teraFLOP/s: 16-bit inputs with float32 sums, and float32 without TF32. Sparsity, which
#: data sheets like to count in, is taken out. The first pattern that matches a device's name is taken.
_TERAFLOPS: tuple[tuple[str, float, float], ...] = (
    # NVIDIA GB200 NVL72 and HGX B200 data sheets: 360 petaFLOP/s sparse for 72 GPUs, 36 for 8.
    (r"\bGB200\b", 2500.0, 80.0),
    (r"\bB200\b", 2250.0, 75.0),
    # NVIDIA H200 data sheet: SXM 1,979 sparse, NVL 1,671 sparse.
    (r"\bH200 NVL\b", 835.5, 60.0),
    (r"\bG?H200\b", 989.4, 67.0),
    # NVIDIA H100 data sheet and Hopper white paper: SXM 989.4, PCIe 756, NVL 1,671 sparse.
    (r"\bH100 NVL\b", 835.5, 60.0),
    (r"\bH100 PCIe\b", 756.0, 51.0),
    (r"\bH100\b", 989.4, 67.0),
    # NVIDIA A100, A40, A30, A10 data sheets.
    (r"\bA100\b", 312.0, 19.5),
    (r"\bA40\b", 149.7, 37.4),
    (r"\bA30\b", 165.0, 10.3),
    (r"\bA10\b", 125.0, 31.2),
    # NVIDIA L4 (242 sparse), L40S and L40 data sheets.
    (r"\bL40S\b", 362.05, 91.6),
    (r"\bL40\b", 181.05, 90.5),
    (r"\bL4\b", 121.0, 30.3),
    # NVIDIA V100 and T4 data sheets; neither multiplies bfloat16 in its tensor cores (`peak_flops`).
    (r"\bV100\b", 125.0, 15.7),
    (r"\bT4\b", 65.0, 8.1),
    # NVIDIA white papers on GA102, Ada and RTX Blackwell, whose cards sum in float32 at half their float16 rate.
    (r"\bRTX 5090(?! Laptop| D)\b", 209.5, 104.8),
    (r"\bRTX 4090(?! Laptop| D)\b", 165.2, 82.6),
    (r"\bRTX 3090\b(?! Ti)", 71.0, 35.6),
    # AMD data sheets of MI300X, MI325X and MI250X, of which a device is one of two dies.
    (r"\bMI300X\b", 1307.4, 163.4),
    (r"\bMI325X\b", 1307.4, 163.4),
    (r"\bMI250X\b", 191.5, 23.9),
)
_WITHOUT_BFLOAT16 = re.compile(r"\bV100\b|\bT4\b")


def peak_flops(device_name: str, dtype: str) -> float | None:
    """What a device can do in a second in `dtype` (float32, bfloat16 or float16), None where that is not known."""
    if dtype not in ("float32", "bfloat16", "float16"):
        return None
    if dtype == "bfloat16" and _WITHOUT_BFLOAT16.search(device_name):
        return None
    # As drivers spell it: NVIDIA A100-SXM4-80GB, Tesla V100-SXM2-16GB.
    for pattern, half, single in _TERAFLOPS:
        if re.search(pattern, device_name):
            return (single if dtype == "float32" else half) * 1e12
    return None


def peak_of(devices: Iterable[Any], dtype: str) -> float | None:
    """The peak of one of several torch devices, of which one works at a time; None unless all are of one known kind."""
    import torch

    names = {torch.cuda.get_device_name(device) if device.type == "cuda" else "" for device in devices}
    if len(names) != 1 or (dtype == "float32" and torch.get_float32_matmul_precision() != "highest"):
        return None
    return peak_flops(names.pop(), dtype)
