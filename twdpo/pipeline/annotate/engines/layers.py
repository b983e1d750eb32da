"""What a model's configuration says about how far its layers attend; the same for every engine."""

from __future__ import annotations

from typing import Any


def global_layers(config: Any) -> tuple[int, ...]:
    """The full-attention layers, where sliding-window layers are mixed in; else all. `config`: the text model's."""
    kinds = getattr(config, "layer_types", None)
    full = tuple(i for i, kind in enumerate(kinds or ()) if kind == "full_attention")
    return full or tuple(range(int(config.num_hidden_layers)))


def reach(config: Any, layer: int) -> int | None:
    """The sliding window of a layer that has one, None for a layer that sees the whole prompt."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not window or (kinds and kinds[layer] != "sliding_attention"):
        return None
    return int(window) if kinds or getattr(config, "use_sliding_window", True) else None
