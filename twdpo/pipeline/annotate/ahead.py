"""Work beside the main thread: items made ahead of it, and items finished behind it, a bounded number of each.

Ctrl-C reaches the main thread alone, wherever it is. So both hand over through queues of the C kind, which an interrupt
cannot leave half done, and what was handed to `Behind` is finished whatever happens. Not for: what the items are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")

#: Seconds that leaving early waits for an item in the making: it may be waiting for a network.
_PATIENCE = 10.0


class _End:
    """What comes after the last item."""


class Ahead(Generic[Item]):
    """Iterates `items` in a thread, at most `bound` of them ahead of whoever iterates this; a context manager.

    What `items` raises is raised here as it is, after the items before it.
    """

    def __init__(self, items: Iterable[Item], *, bound: int = 2) -> None:
        self._source = items
        self._items: SimpleQueue[Item | type[_End]] = SimpleQueue()
        # One token for each item that may be made; taken before it is.
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(bound):
            self._room.put(None)
        self._stopped = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._make, name="twdpo-ahead", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __iter__(self) -> Iterator[Item]:
        while True:
            item = self._items.get()
            if isinstance(item, type):
                self._items.put(_End)
                if self._error is not None:
                    raise self._error
                return
            self._room.put(None)
            yield item

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stopped = True
        self._room.put(None)
        self._thread.join(_PATIENCE)

    def _make(self) -> None:
        try:
            items = iter(self._source)
            while True:
                self._room.get()
                if self._stopped:
                    break
                try:
                    item = next(items)
                except StopIteration:
                    break
                self._items.put(item)
                # Held here, it would outlive its use.
                del item
            if close := getattr(items, "close", None):
                close()
        except BaseException as error:
            self._error = error
        finally:
            self._items.put(_End)


class Behind(Generic[Item]):
    """Calls `work` on each item in a thread, in order; a context manager whose end waits for all of it.

    At most `bound` items wait. What `work` raises is raised from the next `put` or at the end, as it is; items after
    it are dropped.
    """

    def __init__(self, work: Callable[[Item], None], *, bound: int = 2) -> None:
        self._work = work
        self._items: SimpleQueue[Item | type[_End]] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(bound):
            self._room.put(None)
        self._end: SimpleQueue[None] = SimpleQueue()
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="twdpo-behind", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def put(self, item: Item) -> None:
        """Hand over one item, then wait while too many do."""
        # First the item, so that an interrupt of the waiting does not lose it.
        self._items.put(item)
        self._room.get()
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait for all that was handed over; further calls do nothing. An interrupt is raised after the wait."""
        if self._thread.ident is None:  # interrupted before it began
            return
        self._items.put(_End)
        interrupt: KeyboardInterrupt | None = None
        # Not `join`: some versions of Python take a thread for ended once that was interrupted.
        while not self._ended:
            try:
                self._end.get()
                self._ended = True
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.finish()
        except KeyboardInterrupt:
            # Pressed again while the first is under way.
            if error is None and self._error is None:
                raise
        if self._error is not None and self._error is not error:
            raise self._error

    def _run(self) -> None:
        while not isinstance(item := self._items.get(), type):
            if self._error is None:
                try:
                    self._work(item)
                except BaseException as error:
                    self._error = error
            del item
            self._room.put(None)
        # Twice, since an interrupt may come between its taking and its noting.
        self._end.put(None)
        self._end.put(None)
