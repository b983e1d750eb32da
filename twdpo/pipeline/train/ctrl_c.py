"""Ctrl-C, or a SIGTERM, as a flag that a loop reads where it can stop. Not for: what is saved then (`loop.py`)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


class CtrlC:
    """A `with` block in which the first Ctrl-C sets `pressed` and calls back, and a second one acts as ever.

    SIGTERM is taken for one where it has a handler to act as ever: not where it is ignored, or ends the process.
    Outside the main thread, where Python takes no signals, nothing changes.
    """

    def __init__(self, on_press: Callable[[], None]) -> None:
        self.pressed = False
        self._on_press = on_press
        self._before: dict[int, Any] = {}

    def __enter__(self) -> CtrlC:
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._press)
            if callable(signal.getsignal(signal.SIGTERM)):
                self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _press(self, *_: object) -> None:
        self.pressed = True
        self._restore()
        self._on_press()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
