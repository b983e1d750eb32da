"""The last decoder layer, computed where it matters: what treats each position by itself is given some of them only.

Not for: attention (`packed.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

#: What makes queries, and what mixes heads, in the attention modules that have them apart.
_IN_ATTENTION = ("q_proj", "o_proj", "out_proj", "dense")


def tokenwise_modules(model: nn.Module, layer: int) -> list[nn.Module]:
    """The modules of a decoder layer that treat each position by itself, as far as they are known by name."""
    for name, module in model.named_modules():
        if getattr(module, "layer_idx", None) != layer or "." not in name:
            continue
        mlp = getattr(model.get_submodule(name.rpartition(".")[0]), "mlp", None)
        if isinstance(mlp, nn.Module):
            inside = [getattr(module, part, None) for part in _IN_ATTENTION]
            return [mlp, *(part for part in inside if isinstance(part, nn.Module))]
    return []


@contextmanager
def only_at(modules: Sequence[nn.Module], places: Tensor) -> Iterator[None]:
    """While the block runs, `modules` compute `places` int64[R] of their input [1, T, ·]; elsewhere they give zero."""
    with ExitStack() as stack:
        for module in modules:
            at = _At(places)
            stack.callback(module.register_forward_pre_hook(at.choose).remove)
            stack.callback(module.register_forward_hook(at.spread).remove)
        yield


class _At:
    def __init__(self, places: Tensor) -> None:
        self._places = places
        self._whole = 0

    def choose(self, _module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = arguments[0] if arguments else None
        self._whole = 0
        if not isinstance(hidden, Tensor) or hidden.dim() != 3 or len(hidden) != 1:
            return None
        self._whole = hidden.shape[1]
        return (hidden[:, self._places.to(hidden.device)], *arguments[1:])

    def spread(self, _module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> Any:
        if not self._whole:
            return output
        if isinstance(output, tuple):
            return (self._spread(output[0]), *output[1:])
        return self._spread(output)

    def _spread(self, some: Tensor) -> Tensor:
        whole = some.new_zeros(1, self._whole, *some.shape[2:])
        whole[:, self._places.to(some.device)] = some
        return whole
