"""Parameters divided among processes (FSDP2): shard a model, gather it whole, put a whole one back.

torch's `fully_shard` on every decoder layer and on the whole of `TokenLogps`, whose forward needs the LM head's weight.
Used for CPUs and GPUs alike, so that what the tests run is what a GPU runs; accelerate's own FSDP knows GPUs only.
Not for: which process does what (`ranks.py`), or files (`checkpoint.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from twdpo.errors import UsageError

_FSDP, _DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How to divide. reshard_after_forward: let go of gathered layers until the backward pass. offload: keep the parts
    in the memory of the host."""

    reshard_after_forward: bool = True
    offload: bool = False

    @classmethod
    def asked(cls) -> Sharding | None:
        """What accelerate's configuration asks for, taken out of the environment so that nobody else acts on it.

        DeepSpeed's ZeRO-3 divides what FSDP2 divides, and is done by it. Raises UsageError for the older FSDP and for
        the lower stages of ZeRO.
        """
        if _taken(_DEEPSPEED):
            if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") != "3":
                raise UsageError("of DeepSpeed only ZeRO-3 is supported; set zero_stage: 3 in its configuration")
            return cls(offload=os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE") == "cpu")
        if not _taken(_FSDP):
            return None
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise UsageError("only FSDP2 is supported; set fsdp_version: 2 in the accelerate configuration")
        return cls(
            reshard_after_forward=os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false",
            offload=os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true",
        )

    def shard(self, model: nn.Module, device: torch.device, processes: int) -> None:
        """Divide the parameters in place; they move to `device` layer by layer."""
        mesh = init_device_mesh(device.type, (processes,))
        policy: OffloadPolicy = CPUOffloadPolicy() if self.offload else OffloadPolicy()
        for module in (*_layers(model), model):
            fully_shard(module, mesh=mesh, reshard_after_forward=self.reshard_after_forward, offload_policy=policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A sharded model and its optimizer, gathered on the main process, in host memory; each tensor under one name."""

    parameters: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]

    @classmethod
    def gather(cls, model: nn.Module, optimizer: torch.optim.Optimizer, *, keep: bool) -> Whole:
        """All processes must call this together; those that do not `keep` get nothing."""
        state = optimizer.state_dict()
        moments = {
            number: {name: whole for name, value in entry.items() if (whole := _whole(value, keep)) is not None}
            for number, entry in state["state"].items()
        }
        return cls(
            parameters=gather_parameters(model, keep=keep),
            optimizer={"state": moments, "param_groups": state["param_groups"]},
        )


def gather_parameters(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """All that a saved model has, whole, each tensor under its first name, where `keep`; all must call this together.

    That is its parameters and persistent buffers; the latter are not divided.
    """
    return {name: whole for name, value in _saved(model) if (whole := _whole(value, keep)) is not None}


def put_parameters(model: nn.Module, whole: Mapping[str, Tensor]) -> None:
    """Undo `gather_parameters`; a tied tensor may stand under any of its names. Raises KeyError where one lacks."""
    wanted = {id(value): name for name, value in _saved(model)}
    with torch.no_grad():
        for name, value in _saved(model, remove_duplicate=False):
            if id(value) in wanted and name in whole:
                value.copy_(divided(whole[name], value))
                del wanted[id(value)]
    if wanted:
        raise KeyError(f"no tensor {next(iter(wanted.values()))}")


def divided(whole: Tensor, like: Tensor) -> Tensor:
    """`whole` divided as `like` is, where that is divided and of the same shape."""
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)


def plain(value: Tensor) -> Tensor:
    """A tensor as every process would have it alone; for small ones."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter is divided."""
    return any(isinstance(value, DTensor) for value in model.parameters())


def _taken(name: str) -> bool:
    return os.environ.pop(name, "false").lower() == "true"


def _saved(model: nn.Module, *, remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
    names = model.state_dict().keys()
    yield from model.named_parameters(remove_duplicate=remove_duplicate)
    yield from (each for each in model.named_buffers(remove_duplicate=remove_duplicate) if each[0] in names)


def _whole(value: Any, keep: bool) -> Any:
    if not isinstance(value, Tensor):
        return value if keep else None
    whole = plain(value.detach())
    return whole.cpu() if keep else None


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The decoder layers, by the names that a model gives for modules not to be split."""
    names = {name for module in model.modules() for name in _no_split(module)}
    return (module for module in model.modules() if type(module).__name__ in names)


def _no_split(module: nn.Module) -> Iterable[str]:
    return getattr(module, "_no_split_modules", None) or ()
