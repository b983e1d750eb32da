"""An engine whose model has a transformers configuration, which says how far its layers attend."""

from __future__ import annotations

from typing import Any

from twdpo.pipeline.annotate.engines.base import Engine


class DecoderEngine(Engine):
    """What the real engines have in common. config: the model's; of one with several parts, the text model's counts."""

    def __init__(self, config: Any) -> None:
        self._config = config.get_text_config()

    @property
    def num_layers(self) -> int:
        """How many decoder layers the model has."""
        return int(self._config.num_hidden_layers)

    @property
    def global_layers(self) -> tuple[int, ...]:
        """The full-attention layers, where sliding-window layers are mixed in; else all."""
        kinds = getattr(self._config, "layer_types", None)
        full = tuple(i for i, kind in enumerate(kinds or ()) if kind == "full_attention")
        return full or tuple(range(self.num_layers))

    def reach(self, layer: int) -> int | None:
        """The sliding window of a layer that has one, None for a layer that sees the whole prompt."""
        window = getattr(self._config, "sliding_window", None)
        kinds = getattr(self._config, "layer_types", None)
        if not window or (kinds and kinds[layer] != "sliding_attention"):
            return None
        return int(window) if kinds or getattr(self._config, "use_sliding_window", True) else None
