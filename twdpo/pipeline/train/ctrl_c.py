"""Ctrl-C as a flag that a loop reads where it can stop. Not for: what is saved then (`loop.py`)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


class CtrlC:
    """A `with` block in which the first Ctrl-C sets `pressed` and calls back, and a second one acts as ever.

    Outside the main thread, where Python takes no signals, nothing changes.
    """

    def __init__(self, on_press: Callable[[], None]) -> None:
        self.pressed = False
        self._on_press = on_press
        self._before: Any = None

    def __enter__(self) -> CtrlC:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, *_: object) -> None:
        self.pressed = True
        signal.signal(signal.SIGINT, self._before)
        self._on_press()
