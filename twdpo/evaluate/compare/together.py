"""Several processes at one comparison: the same command once for each GPU of a machine.

The kernel's locks say who is at what, and it lets go of them when a process ends, however it ends. Not for: what is
done (`run.py`).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twdpo.config import to_yaml
from twdpo.errors import UsageError
from twdpo.evaluate.compare.config import CompareConfig
from twdpo.weights_cache.durable import TEMPORARY_PREFIX, hold, make_folder, write_file

CONFIGURATION = "settings.yaml"
#: Seconds for which the first process may keep others waiting while it writes its configuration.
_MOMENT = 10.0


@contextmanager
def joined(config: CompareConfig) -> Iterator[None]:
    """Be one of the processes that write to the comparison's folder.

    The first of them writes the configuration there. Raises UsageError where others are there with another one, or the
    folder holds something else.
    """
    out = Path(config.out)
    make_folder(out)
    text, deadline = to_yaml(config), time.monotonic() + _MOMENT
    descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while not (first := _locks(descriptor, fcntl.LOCK_EX)) and not _locks(descriptor, fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                raise UsageError(f"another program holds {out}; wait for it, stop it, or choose another out:")
            time.sleep(0.05)
        if first:
            held = [path for path in out.iterdir() if not path.name.startswith(TEMPORARY_PREFIX)]
            if held and not (out / CONFIGURATION).is_file():
                raise UsageError(f"{out} is not empty and holds no comparison; choose another out:")
            write_file(out / CONFIGURATION, text.encode())
            _locks(descriptor, fcntl.LOCK_SH)
        elif (out / CONFIGURATION).read_text("utf-8") != text:
            raise UsageError(
                f"a comparison with other settings is writing to {out}; wait for it, stop it, or choose another out:"
            )
        yield
    finally:
        os.close(descriptor)


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether what is done in `folder` is this process's to do: no other is at it, nor will be meanwhile."""
    make_folder(folder)
    holding = hold(folder)
    try:
        yield holding is not None
    finally:
        if holding is not None:
            os.close(holding)


def _locks(descriptor: int, kind: int) -> bool:
    """Take a lock, or exchange the one that is held, if that can be done at once."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: everyone is alone
        return True
    return True
