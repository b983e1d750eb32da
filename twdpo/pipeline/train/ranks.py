"""What the processes of a run do together: agree, fail together, count together.

With one process all of it does nothing. Not for: starting processes (`launch.py`) or dividing parameters
(`sharding.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator  # type: ignore[import-untyped,unused-ignore]
from accelerate.utils import (  # type: ignore[import-untyped,unused-ignore]
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from torch import Tensor, nn

from twdpo.errors import UsageError, first_line
from twdpo.pipeline.models import pick_device
from twdpo.pipeline.train.batches import ACTIVATION_TOKENS, TOKEN_BUDGET
from twdpo.pipeline.train.processes import in_accord
from twdpo.pipeline.train.sharding import Sharding, Whole, gather_parameters

Item = TypeVar("Item")

#: How long a process waits for another, which may be writing a large checkpoint to a slow disk. One that dies is
#: noticed by whoever started it, within seconds.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The processes of a run as one of them sees them. sharding: None where each holds the whole model."""

    accelerator: Accelerator
    sharding: Sharding | None = None

    @classmethod
    def join(cls, device: str) -> Ranks:
        """Meet the other processes, where a launcher has started some. Raises UsageError."""
        sharding, picked = Sharding.asked(), pick_device(device)
        try:
            accelerator = Accelerator(
                cpu=picked == "cpu",
                mixed_precision="no",
                # Given, so that accelerate does not take a number from its environment and divide every loss by it.
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                kwargs_handlers=[process_group(sharding, picked)],
            )
        except ValueError as error:
            raise UsageError(
                f"accelerate refuses to start here ({first_line(error)}); where it was used in this process before, "
                "train in a process of its own"
            ) from None
        return cls(accelerator=accelerator, sharding=sharding if accelerator.num_processes > 1 else None)

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def count(self) -> int:
        """How many processes there are."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """Which of them this is."""
        return int(self.accelerator.process_index)

    @property
    def load_on(self) -> str:
        """Where to load a model: parameters that will be divided need not fit on one device."""
        return "cpu" if self.sharding else str(self.accelerator.device)

    @property
    def token_budget(self) -> int:
        """Padded tokens in a forward pass."""
        return TOKEN_BUDGET[self._kind]

    @property
    def activation_tokens(self) -> int:
        """Tokens whose activations a forward pass may keep."""
        return ACTIVATION_TOKENS[self._kind]

    def shard(self, model: nn.Module) -> None:
        """Divide the parameters where that was asked for."""
        if self.sharding is not None:
            self.sharding.shard(model, self.accelerator.device, self.count)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The model with gradients that are averaged over the processes, and its optimizer."""
        if self.sharding is not None:
            return model, optimizer
        prepared: tuple[nn.Module, Any] = self.accelerator.prepare(model, optimizer)
        return prepared

    def gradients(self, model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """For the micro-batches of a step: gradients are exchanged after the last only.

        Divided gradients are exchanged at once, since waiting would hold them whole.
        """
        if last or self.sharding is not None:
            return nullcontext()
        context: AbstractContextManager[Any] = self.accelerator.no_sync(model)
        return context

    def evened(
        self, groups: Iterable[list[Item]], filler: Item, *, least: int = 0
    ) -> Iterator[tuple[list[Item], bool]]:
        """This process's groups, each with True, and then fillers, [filler] with False, whose results do not count.

        With divided parameters no process can do a forward pass alone: all get as many groups as the one with most.
        """
        mine = list(groups)
        most = max(len(mine), least)
        if self.sharding is not None:
            counts = torch.tensor(most, device=self.accelerator.device)
            torch.distributed.all_reduce(counts, op=torch.distributed.ReduceOp.MAX)
            most = int(counts)
        yield from ((group, True) for group in mine)
        yield from (([filler], False) for _ in range(most - len(mine)))

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        total: Tensor = self.accelerator.reduce(values, "sum")
        return total

    def collect(self, items: Sequence[Item]) -> list[Item]:
        """The items of all processes, in their order."""
        if self.count == 1:
            return list(items)
        parts: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]

    def wait(self) -> None:
        """Until all are here."""
        self.accelerator.wait_for_everyone()

    def accord(self) -> AbstractContextManager[None]:
        """A block that one process may fail in alone, and after which all fail; see `in_accord`."""
        return in_accord(self)

    def gather(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Whole | None:
        """Divided parameters and optimizer state whole, on the main process; None where nothing is divided."""
        return Whole.gather(model, optimizer, keep=self.main) if self.sharding else None

    def gather_parameters(self, model: nn.Module) -> dict[str, Tensor] | None:
        """Divided parameters whole, on the main process; None where nothing is divided."""
        return gather_parameters(model, keep=self.main) if self.sharding else None

    @property
    def _kind(self) -> str:
        return "cpu" if self._device.type == "cpu" else "accelerator"

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device


def process_group(sharding: Sharding | None, device: str) -> InitProcessGroupKwargs:
    """How the processes meet. Parts kept in the memory of the host are exchanged there, too, which NCCL cannot do."""
    if sharding is not None and sharding.offload and device == "cuda" and "LOCAL_RANK" in os.environ:
        return InitProcessGroupKwargs(backend="cuda:nccl,cpu:gloo", timeout=_PATIENCE)
    return InitProcessGroupKwargs(timeout=_PATIENCE)
