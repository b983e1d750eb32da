"""What to do where a device's memory runs out: tell it from other failures, and give back what a failed pass held.

Not for: what is then done with less (the callers').
"""

from __future__ import annotations

import gc

import torch

#: What torch says of it on devices whose error has no class of its own.
_WORDS = ("can't allocate memory", "not enough memory", "out of memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is that of an allocation that failed."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def give_back() -> None:
    """Free what nothing refers to any more; to be called outside the handler, whose frames hold the tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
