"""Threads beside the main one: they overlap, hold a bounded number of items, keep order, and lose nothing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from twdpo.pipeline.annotate.ahead import Ahead, Behind

PATIENCE = 20.0


def put_many(behind: Behind[int]) -> None:
    with behind:
        for number in range(100):
            behind.put(number)


def test_items_come_in_order_and_errors_as_themselves_after_them() -> None:
    error = OSError("of the source")

    def source() -> Iterator[int]:
        yield from range(5)
        raise error

    met: list[int] = []

    def use() -> None:
        with Ahead(source()) as ahead:
            met.extend(ahead)

    with pytest.raises(OSError, match="of the source") as caught:
        use()
    assert caught.value is error
    assert met == [0, 1, 2, 3, 4]


def test_items_are_made_while_the_one_before_is_used_and_no_more_than_the_bound() -> None:
    made: list[int] = []
    reached = {count: threading.Event() for count in range(1, 11)}

    def source() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            reached[len(made)].set()
            yield number

    with Ahead(source(), bound=2) as ahead:
        for item in ahead:
            # Made beside this loop, which stands still: two more than were taken.
            ahead_of_it = min(10, item + 3)
            assert reached[ahead_of_it].wait(PATIENCE)
            assert len(made) <= item + 3
    assert made == list(range(10))


def test_leaving_early_stops_the_source_and_closes_it() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            closed.set()

    with Ahead(source()) as ahead:
        assert next(iter(ahead)) == 0
    assert closed.is_set()


def test_work_behind_overlaps_in_order_and_no_more_than_the_bound_wait() -> None:
    gate, third = threading.Event(), threading.Event()
    done: list[int] = []

    def work(number: int) -> None:
        assert gate.wait(PATIENCE)
        done.append(number)

    with Behind(work, bound=2) as behind:
        behind.put(0)
        behind.put(1)
        assert done == []  # both are with it, neither is finished

        def put_third() -> None:
            behind.put(2)
            third.set()

        putting = threading.Thread(target=put_third)
        putting.start()
        assert not third.wait(0.05)
        gate.set()
        assert third.wait(PATIENCE)
        putting.join()
    assert done == [0, 1, 2]


def test_an_error_behind_surfaces_as_itself_and_drops_what_follows() -> None:
    error = OSError("of the disk")
    done: list[int] = []

    def work(number: int) -> None:
        if number == 1:
            raise error
        done.append(number)

    with pytest.raises(OSError, match="of the disk") as caught:
        put_many(Behind(work))
    assert caught.value is error
    assert done == [0]


def test_an_error_of_the_last_item_surfaces_at_the_end() -> None:
    def work(_number: int) -> None:
        raise OSError("late")

    with pytest.raises(OSError, match="late"), Behind(work) as behind:
        behind.put(0)


def test_an_interrupt_while_waiting_loses_nothing_that_was_handed_over() -> None:
    """Ctrl-C while the main thread waits for room, and again while it waits for the end."""
    gate = threading.Event()
    done: list[int] = []
    presses: list[threading.Timer] = []

    def press() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def work(number: int) -> None:
        if number == 0:
            for delay in (0.1, 0.3):
                presses.append(threading.Timer(delay, press))
                presses[-1].start()
            gate.wait(0.6)
        done.append(number)

    with pytest.raises(KeyboardInterrupt):
        put_many(Behind(work, bound=1))
    for timer in presses:
        timer.join()
    assert done == list(range(len(done)))
    assert 2 <= len(done) <= 3  # the one in work, the one that waited, and no later one


def test_what_never_began_is_finished() -> None:
    Behind(print).finish()


def test_finishing_twice_is_finishing_once() -> None:
    done: list[int] = []
    behind = Behind(done.append)
    with behind:
        behind.put(1)
    behind.finish()
    assert done == [1]
