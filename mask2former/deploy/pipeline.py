"""Stages of a stream that work at the same time, each in a thread of its own, with a few items waiting between them.

    with read_ahead(frames) as ahead, in_background(write) as hand_over:
        for frame in ahead:
            hand_over(network(frame))

Threads are enough: decoding, encoding, torch and large NumPy operations let others run meanwhile.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["in_background", "read_ahead"]

T = TypeVar("T")

#: Items that wait between two stages: enough to bridge a slow one, few enough for the memory.
WAITING_ITEMS = 4


@contextmanager
def read_ahead(items: Iterable[T], *, newest_only: bool = False) -> Iterator[Iterator[T]]:
    """Lets a thread take items out of an iterable before they are asked for.

    What the iterable raises is raised at its place, behind the items before. Leaving the block stops the thread after
    the item it is at; what it has read in vain is dropped.

    Args:
        items: taken one after the other; at most `WAITING_ITEMS` wait.
        newest_only: for live sources, which do not wait: whoever is late gets the newest item and misses those before.

    Yields:
        The items, in order, to be iterated over once.
    """
    channel: _Channel[T] = _Channel(1 if newest_only else WAITING_ITEMS, replaces_oldest=newest_only)
    finished = _start(lambda: _fill(items, channel))
    try:
        yield iter(channel)
    finally:
        channel.close(drop=True)
        _wait_for(finished)


@contextmanager
def in_background(consume: Callable[[T], object]) -> Iterator[Callable[[T], None]]:
    """Lets a thread do something with items, one after the other, while the caller makes the next.

    Leaving the block, also by an error or Ctrl-C, waits until all items are done that were handed over; a second Ctrl-C
    only for the one that is being done. What `consume` raises is raised by the next hand-over or on leaving; the items
    after it are dropped.

    Yields:
        The function that hands an item over. It waits while `WAITING_ITEMS` are to be done before.
    """
    channel: _Channel[T] = _Channel(WAITING_ITEMS)
    finished = _start(lambda: _drain(channel, consume))

    def hand_over(item: T) -> None:
        if not channel.put(item):
            channel.raise_error()

    try:
        yield hand_over
    finally:
        channel.close()
        try:
            finished.wait()
        except KeyboardInterrupt:
            channel.close(drop=True)
            _wait_for(finished)
            raise
        channel.raise_error()


def _fill(items: Iterable[T], channel: _Channel[T]) -> None:
    try:
        for item in items:
            if not channel.put(item):
                return
        channel.close()
    except BaseException as error:  # noqa: BLE001  raised again where the items are read
        channel.close(error)


def _drain(channel: _Channel[T], consume: Callable[[T], object]) -> None:
    try:
        for item in channel:
            consume(item)
    except BaseException as error:  # noqa: BLE001  raised again where the items are handed over
        channel.close(error, drop=True)


def _start(work: Callable[[], None]) -> threading.Event:
    """Runs it in a thread; the event says that it has ended. (A `Thread.join` that Ctrl-C interrupts forgets it.)"""
    finished = threading.Event()

    def run() -> None:
        try:
            work()
        finally:
            finished.set()

    threading.Thread(target=run, daemon=True).start()
    return finished


def _wait_for(finished: threading.Event) -> None:
    """Until the thread has ended its item: only then may files be closed. Ctrl-C is put off until then."""
    interrupt: KeyboardInterrupt | None = None
    while not finished.is_set():
        try:
            finished.wait()
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


class _Channel(Generic[T]):
    """Items on their way from one thread to another. Either side may close it."""

    def __init__(self, capacity: int, *, replaces_oldest: bool = False) -> None:
        self._items: deque[T] = deque()
        self._capacity, self._replaces_oldest = capacity, replaces_oldest
        self._is_closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, item: T) -> bool:
        """Waits for room; False if the channel is closed."""
        with self._changed:
            if self._replaces_oldest and len(self._items) == self._capacity:
                self._items.popleft()
            self._changed.wait_for(lambda: self._is_closed or len(self._items) < self._capacity)
            if self._is_closed:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def close(self, error: BaseException | None = None, *, drop: bool = False) -> None:
        """No more items are taken; with `drop` those that wait are lost, otherwise they can still be read."""
        with self._changed:
            self._is_closed = True
            self._error = self._error or error
            if drop:
                self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or bool(self._items))
                if not self._items:
                    break
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
            del item  # while waiting for the next one, memory shall not hold this one
        self.raise_error()

    def raise_error(self) -> None:
        """The error that closed the channel, if one did; raised once."""
        error, self._error = self._error, None
        if error is not None:
            raise error
